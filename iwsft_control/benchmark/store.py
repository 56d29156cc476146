"""What stages made, kept on disk: nothing that is finished is done twice, whatever was killed in between.

One file per stage (safetensors, written atomically), named by a digest of everything that its content depends on: the
data, the settings, the seeds, the code, the versions of the packages, the kind of device, the stages that it needs.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import importlib.metadata
import inspect
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from iwsft_control.base import errors, files, snapshot
from iwsft_control.benchmark import settings, stages
from iwsft_control.benchmark.stages import Artefact, Stage, Start
from iwsft_control.datasets import load, minari_files, packed, transitions, types
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import batch, evaluation, physics
from iwsft_control.learning import curation, loop, objectives, temporal_difference
from iwsft_control.methods import critic, supervised, td3_bc
from iwsft_control.methods.registry import BASELINES
from iwsft_control.networks import mlp, policies

LEARNING = ("jax", "jaxlib", "flax", "optax", "numpy")


EVALUATING = ("mujoco", "gymnasium")


DATA_CODE = (load, minari_files, packed, transitions, types)
CRITIC_CODE = (*DATA_CODE, critic, temporal_difference, mlp, policies, loop, settings, stages)


POLICY_CODE = (*CRITIC_CODE, objectives, curation, supervised, physics, batch, evaluation)


BASELINE_CODE = (*CRITIC_CODE, physics, batch, evaluation)


SHARED_CODE = {"rebrac": (td3_bc,), "rebrac-tuned": (td3_bc,)}  # beside the baseline's own module


@cache
def code_version(modules: tuple[ModuleType, ...]) -> str:
    """Digest of what modules do: comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for module in modules:
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [
                    x for x in node.body if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))
                ] or [ast.Pass()]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def modules(method: str) -> tuple[ModuleType, ...]:
    """The modules that a method's work is in."""
    if method in BASELINES:
        return (*BASELINE_CODE, BASELINES[method], *SHARED_CODE.get(method, ()))
    return CRITIC_CODE if method == "critic" else POLICY_CODE


def key(stage: Stage, data: Dataset, device: str | None = None) -> str:
    """Digest of everything that a stage's artefact depends on.

    Args:
        device: what computes it (see :func:`device_kind`); by default what this process has.
    """
    device = device or device_kind()
    learns_policy = stage.method != "critic"
    packages = LEARNING + (EVALUATING if learns_policy else ())
    depends = {
        "method": stage.method,
        "quality": stage.quality,
        "seeds": stage.seeds,
        "settings": stages.configuration(stage),
        "needs": {name: key(need, data, device) for name, need in stages.needs(stage).items()},
        "data": data.sha256,
        "environment": environment(data) if learns_policy else None,
        "code": code_version(modules(stage.method)),
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "device": device,
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def device_kind() -> str:
    """JAX's name of this process's device: "cpu", or say "NVIDIA H100 80GB HBM3".

    With one core XLA compiles other programs than with several, which round otherwise; two cores or sixteen, one thread
    or all of them are the same (``tests/test_sweep.py`` checks that).
    """
    kind = jax.devices()[0].device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{kind}, one core" if jax.default_backend() == "cpu" and cores == 1 else kind


def environment(data: Dataset) -> list[Any]:
    """What an evaluation depends on: physics, and the whole specification where it is the data set's own."""
    spec = data.environment
    return [physics.describe(data.env_id), None if isinstance(spec, str) else spec.to_json()]


class Store:
    """A folder of artefacts that any number of processes may share.

    Args:
        folder: made where it does not exist.
        device: what computes the artefacts, where it is not this process's.
    """

    def __init__(self, folder: Path, device: str | None = None):
        self.folder, self.device = folder, device

    def path(self, stage: Stage, data: Dataset) -> Path:
        """Where the artefact of a stage is kept."""
        return self.folder / f"{stage.name.replace(' ', '-')}-{key(stage, data, self.device)[:20]}.safetensors"

    def read(self, stage: Stage, data: Dataset) -> Artefact | None:
        """The artefact of a stage, or None where it has not been made (or its file is damaged)."""
        try:
            arrays, record = files.load_arrays(self.path(stage, data))
        except errors.UserError:
            return None
        return Artefact(files.nest(arrays), record)

    def has(self, stage: Stage, data: Dataset) -> bool:
        """Whether :meth:`read` would find the artefact."""
        return bool(files.read_metadata(self.path(stage, data)))

    def write(self, stage: Stage, data: Dataset, artefact: Artefact) -> None:
        """Keep an artefact.

        Raises:
            UserError: the folder cannot be written.
        """
        files.save_pytree(self.path(stage, data), artefact.arrays, artefact.record)

    @contextlib.contextmanager
    def alone(self, stage: Stage, data: Dataset) -> Iterator[None]:
        """Wait until no other process works on the stage; a killed process lets go of its claim."""
        path = self.path(stage, data).with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            raise errors.UserError(f"cannot write {path}: {error.strerror}; choose another --stages folder.") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def snapshot(self, stage: Stage, data: Dataset) -> snapshot.Snapshot:
        """How far the training of a stage has come that was killed."""
        return snapshot.Snapshot(self.path(stage, data).with_suffix(".unfinished"))

    def inputs(self, stage: Stage, data: Dataset, start: Start, threads: int | None = None) -> dict[str, Artefact]:
        """The artefacts of the stages that a stage needs, made where they are not there."""
        return {name: self.perform(need, data, start, threads) for name, need in stages.needs(stage).items()}

    def perform(self, stage: Stage, data: Dataset, start: Start, threads: int | None = None) -> Artefact:
        """The artefact of a stage: the one that is kept, or a new one (see :func:`stages.compute`)."""
        found = self.read(stage, data)
        if found is not None:
            return found
        inputs = self.inputs(stage, data, start, threads)
        with self.alone(stage, data):
            found = self.read(stage, data)  # made by another process while this one waited
            if found is None:
                snapshot = self.snapshot(stage, data)
                found = stages.compute(stage, data, inputs, start, threads, snapshot)
                self.write(stage, data, found)
                snapshot.remove()
        return found
