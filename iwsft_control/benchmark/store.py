"""What stages made, kept on disk: nothing that is finished is done twice, whatever was killed in between.

One file per stage (safetensors, written atomically), named by a digest of everything that its content depends on: the
data, the settings, the seeds, the code, the versions of the packages, the kind of device, the stages it depends on. The
code is that of the method's own file and all that it imports, and of the loop, evaluation and physics; so a new method,
or a change in one, leaves the stored stages of the others as they are.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax

import iwsft_control
from iwsft_control.base import errors, files, snapshot
from iwsft_control.benchmark import stages
from iwsft_control.benchmark.stages import Stage
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import physics, specs
from iwsft_control.learning.method import Artefact
from iwsft_control.methods import registry

PACKAGE = Path(iwsft_control.__file__).parent
LEARNING = ("jax", "jaxlib", "flax", "optax", "numpy")
EVALUATING = ("mujoco", "gymnasium")
# Beside the method's own file: what trains and what evaluates.
TRAINING_CODE = (PACKAGE / "learning/loop.py",)
EVALUATION_CODE = (PACKAGE / "envs/evaluation.py", PACKAGE / "envs/physics.py")
# Its code cannot change a number: how errors, files and the console are, and the record that describes a method.
NOT_CODE = (PACKAGE / "base", PACKAGE / "learning/method.py", PACKAGE / "methods/registry.py")


@cache
def code_version(paths: tuple[Path, ...]) -> str:
    """Digest of what source files do: comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [
                    x for x in node.body if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))
                ] or [ast.Pass()]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


@cache
def import_closure(path: Path) -> frozenset[Path]:
    """A source file and the files of this package that it imports, directly or not, but for :data:`NOT_CODE`."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        each = waiting.pop()
        if each in found or any(each.is_relative_to(place) for place in NOT_CODE):
            continue
        found.add(each)
        for node in ast.walk(ast.parse(each.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
                place = PACKAGE.joinpath(*(node.module or "").split(".")[1:])
                inside = [place / f"{alias.name}.py" for alias in node.names]
                waiting += [p for p in (place.with_suffix(".py"), *inside) if p.is_file()]
    return frozenset(found)


def code_of(stage: Stage) -> tuple[Path, ...]:
    """The source files that a stage's work is in, in a fixed order."""
    method = registry.get(stage.method)
    own = Path(str(sys.modules[method.config.__module__].__file__))
    starts = (own, *TRAINING_CODE, *(EVALUATION_CODE if method.export is not None else ()))
    return tuple(sorted(frozenset().union(*map(import_closure, starts)), key=str))


def key(stage: Stage, data: Dataset, device: str | None = None) -> str:
    """Digest of everything that a stage's artefact depends on.

    Args:
        device: what computes it (see :func:`device_kind`); by default what this process has.
    """
    device = device or device_kind()
    learns_policy = registry.get(stage.method).export is not None
    packages = LEARNING + (EVALUATING if learns_policy else ())
    depends = {
        "method": stage.method,
        "quality": stage.quality,
        "seeds": stage.seeds,
        "settings": stages.configuration(stage),
        "dependencies": {name: key(each, data, device) for name, each in stages.dependencies(stage).items()},
        "data": data.sha256,
        "environment": environment(data) if learns_policy else None,
        "code": code_version(code_of(stage)),
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
    return [physics.describe(data.env_id), None if isinstance(spec, str) else specs.describe(spec)]


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
            arrays, record = files.load_arrays(self.path(stage, data), sealed=True)
        except errors.UserError:
            return None
        return Artefact(files.nest(arrays), record)

    def has(self, stage: Stage, data: Dataset) -> bool:
        """Whether :meth:`read` would find the artefact, undamaged."""
        return self.read(stage, data) is not None

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
            file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise errors.UserError(f"cannot write {path}: {error.strerror}; choose another --stages folder.") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def snapshot(self, stage: Stage, data: Dataset) -> snapshot.Snapshot:
        """How far the training of a stage has come that was killed."""
        return snapshot.Snapshot(self.path(stage, data).with_suffix(".unfinished"))

    def inputs(self, stage: Stage, data: Dataset) -> dict[str, Artefact] | None:
        """The artefacts of the stages that a stage depends on; None where one of them has not been made."""
        found = {name: self.read(each, data) for name, each in stages.dependencies(stage).items()}
        return None if None in found.values() else {k: v for k, v in found.items() if v is not None}
