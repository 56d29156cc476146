"""What stages made, kept on disk: nothing that is finished is done twice, whatever was killed in between.

One file per stage (safetensors, written atomically), named by a digest of everything that its content depends on: the
data, the settings, the seeds, the code, the versions of the packages, the kind of device, the stages it depends on. The
code is that of the method's own functions and all that it imports, and of the loop, evaluation and physics; so a new
method, or a change in one, leaves the stored stages of the others as they are.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import jax
from gymnasium.envs.registration import EnvSpec

import iwsft_control
from iwsft_control.base import children, errors, files, snapshot
from iwsft_control.base.versions import version
from iwsft_control.benchmark import stages
from iwsft_control.benchmark.stages import Stage
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import physics
from iwsft_control.learning.method import Artefact, Method
from iwsft_control.methods import registry

PACKAGE = Path(iwsft_control.__file__).parent
LEARNING = ("jax", "jaxlib", "flax", "optax", "numpy")
EVALUATING = ("mujoco", "gymnasium")
# Beside what the method's own functions are written in: what trains, what evaluates, and how a stage does both.
TRAINING_CODE = (PACKAGE / "learning/loop.py",)
EVALUATION_CODE = (PACKAGE / "envs/evaluation.py", PACKAGE / "envs/physics.py")
STAGE_CODE = PACKAGE / "benchmark/perform.py"  # without what it imports
# Its code cannot change a number: how errors, files and the console are, and the record that describes a method.
NOT_CODE = tuple(PACKAGE / p for p in ("base", "configs/card.py", "learning/method.py", "methods/registry.py"))
NOT_SETTINGS = ("seconds", "published")  # of a record: estimates and references


@cache
def code_version(paths: tuple[Path, ...]) -> str:
    """Digest of what source files do: comments, docstrings, layout and :data:`NOT_SETTINGS` do not count."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(_understood(_text(path)).does)
    return digest.hexdigest()


@cache
def _text(path: Path) -> str:
    """A source file as it was when it was first asked for, which is what this process runs."""
    return path.read_text(encoding="utf-8")


@cache
def import_closure(path: Path) -> frozenset[Path]:
    """A source file and the files that it imports, directly or not, but for what cannot change a number
    (:data:`NOT_CODE`): those of this package, and of somebody else's file those of :func:`_files_of`."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        each = waiting.pop()
        if each in found or any(each.is_relative_to(place) for place in NOT_CODE):
            continue
        found.add(each)
        imported = _understood(_text(each)).imports
        waiting += [place for name, level in imported for place in _files_of(name, each, level)]
    return frozenset(found)


class _Source(NamedTuple):
    """What is asked of a source file."""

    does: bytes
    """Its syntax tree without what does not count."""
    imports: tuple[tuple[str, int], ...]
    """Names, each with its dots if it is relative."""


@cache
def _understood(text: str) -> _Source:
    """Kept by the text: most methods share most files, and to parse one takes longer than to read it."""
    tree = ast.parse(text)
    imports: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)]
            imports += [(name, node.level) for name in names]
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            body = [x for x in node.body if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]
            node.body = body or [ast.Pass()]
        elif isinstance(node, ast.Call):
            node.keywords = [k for k in node.keywords if k.arg not in NOT_SETTINGS]
    return _Source(ast.dump(tree).encode(), tuple(imports))


def _files_of(name: str, importer: Path, level: int) -> list[Path]:
    """The source files that an imported name may stand for.

    This package's are found in it. Somebody else's are what lies beside the importing file, in its own package, or in
    a folder of the path where packages are not installed; of a package also what its ``__init__`` does.
    """
    parts = [part for part in name.split(".") if part]
    ours = importer.is_relative_to(PACKAGE)
    if level:
        folders = [importer.parents[level - 1]]
    elif parts[0] == PACKAGE.name:
        ours, folders, parts = True, [PACKAGE], parts[1:]
    elif ours or parts[0] in sys.stdlib_module_names:
        return []
    else:
        folders = [importer.parent, importer.parent.parent, *_own_folders(tuple(sys.path))]
    if ours:
        places = [folder.joinpath(*parts).with_suffix(".py") for folder in folders if parts]
        return [file for file in places if file.is_file()]
    modules = [folder.joinpath(*parts[:n]) for folder in folders for n in range(1, len(parts) + 1)]
    packages = [*folders, *modules] if level else modules
    files = [*(m.with_name(f"{m.name}.py") for m in modules), *(p / "__init__.py" for p in packages)]
    return [file.resolve() for file in files if file.is_file()]


@cache
def _own_folders(path: tuple[str, ...]) -> tuple[Path, ...]:
    """The folders of Python's path that hold a user's own modules: neither Python's nor installed packages."""
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = [Path(entry or ".").resolve() for entry in path]
    return tuple(
        folder
        for folder in folders
        if folder.is_dir()
        and folder.name not in ("site-packages", "dist-packages")
        and not any(folder.is_relative_to(place) for place in installed)
    )


