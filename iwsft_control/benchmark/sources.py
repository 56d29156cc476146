"""What source files do: digests of the code that a method or an environment is written in.

Comments, docstrings and layout do not count. A digest is of the files as they were when this process first asked, which
is what it runs; :func:`check_as_imported` sees to that where a user may edit while Python runs.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

import iwsft_control
from iwsft_control.base.errors import require
from iwsft_control.envs import physics

PACKAGE = Path(iwsft_control.__file__).parent
# Its code cannot change a number: how errors, files and the console are, and the record that describes a method.
NOT_CODE = tuple(PACKAGE / p for p in ("base", "configs/card.py", "learning/method.py", "methods/registry.py"))
NOT_SETTINGS = ("seconds", "published")  # of a record: estimates and references
INSTALLED = ("site-packages", "dist-packages")  # folders of packages, of which versions tell
NOT_OWN = {"gymnasium", PACKAGE.name, *sys.stdlib_module_names}


@cache
def code_version(paths: tuple[Path, ...]) -> str:
    """Digest of what source files do: comments, docstrings, layout and :data:`NOT_SETTINGS` do not count."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(_understood(_text(path)).does)
    return digest.hexdigest()


@cache
def _text(path: Path) -> str:
    """A source file as it was when it was first asked for."""
    return path.read_text(encoding="utf-8")


def forget() -> None:
    """Read the files anew when they are next asked for."""
    for cached in (code_version, import_closure, _text, _own_folders):
        cached.cache_clear()
    _environments.clear()


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
        around = [folder for folder in (importer.parent, importer.parent.parent) if folder.name not in INSTALLED]
        own = [importer.parent.parent] * (parts[0] == importer.parent.name)  # an installed package's own modules
        folders = [*around, *own, *_own_folders(tuple(sys.path))]
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
        and folder.name not in INSTALLED
        and not any(folder.is_relative_to(place) for place in installed)
    )


def written_in(things: Iterable[Any]) -> set[Path]:
    """The source files of callables, Python's own left out."""
    own = {name for name in _modules_of(things) if name.split(".")[0] not in sys.stdlib_module_names}
    return {Path(str(sys.modules[name].__file__)) for name in own}


def _modules_of(things: Iterable[Any]) -> set[str]:
    """Names of the modules that callables were written in; text "module:name" stands for what it names."""
    waiting, modules = list(things), set[str]()
    while waiting:
        each = waiting.pop()
        if isinstance(each, functools.partial):
            waiting += [each.func, *each.args, *each.keywords.values()]
        elif callable(each):
            modules.add(getattr(each, "__module__", None) or type(each).__module__)
        elif isinstance(each, str) and ":" in each:
            modules.add(each.partition(":")[0])
    return modules


# --- environments ----------------------------------------------------------------------------------------------------


class _Environment(NamedTuple):
    """What an environment is written in."""

    creator: Any
    """Kept, so that nothing else gets its address."""
    files: tuple[Path, ...]
    elsewhere: str
    """The compiled functions of classes without a file, as of a console."""


_environments: dict[tuple[str, int], _Environment] = {}


def _environment(environment: str | EnvSpec) -> _Environment:
    """Of what makes an environment and of the classes of what is made, wrappers and bases included."""
    if isinstance(environment, str) and environment in physics.ENVIRONMENTS:
        return _Environment(None, (), "")
    spec = gym.spec(environment) if isinstance(environment, str) else environment
    name = (str(physics.describe(environment)), id(spec.entry_point))
    if name in _environments:
        return _environments[name]
    made = gym.make(environment)
    creators = [spec.entry_point, *(w.entry_point for w in spec.additional_wrappers)]
    classes = [kind for layer in _layers(made) for kind in type(layer).__mro__]
    made.close()
    modules = {m for m in _modules_of([*creators, *classes]) if m.split(".")[0] not in NOT_OWN} | (
        {"__main__"} & _modules_of([*creators, *classes])
    )
    for module in modules - set(sys.modules):
        importlib.import_module(module)
    with_file = {m for m in modules if str(getattr(sys.modules[m], "__file__", "")).endswith(".py")}
    files = set[Path]().union(*(import_closure(Path(str(sys.modules[m].__file__)).resolve()) for m in with_file))
    without = [x for x in (*creators, *classes) if callable(x) and _modules_of([x]) & (modules - with_file)]
    texts = sorted(f"{name} {_signature(code)}" for x in without for name, code in _codes(x))
    _environments[name] = _Environment(spec.entry_point, tuple(sorted(files)), "\n".join(texts))
    return _environments[name]


