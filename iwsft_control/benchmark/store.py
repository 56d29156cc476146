"""What stages made, kept on disk: nothing that is finished is done twice, whatever was killed in between.

One file per stage (safetensors, written atomically), named by a digest of everything that its content depends on: the
data, the settings, the seeds, the code, the versions of the packages, the kind of device, the stages it depends on. The
code is that of the method's own functions and all that it imports, and of the loop, evaluation and physics; so a new
method, or a change in one, leaves the stored stages of the others as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from iwsft_control.base import children, errors, files, snapshot
from iwsft_control.base.versions import version
from iwsft_control.benchmark import sources, stages
from iwsft_control.benchmark.sources import PACKAGE
from iwsft_control.benchmark.stages import Stage
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import physics
from iwsft_control.learning.method import Artefact
from iwsft_control.methods import registry

LEARNING = ("jax", "jaxlib", "flax", "optax", "numpy")
EVALUATING = ("mujoco", "gymnasium")
# Beside what the method's own functions are written in: what trains, what evaluates, and how a stage does both.
TRAINING_CODE = (PACKAGE / "learning/loop.py",)
EVALUATION_CODE = (PACKAGE / "envs/evaluation.py", PACKAGE / "envs/physics.py")
STAGE_CODE = PACKAGE / "benchmark/perform.py"  # without what it imports


def code_of(stage: Stage) -> tuple[Path, ...]:
    """The source files that a stage's work is in, in a fixed order."""
    method = registry.get(stage.method)
    written = sources.written_in(getattr(method, field.name) for field in dataclasses.fields(method))
    starts = {*written, *TRAINING_CODE, *(EVALUATION_CODE if method.export is not None else ())}
    files = {STAGE_CODE}.union(*map(sources.import_closure, starts))
    return tuple(sorted(files, key=lambda p: (not p.is_relative_to(PACKAGE), p.name, str(p.relative_to(p.parents[1])))))


def own_code(stage: Stage) -> str | None:
    """Digest of the source files, of a stage and of those that it starts from, that are not of this package.

    None where all are ours, which the commit tells.
    """
    own = _own_files(stage)
    return sources.code_version(own)[:12] if own else None


def _own_files(stage: Stage) -> tuple[Path, ...]:
    inputs = [path for each in stages.dependencies(stage).values() for path in _own_files(each)]
    return tuple(dict.fromkeys([*inputs, *(path for path in code_of(stage) if not path.is_relative_to(PACKAGE))]))


def check_as_imported(stage: Stage, data: Dataset) -> None:
    """See that somebody else's method and environment are in memory as their files are now.

    Raises:
        UserError: one was edited since it was imported: it would be kept under the name of what the file says.
    """
    sources.check_as_imported([*_own_files(stage), *sources.environment_files(data.environment)])


def key(stage: Stage, data: Dataset, device: str | None = None) -> str:
    """Digest of everything that a stage's artefact depends on.

    Args:
        device: what computes it (see :func:`device_kind`); by default what this process has.
    """
    device = device or device_kind()
    learns_policy = registry.card(stage.method).has_policy
    packages = LEARNING + (EVALUATING if learns_policy else ())
    depends = {
        "method": stage.method,
        "quality": stage.quality,
        "seeds": stage.seeds,
        "stream": registry.card(stage.method).random_stream,
        "settings": stages.configuration(stage),
        "dependencies": {name: key(each, data, device) for name, each in stages.dependencies(stage).items()},
        "data": data.sha256,
        "environment": environment(data) if learns_policy else None,
        "code": sources.code_version(code_of(stage)),
        "versions": {p: version(p) for p in packages},
        "device": device,
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def device_kind() -> str:
    """JAX's name of this process's device, say "NVIDIA H100 80GB HBM3", and of a CPU whether XLA has one thread.

    With several threads XLA adds up the products of matrices in another order, which rounds otherwise. Two threads or
    sixteen are the same, and so is the number of cores (``tests/test_sweep.py`` checks that).
    """
    kind = jax.devices()[0].device_kind
    return f"{kind}, {children.rounding()}" if jax.default_backend() == "cpu" else kind


def environment(data: Dataset) -> dict[str, Any]:
    """What an evaluation depends on, as results tell it: physics, and of an environment that is neither this package's
    nor Gymnasium's a digest of its code."""
    found = physics.describe(data.environment)
    code = sources.environment_code(data.environment)
    return found if code is None else found | {"code": code}


class Store:
    """A folder of artefacts that any number of processes may share.

    It spares work and is no result: where it cannot be written (a full disk), artefacts stay in memory instead.

    Args:
        folder: made where it does not exist.
        device: what computes the artefacts, where it is not this process's.
    """

    def __init__(self, folder: Path, device: str | None = None):
        self.folder, self.device = folder, device
        self.memory: dict[str, Artefact] = {}
        """What could not be written, by the name of its file."""
        self.problem: str | None = None
        """Why something could not be written."""

    def path(self, stage: Stage, data: Dataset) -> Path:
        """Where the artefact of a stage is kept."""
        return self.folder / f"{stage.name.replace(' ', '-')}-{key(stage, data, self.device)[:20]}.safetensors"

    def read(self, stage: Stage, data: Dataset) -> Artefact | None:
        """The artefact of a stage, or None where it has not been made (or its file is damaged)."""
        path = self.path(stage, data)
        try:
            arrays, record = files.load_arrays(path, sealed=True)
        except errors.UserError:
            return self.memory.get(path.name)
        return Artefact(files.nest(arrays), record)

    def has(self, stage: Stage, data: Dataset) -> bool:
        """Whether :meth:`read` would find the artefact, undamaged."""
        return self.read(stage, data) is not None

    def write(self, stage: Stage, data: Dataset, artefact: Artefact) -> None:
        """Keep an artefact, in memory where the folder cannot be written."""
        path = self.path(stage, data)
        try:
            files.save_pytree(path, artefact.arrays, artefact.record)
        except errors.UserError as error:
            self.memory[path.name], self.problem = artefact, str(error)

    def in_memory(self, stage: Stage, data: Dataset) -> dict[str, Artefact]:
        """What of a stage and of all that it depends on is only in memory."""
        found = {k: v for each in stages.dependencies(stage).values() for k, v in self.in_memory(each, data).items()}
        name = self.path(stage, data).name
        return found | {k: v for k, v in self.memory.items() if k == name}

    @contextlib.contextmanager
    def alone(self, stage: Stage, data: Dataset) -> Iterator[None]:
        """Wait until no other process works on the stage; a killed process lets go of its claim."""
        path = self.path(stage, data).with_suffix(".lock")
        with contextlib.ExitStack() as open_files:
            with contextlib.suppress(OSError):  # who cannot write the folder shares nothing there
                path.parent.mkdir(parents=True, exist_ok=True)
                fcntl.flock(open_files.enter_context(path.open("w", encoding="utf-8")), fcntl.LOCK_EX)
            yield

    def snapshot(self, stage: Stage, data: Dataset) -> snapshot.Snapshot:
        """How far the training of a stage has come that was killed."""
        return snapshot.Snapshot(self.path(stage, data).with_suffix(".unfinished"))

    def inputs(self, stage: Stage, data: Dataset) -> dict[str, Artefact] | None:
        """The artefacts of the stages that a stage depends on; None where one of them has not been made."""
        found = {name: self.read(each, data) for name, each in stages.dependencies(stage).items()}
        return None if None in found.values() else {k: v for k, v in found.items() if v is not None}
