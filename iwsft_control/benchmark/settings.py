"""Settings of a run: the configurations of all methods by their groups of options, and what they must be."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from iwsft_control.base import bounds
from iwsft_control.base.errors import require
from iwsft_control.learning.method import Method
from iwsft_control.methods import registry, supervised


def defaults() -> dict[str, Any]:
    """The default of every group of options, in the order of the registry.

    Raises:
        UserError: two methods have different options of one name.
    """
    found: dict[str, Any] = {}
    for method in registry.every().values():
        config = method.config()
        if method.group is not None:
            known = found.setdefault(method.group, config)
            same = f"{method.name} has the options --{method.group}, which another method has with other fields"
            require(type(known) is type(config), f"{same}; give it an option of its own.")
        else:
            for field in dataclasses.fields(config):
                found.setdefault(field.name, getattr(config, field.name))
    return found


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything but data, method and seed that decides a run's numbers."""

    quick: bool
    """A trial of a few steps and 5 episodes, marked as such in its result."""
    groups: tuple[tuple[str, Any], ...]
    """Name and configuration of every group of options."""

    def __getitem__(self, group: str) -> Any:
        return dict(self.groups)[group]

    def of(self, method: Method) -> Any:
        """The configuration of a method."""
        if method.group is not None:
            return self[method.group]
        return method.config(**{field.name: self[field.name] for field in dataclasses.fields(method.config)})

    def replace(self, **groups: Any) -> Settings:
        """The same settings with other configurations in some groups."""
        known = dict(self.groups)
        assert set(groups) <= set(known), f"no such group of options: {sorted(set(groups) - set(known))}"
        return dataclasses.replace(self, groups=tuple((known | groups).items()))

    def with_config(self, method: Method, config: Any) -> Settings:
        """The same settings with another configuration of a method."""
        if method.group is not None:
            return self.replace(**{method.group: config})
        return self.replace(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})


def make(quick: bool = False, **groups: Any) -> Settings:
    """Settings with the defaults but for the ``groups`` that are given: ``make(iql=IQLConfig(beta=1))``."""
    return Settings(quick, tuple(defaults().items())).replace(**groups)


def with_options(base: type) -> type:
    """A command's dataclass of options with a field for every group that it does not have itself."""
    own = {field.name for field in dataclasses.fields(base)}
    taken = sorted(name for name, value in defaults().items() if name in own and dataclasses.is_dataclass(value))
    require(not taken, f"a method's options are named like the command's own: {', '.join(taken)}; rename its option.")
    fields = [
        (name, type(value), dataclasses.field(default=value)) for name, value in defaults().items() if name not in own
    ]
    made = dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True)
    made.__doc__, made.__module__ = base.__doc__, base.__module__
    return made


def command_line(base: type) -> type:
    """:func:`with_options` after the files of ``--method-file`` were loaded, whose methods have options too.

    Raises:
        UserError: such a file cannot be read or holds no method.
    """
    taking = False
    for argument in sys.argv[1:]:
        name, equals, value = argument.partition("=")
        if argument.startswith("--"):
            taking = name.replace("_", "-") == "--method-file"
            argument = value if equals else ""
        if taking and argument:
            registry.load_file(Path(argument))
    return with_options(base)


def of_options(options: Any) -> Settings:
    """The settings in a command's options, checked, and shortened where it is a trial.

    Raises:
        UserError: a value out of its bounds; the sentence names it and says where it must lie.
    """
    given = {name: getattr(options, name) for name in defaults() if hasattr(options, name)}
    return validate(make(options.quick, **given))


def validate(settings: Settings) -> Settings:
    """The settings, shortened where it is a trial.

    Raises:
        UserError: a value out of its bounds; the sentence names it and says where it must lie.
    """
    for group, config in settings.groups:
        if dataclasses.is_dataclass(config):
            bounds.check(config, group)
    settings = with_preset(settings)
    if settings.quick:
        for method in registry.every().values():
            settings = settings.with_config(method, method.quick(settings.of(method)))
    return settings


def with_preset(settings: Settings) -> Settings:
    """The settings, those of a named recipe in the place of the defaults.

    Raises:
        UserError: an option was given that the recipe sets.
    """
    if settings["preset"] != "released":
        return settings
    known, policy = defaults(), settings["policy"]
    width = dataclasses.replace(known["policy"], hidden=policy.hidden)
    for name in ("policy", "importance", "curation"):
        own = width if name == "policy" else known[name]
        require(settings[name] == own, f"--preset released sets the options --{name} itself; leave them out.")
    return settings.replace(**supervised.as_released(policy))