def _layers(made: Any) -> Iterator[Any]:
    """An environment, and those that it wraps."""
    while made is not None:
        yield made
        made = vars(made).get("env") if hasattr(made, "__dict__") else None


def environment_files(environment: str | EnvSpec) -> tuple[Path, ...]:
    """The source files of an environment that is neither this package's nor Gymnasium's."""
    return tuple(path for path in _environment(environment).files if not path.is_relative_to(PACKAGE))


def environment_code(environment: str | EnvSpec) -> str | None:
    """Digest of the code of an environment and its wrappers; None where it is of this package or Gymnasium.

    Of classes without a file, as those of a console, it is of their compiled functions.
    """
    found = _environment(environment)
    if not found.files and not found.elsewhere:
        return None
    known = f"{code_version(found.files)} {found.elsewhere}"
    return hashlib.sha256(known.encode()).hexdigest()[:12]


# --- what is in memory -----------------------------------------------------------------------------------------------


def check_as_imported(paths: Sequence[Path]) -> None:
    """See that modules are in memory as their files are now.

    Where a file was edited and imported anew (``importlib.reload``), what was read of it before is forgotten.

    Raises:
        UserError: a file was edited and is in memory as it was; what is run would not be what it says.
    """
    edited = False
    for path in paths:
        now = path.read_text(encoding="utf-8") if path.is_file() else ""
        modules = [m for m in list(sys.modules.values()) if _is_at(m, path)]
        require(
            path.is_file() and all(_agrees(module, now, path) for module in modules),
            f"{path} has changed since it was imported; start Python again to use it as it is now.",
        )
        edited |= now != _text(path)
    if edited:
        forget()


def _is_at(module: Any, path: Path) -> bool:
    file = str(getattr(module, "__file__", None) or "")
    return file.endswith(path.name) and Path(file).resolve() == path.resolve()


def _agrees(module: types.ModuleType, text: str, path: Path) -> bool:
    """Whether the functions and the plain constants of a module are those of a text."""
    tree = ast.parse(text)
    written: dict[str, list[Any]] = {}
    waiting = [compile(text, str(path), "exec", dont_inherit=True)]
    while waiting:
        code = waiting.pop()
        written.setdefault(code.co_qualname, []).append(_signature(code))
        waiting += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    own = [x for x in vars(module).values() if getattr(x, "__module__", None) == module.__name__]
    for _, code in (pair for each in own for pair in _codes(each)):
        if Path(code.co_filename).name == path.name and _signature(code) not in written.get(code.co_qualname, []):
            return False
    assigned = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    for place, body in _bodies(tree, module):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not hasattr(place, node.name):
                return False
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            value = getattr(node, "value", None)
            if not isinstance(target, ast.Name) or not isinstance(value, ast.Constant) or target.id in assigned:
                continue
            last = [n for n in body if isinstance(n, ast.Assign | ast.AnnAssign) and target.id in ast.dump(n)]
            there = getattr(place, "_field_defaults", vars(place)).get(target.id, value.value)  # of a NamedTuple
            if last == [node] and isinstance(there, type(value.value)) and there != value.value:
                return False
    return True


def _bodies(tree: ast.Module, module: types.ModuleType) -> Iterator[tuple[Any, list[ast.stmt]]]:
    """The module and its classes, each with its statements."""
    yield module, tree.body
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and hasattr(module, node.name):
            yield getattr(module, node.name), node.body


def _codes(thing: Any) -> Iterator[tuple[str, types.CodeType]]:
    """The compiled code of a function, or of the functions of a class."""
    for each in vars(thing).values() if isinstance(thing, type) else (thing,):
        function: Any = each.fget if isinstance(each, property) else each
        while hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if isinstance(code, types.CodeType):
            yield code.co_qualname, code


def _signature(code: types.CodeType) -> str:
    """What a piece of compiled code does, wherever its lines are."""
    constants = [
        _signature(c)
        if isinstance(c, types.CodeType)
        else repr(sorted(map(repr, c)) if isinstance(c, frozenset) else c)
        for c in code.co_consts
    ]
    return repr((code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars))
