"""All methods, by name: those of this package, of installed packages and of files that a user names.

To add one here, write its file, and its hyper-parameters and card in ``configs/``, and add the card below. Someone
else's package offers methods as entry points::

    [project.entry-points."iwsft_control.methods"]
    xql = "my_package.xql:METHOD"

and a single file is named with ``--method-file my_method.py``: its ``METHOD`` (or ``METHODS``) joins the others.

Only true terminal states stop a bootstrap, in every method: a truncated episode goes on in the value of its last state,
which the data hold (D4RL's loader, which the papers used, drops that transition instead).
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import traceback
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from iwsft_control.base import children
from iwsft_control.base.errors import UserError, near, require
from iwsft_control.configs import (
    awac,
    cql,
    critic,
    decision_transformer,
    iql,
    one_step,
    rebrac,
    sarsa,
    supervised,
    td3_bc,
)
from iwsft_control.configs.card import Card

if TYPE_CHECKING:
    from iwsft_control.learning.method import Method

OURS: tuple[Card, ...] = (
    critic.CARD,
    *supervised.CARDS,
    iql.CARD,
    td3_bc.CARD,
    awac.CARD,
    cql.CARD,
    rebrac.CARD,
    rebrac.TUNED_CARD,
    sarsa.CARD,
    one_step.CARD,
    decision_transformer.CARD,
)
ENTRY_POINTS = "iwsft_control.methods"
_cards: dict[str, Card] = {card.name: card for card in OURS}  # a method in its place once its code was imported
_files: list[Path] = []
_entry_points_loaded: list[bool] = []


def add(methods: Iterable[Method], where: str) -> None:
    """Let methods join the others.

    Raises:
        UserError: there is a method of that name already, or one draws from another's stream of random numbers.
    """
    for method in methods:
        require(_is_method(method), f"{where} does not hold a Method record; see the registry's page.")
        check_config(method, where)
        require(method.name not in _cards, f"{where}: there is a method {method.name!r} already; rename it.")
        twin = next((c.name for c in _cards.values() if c.random_stream == method.random_stream), None)
        require(twin is None, f"{where}: {method.name!r} has the random stream of {twin!r}; leave its stream out.")
        _cards[method.name] = method


def check_config(method: Method, where: str) -> None:
    """See that a method's name, configuration and dependencies are what the suite works with.

    Raises:
        UserError: the name cannot be an option's, the configuration is no frozen dataclass, lacks a field or holds what
            JSON cannot, or the dependencies are no function that gives names.
    """
    kind = method.config
    require(
        isinstance(method.name, str) and re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", method.name) is not None,
        f"{where}: {method.name!r} is no name of a method, since options and files are named after it; use small "
        "letters, digits and single hyphens, as in 'weighted-bc'.",
    )
    frozen = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    require(frozen, f"{where}: the config of {method.name!r} is no frozen dataclass; write @dataclass(frozen=True).")
    for field in dataclasses.fields(kind):
        absent = field.init and field.default is field.default_factory is dataclasses.MISSING
        require(not absent, f"{where}: the field {field.name} of {kind.__name__} has no default; give it one.")
    try:
        made = kind()
        json.dumps(method.record(made))
        hash(made)  # its training is compiled once for each configuration
    except TypeError as error:
        raise UserError(
            f"{where}: {kind.__name__} holds what cannot be written or hashed ({error}); use numbers, text and tuples."
        ) from error
    except Exception as error:  # whatever somebody else's code raises
        raise UserError(
            f"{where}: {kind.__name__}() cannot be made ({type(error).__name__}: {error}); mend it."
        ) from error
    for quality in ("q", "return") if method.by_quality else (None,):
        try:
            names = method.dependencies(quality)
        except Exception:  # whatever somebody else's function raises, or what is none
            names = None
        require(
            isinstance(names, tuple | list) and all(isinstance(name, str) for name in names),
            f"{where}: the dependencies of {method.name!r} must be a function of the quality that gives a tuple of "
            "names, as in lambda quality: ('bc',).",
        )
    if method.group is not None:
        wanted = ["steps", "batch_size", *(["average_decay"] if method.has_policy else [])]
        missing = sorted(set(wanted) - {field.name for field in dataclasses.fields(kind)})
        require(not missing, f"{where}: {kind.__name__} has no field {', '.join(missing)}; add it, with a default.")


def _is_method(card: object) -> bool:
    from iwsft_control.learning.method import Method  # who asks has imported its code

    return isinstance(card, Method)


def load_file(path: Path) -> None:
    """Add the methods of a Python file, ``METHOD`` or ``METHODS``; a file that is there already is left as it is.

    It may import what lies beside it, as a script may.

    Raises:
        UserError: the file cannot be read or holds no method.
    """
    path = path.resolve()
    if path in _files:
        return
    children.one_thread()  # before the file may begin JAX
    name = f"iwsft_method_{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # two files may share a name
    spec = importlib.util.spec_from_file_location(name, path)
    require(path.is_file(), f"{path} does not exist or is no file; check the path.")
    require(spec is not None and spec.loader is not None, f"{path} is not a Python file; its name must end in .py.")
    assert spec is not None and spec.loader is not None
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    # Whoever imports the file as well, for its configuration, must get the same classes: before or after this.
    module = sys.modules.get(path.stem)
    if module is None or getattr(module, "__file__", None) != str(path):  # another file's
        module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks itself up there
    try:
        if module.__name__ == name:
            spec.loader.exec_module(module)
            plain = None if path.stem in sys.modules else importlib.util.find_spec(path.stem)
            if plain is not None and plain.origin == str(path):
                sys.modules[path.stem] = module
    except Exception as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f"line {lines[-1]}, " if lines else ""  # what does not parse says its line itself
        raise UserError(f"{path} cannot be imported ({line}{type(error).__name__}: {error}); mend it.") from error
    found = getattr(module, "METHODS", None) or [m for m in (getattr(module, "METHOD", None),) if m is not None]
    several = isinstance(found, list | tuple)
    require(several, f"{path}: METHODS must be a tuple of Method records; a single one is METHOD = Method(...).")
    require(bool(found), f"{path} holds no METHOD; end it with METHOD = Method(...).")
    add(found, str(path))
    _files.append(path)


def files() -> tuple[Path, ...]:
    """The files that were loaded, for the other processes of a run."""
    return tuple(_files)


def cards() -> dict[str, Card]:
    """The cards of all methods by name, the critics among them; the code of those in this package is not imported.

    Raises:
        UserError: an installed package's method cannot be imported or is none.
    """
    if not _entry_points_loaded:
        _entry_points_loaded.append(True)
        children.one_thread()
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
            where = f"the entry point {entry.name} of {entry.dist.name if entry.dist else 'a package'}"
            try:
                found = entry.load()
            except Exception as error:
                raise UserError(f"{where} cannot be imported ({type(error).__name__}: {error}); mend it.") from error
            add([found], where)
    return dict(_cards)


def card(name: str) -> Card:
    """The card of a method.

    Raises:
        UserError: there is none; the sentence lists the near ones.
    """
    known = cards()
    if name not in known:
        others = [each for each in known if each not in names()]  # the critics, which a dependency may name
        raise UserError(f"unknown method {name!r}: {near(name, [*names(), *others])}")
    return known[name]


def names() -> tuple[str, ...]:
    """Names of the methods that end in a policy, in the order of tables."""
    return tuple(name for name, each in cards().items() if each.has_policy)


def get(name: str) -> Method:
    """A method by its name; its code is imported.

    Raises:
        UserError: there is none; the sentence lists the near ones.
    """
    if not _is_method(card(name)):  # configs/iql.py holds a card, methods/iql.py its method
        module = importlib.import_module(card(name).config.__module__.replace(".configs.", ".methods."))
        for method in getattr(module, "METHODS", None) or (module.METHOD,):
            _cards[method.name] = method
    return _cards[name]  # type: ignore[return-value]


def every() -> dict[str, Method]:
    """All methods by name, the critics among them; their code is imported.

    Raises:
        UserError: as :func:`cards`.
    """
    return {name: get(name) for name in cards()}