def code_of(stage: Stage) -> tuple[Path, ...]:
    """The source files that a stage's work is in, in a fixed order."""
    method = registry.get(stage.method)
    starts = {*_written_in(method), *TRAINING_CODE, *(EVALUATION_CODE if method.export is not None else ())}
    files = {STAGE_CODE}.union(*map(import_closure, starts))
    return tuple(sorted(files, key=lambda p: (not p.is_relative_to(PACKAGE), p.name, str(p.relative_to(p.parents[1])))))


def own_code(stage: Stage) -> str | None:
    """Digest of the source files, of a stage and of those that it starts from, that are not of this package.

    None where all are ours, which the commit tells.
    """
    own = _own_files(stage)
    return code_version(own)[:12] if own else None


def _own_files(stage: Stage) -> tuple[Path, ...]:
    inputs = [path for each in stages.dependencies(stage).values() for path in _own_files(each)]
    return tuple(dict.fromkeys([*inputs, *(path for path in code_of(stage) if not path.is_relative_to(PACKAGE))]))


def check_unchanged(stage: Stage) -> None:
    """See that the files of somebody else's method are as they were when this process imported them.

    Raises:
        UserError: one was edited since; what is run would not be what the file says.
    """
    for path in _own_files(stage):
        errors.require(
            path.is_file() and path.read_text(encoding="utf-8") == _text(path),
            f"{path} has changed since it was imported; start Python again to use it as it is now.",
        )


def _written_in(method: Method) -> set[Path]:
    """The source files of a method's configuration and functions."""
    fields = dataclasses.fields(method)
    return _files_of_modules(_modules_of([getattr(method, field.name) for field in fields]))


def _modules_of(things: Iterable[Any]) -> set[str]:
    """Names of the modules that callables were written in; text "module:name" stands for what it names."""
    waiting, modules = list(things), set[str]()
    while waiting:
        each = waiting.pop()
        if isinstance(each, functools.partial):
            waiting += [each.func, *each.args, *each.keywords.values()]
        elif callable(each):
            modules.add(each.__module__)
        elif isinstance(each, str) and ":" in each:
            modules.add(each.partition(":")[0])
    return modules


def _files_of_modules(names: Iterable[str]) -> set[Path]:
    own = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    return {Path(str(sys.modules[name].__file__)) for name in own}


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
        "code": code_version(code_of(stage)),
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
    code = environment_code(data.environment)
    return found if code is None else found | {"code": code}


def environment_code(environment: str | EnvSpec) -> str | None:
    """Digest of the source files of an environment and its wrappers; None where it is of this package or Gymnasium.

    Of one without a file, as a class that was defined in a console, nothing is known but the text of that class.
    """
    spec = gym.spec(environment) if isinstance(environment, str) else environment
    creators = [spec.entry_point, *(wrapper.entry_point for wrapper in spec.additional_wrappers)]
    modules = {m for m in _modules_of(creators) if m.split(".")[0] not in ("gymnasium", PACKAGE.name)}
    if not modules:
        return None
    for name in modules - set(sys.modules):
        importlib.import_module(name)  # whoever asks has made the environment, or is about to
    with_file = {name for name in modules if str(getattr(sys.modules[name], "__file__", "")).endswith(".py")}
    files = set().union(*map(import_closure, _files_of_modules(with_file)))
    texts = [inspect.getsource(c) for c in creators if callable(c) and c.__module__ not in with_file and _has_text(c)]
    known = (code_version(tuple(sorted(files))), *(hashlib.sha256(text.encode()).hexdigest() for text in texts))
    return hashlib.sha256(" ".join(known).encode()).hexdigest()[:12]


def _has_text(creator: Any) -> bool:
    try:
        return bool(inspect.getsource(creator))
    except (OSError, TypeError):
        return False


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
