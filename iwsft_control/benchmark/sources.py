"""What source files do: digests of the code that a method or an environment is written in.

Comments, docstrings and layout do not count. A digest is of the files as they were when this process first asked, which
is what it runs; :func:`check_as_imported` sees to that where a user may edit while Python runs.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

import iwsft_control
from iwsft_control.base.errors import require
from iwsft_control.base.versions import version
from iwsft_control.envs import physics
from iwsft_control.envs.specs import signature, spec_of

PACKAGE = Path(iwsft_control.__file__).parent
# Its code cannot change a number: how errors, files and the console are, and the record that describes a method.
NOT_CODE = tuple(PACKAGE / p for p in ("base", "configs/card.py", "learning/method.py", "methods/registry.py"))
RECORDS = ("Card", "_card", "Method")  # what makes a method's record
NOT_SETTINGS = ("seconds", "published")  # of a record: estimates and references
INSTALLED = ("site-packages", "dist-packages")  # folders of packages, of which versions tell
NOT_OWN = {"gymnasium", PACKAGE.name, *sys.stdlib_module_names}


@cache
def code_version(paths: tuple[Path, ...]) -> str:
    """Digest of what source files do: comments, docstrings, layout and :data:`NOT_SETTINGS` of records do not count."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(_understood(_text(path)).does)
    return digest.hexdigest()


@cache
def _text(path: Path) -> str:
    """A source file as it was when it was first asked for."""
    return _read(path)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")


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
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # of a file that is not imported after all, or in another encoding
        return _Source(text.encode(errors="surrogateescape"), ())
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
        elif isinstance(node, ast.Call) and _makes_a_record(node):
            node.keywords = [k for k in node.keywords if k.arg not in NOT_SETTINGS]
    return _Source(ast.dump(tree).encode(), tuple(imports))


def _makes_a_record(call: ast.Call) -> bool:
    """Whether it makes a method's record, anew or of another one, which then has another name."""
    called = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return called in RECORDS or (called == "replace" and any(k.arg == "name" for k in call.keywords))


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

    files: tuple[Path, ...]
    elsewhere: str
    """The compiled functions of classes without a file, as of a console, and versions of installed packages."""


_environments: dict[str, tuple[Any, _Environment]] = {}  # and the entry point, so that nothing else gets its address


def _environment(environment: str | EnvSpec) -> _Environment:
    """Of what makes an environment, and of the classes of what is made, wrappers and bases included."""
    if isinstance(environment, str) and environment in physics.ENVIRONMENTS:
        return _Environment((), "")
    spec = spec_of(environment)
    name = f"{id(spec.entry_point)} {physics.describe(environment)}"
    if name in _environments:
        return _environments[name][1]
    made = gym.make(environment)
    creators = [spec.entry_point, *(w.entry_point for w in spec.additional_wrappers), *_callables(spec.kwargs)]
    parts = [*creators, *map(_named, creators), *(kind for layer in _layers(made) for kind in type(layer).__mro__)]
    with contextlib.suppress(Exception):  # whatever it holds goes with the process
        made.close()
    modules = {m for m in _modules_of(parts) if m == "__main__" or m.split(".")[0] not in NOT_OWN}
    there = {m: str(getattr(sys.modules.get(m), "__file__", None) or "") for m in modules}
    installed = {m for m, file in there.items() if not set(INSTALLED).isdisjoint(Path(file).parts)}
    own = [Path(file).resolve() for m, file in there.items() if file.endswith(".py") and m not in installed]
    files = set[Path]().union(*map(import_closure, own))
    without = [x for x in map(_whole, parts) if any(m in there and not there[m] for m in _modules_of([x]))]
    texts = sorted({f"{name} {signature(code)}" for x in without for name, code in _codes(x)})
    packages = [f"{name} {version(name)}" for name in sorted({_distribution(m.split(".")[0]) for m in installed})]
    found = _Environment(tuple(sorted(files)), "\n".join(texts + packages))
    if not texts:  # what is defined in a console may be defined again, under the same name
        _environments[name] = (spec.entry_point, found)
    return found


def _distribution(package: str) -> str:
    """What an importable package is installed as."""
    return (_distributions().get(package) or [package])[0]


@cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _callables(value: Any) -> list[Any]:
    """The callables among keyword arguments."""
    if isinstance(value, dict | list | tuple):
        return [x for each in (value.values() if isinstance(value, dict) else value) for x in _callables(each)]
    return [value] if callable(value) else []


def _named(creator: Any) -> Any:
    """What "module:name" stands for, if that is imported; anything else as it is."""
    module, _, name = creator.partition(":") if isinstance(creator, str) else ("", "", "")
    return getattr(sys.modules.get(module), name, creator) if name else creator


def _whole(thing: Any) -> Any:
    return _whole(thing.func) if isinstance(thing, functools.partial) else thing


def _layers(made: Any) -> list[Any]:
    """An environment, and those that it wraps."""
    found: list[Any] = []
    while made is not None and not any(made is each for each in found):
        found.append(made)
        made = getattr(made, "__dict__", {}).get("env")
    return found


def environment_files(environment: str | EnvSpec) -> tuple[Path, ...]:
    """The source files of an environment that is neither this package's nor Gymnasium's."""
    return tuple(path for path in _environment(environment).files if not path.is_relative_to(PACKAGE))


def environment_code(environment: str | EnvSpec) -> str | None:
    """Digest of the code of an environment and its wrappers; None where it is of this package or Gymnasium.

    Of classes without a file, as those of a console, it is of their compiled functions, of an installed package of its
    version.
    """
    found = _environment(environment)
    if not found.files and not found.elsewhere:
        return None
    known = f"{code_version(found.files)} {found.elsewhere}"
    return hashlib.sha256(known.encode()).hexdigest()[:12]


def _codes(thing: Any) -> Iterator[tuple[str, types.CodeType]]:
    """The compiled code of a function, or of the functions of a class."""
    for each in vars(thing).values() if isinstance(thing, type) else (thing,):
        functions = (each.fget, each.fset, each.fdel) if isinstance(each, property) else (each,)
        for function in functions:
            try:
                code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)  # type: ignore[arg-type]
            except Exception:  # whatever an object answers that is asked for what it wraps
                continue
            if isinstance(code, types.CodeType):
                yield code.co_qualname, code


# --- what is in memory -----------------------------------------------------------------------------------------------

_imports: dict[Path, tuple[Any, ...]] = {}
"""How the modules of a file were imported when its text was first compared."""


def check_as_imported(paths: Sequence[Path]) -> None:
    """See that modules are in memory as their files are now.

    Where a file was edited and imported anew (``importlib.reload``), what was read of it before is forgotten.

    Raises:
        UserError: a file was edited and is in memory as it was; what is run would not be what it says.
    """
    edited = False
    for path in paths:
        imports = tuple(m.__spec__ for m in list(sys.modules.values()) if _is_at(m, path))  # reload makes another one
        changed = path.is_file() and _read(path) != _text(path)
        # What was run as a script, or is not imported here, was compiled by somebody else, if at all.
        unseen = (path not in _imports or changed) and any(spec is not None for spec in imports)
        known = _imports.setdefault(path, imports)
        again = len(known) == len(imports) and all(one is not other for one, other in zip(known, imports, strict=True))
        require(
            path.is_file() and (not changed or again) and not (unseen and _edited(path)),
            f"{path} has changed since it was imported; start Python again to use it as it is now.",
        )
        if changed:
            edited = True
            _imports[path] = imports
    if edited:
        forget()


def _is_at(module: Any, path: Path) -> bool:
    file = str(getattr(module, "__file__", None) or "")
    return file.endswith(path.name) and Path(file).resolve() == path.resolve()


def _edited(path: Path) -> bool:
    """Whether a file is another than the one that Python compiled last, as far as the compiled file tells."""
    compiled = Path(importlib.util.cache_from_source(str(path)))
    if sys.dont_write_bytecode or not compiled.is_file() or not os.access(compiled.parent, os.W_OK):
        return False
    head, now = compiled.read_bytes()[:16], path.stat()
    stamp = b"".join((int(x) & 0xFFFFFFFF).to_bytes(4, "little") for x in (now.st_mtime, now.st_size))
    return head[4:8] == bytes(4) and head[8:] != stamp  # other flags: compared by content
