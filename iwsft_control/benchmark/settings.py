"""Settings of a run: the configurations of all methods by their groups of options, and what they must be."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from iwsft_control.base import bounds, console
from iwsft_control.base.errors import UserError, require
from iwsft_control.configs import supervised
from iwsft_control.configs.card import Card
from iwsft_control.methods import registry


def defaults() -> dict[str, Any]:
    """The default of every group of options, in the order of the registry.

    Raises:
        UserError: two methods have different options of one name.
    """
    found: dict[str, Any] = {}
    for method in registry.cards().values():
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

    def of(self, method: Card) -> Any:
        """The configuration of a method."""
        if method.group is not None:
            return self[method.group]
        return method.config(**{field.name: self[field.name] for field in dataclasses.fields(method.config)})

    def replace(self, **groups: Any) -> Settings:
        """The same settings with other configurations in some groups."""
        known = dict(self.groups)
        assert set(groups) <= set(known), f"no such group of options: {sorted(set(groups) - set(known))}"
        return dataclasses.replace(self, groups=tuple((known | groups).items()))

    def with_config(self, method: Card, config: Any) -> Settings:
        """The same settings with another configuration of a method."""
        if method.group is not None:
            return self.replace(**{method.group: config})
        return self.replace(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})


def make(quick: bool = False, **groups: Any) -> Settings:
    """Settings with the defaults but for the ``groups`` that are given: ``make(iql=IQLConfig(beta=1))``."""
    return Settings(quick, tuple(defaults().items())).replace(**groups)


def with_options(base: type, groups: Collection[str] | None = None) -> type:
    """A command's dataclass of options with a field for every group that it does not have itself.

    Args:
        groups: those that it gets; by default all.
    """
    own, every = {field.name for field in dataclasses.fields(base)}, defaults()
    taken = sorted(name for name, value in every.items() if name in own and dataclasses.is_dataclass(value))
    require(not taken, f"a method's options are named like the command's own: {', '.join(taken)}; rename its option.")
    fields = [
        (name, type(value), dataclasses.field(default=value))
        for name, value in every.items()
        if name not in own and (groups is None or name in groups)
    ]
    made = dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True)
    made.__doc__, made.__module__ = base.__doc__, base.__module__
    return made


def command_line(base: type, methods: str, qualities: str) -> type:
    """A command's options: its own, and those that have an effect on the methods that its arguments choose.

    Files of ``--method-file`` are loaded first, since their methods have options too.

    Args:
        methods: the option that chooses methods; qualities: the one that chooses what scores the data.

    Raises:
        UserError: an unknown method, a file that holds none, or an option without an effect.
    """
    given = console.given(sys.argv[1:])
    for path in given.get("method_file", ()):
        registry.load_file(Path(path))
    if console.HELP_ALL in sys.argv:
        return with_options(base)
    standard = {field.name: field.default for field in dataclasses.fields(base)}
    chosen, scored = (given.get(name) or _listed(standard[name]) for name in (methods, qualities))
    used = effective(chosen, scored)
    for option in given:
        group, _, field = option.partition(".")
        if group not in defaults():
            continue
        if not {field, field.removeprefix("no_")} & used.get(group, set()):
            _no_effect(option, _owners(group, field))
    if qualities in given and not any(registry.card(name).by_quality for name in chosen):
        _no_effect(qualities, [name for name in registry.names() if registry.card(name).by_quality])
    return with_options(base, used)


def check_groups(configs: Mapping[str, Any], method: str, quality: str) -> None:
    """Refuse configurations by group that a method does not use, or that are not a group's.

    Raises:
        UserError: in these cases, and for a quality of what is not scored.
    """
    known, used = defaults(), effective([method], [quality])
    for group, config in configs.items():
        require(group in known, f"no such group of options: {group}.")
        default = known[group]
        kind = type(default).__name__
        require(isinstance(config, type(default)), f"{group} must be of class {kind}: {group}={kind}(...).")
        changed = {""} if config != default else set()
        if dataclasses.is_dataclass(default):
            names = (field.name for field in dataclasses.fields(default))
            changed = {name for name in names if getattr(config, name) != getattr(default, name)}
        for field in sorted(changed - used.get(group, set())):
            _no_effect(f"{group}.{field}".rstrip("."), _owners(group, field))
    if quality != "q" and not registry.card(method).by_quality:
        _no_effect("quality", [name for name in registry.names() if registry.card(name).by_quality])


def _owners(group: str, field: str) -> list[str]:
    """The methods that a setting has an effect on, with the quality where that decides: "sft-q (by q)"."""
    found = []
    for name in registry.names():
        qualities = [q for q in ("q", "return") if field in effective([name], [q]).get(group, ())]
        found += [name] if len(qualities) == 2 else [f"{name} (by {q})" for q in qualities]
    return found


def _listed(value: Any) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (value,)


def _no_effect(option: str, owners: Sequence[str]) -> None:
    name = f"--{option}".replace("_", "-")
    if not owners:  # a misspelt field
        return
    others = f"{owners[0]} is not" if len(owners) == 1 else f"none of {', '.join(owners)} is"
    raise UserError(f"{name} has no effect: {others} among the methods.")


def effective(methods: Sequence[str], qualities: Sequence[str]) -> dict[str, set[str]]:
    """The settings that methods, and what they are trained from, depend on: by group the names of its fields.

    A group that is a single value has the field "".

    Raises:
        UserError: an unknown method.
    """
    found: dict[str, set[str]] = {}
    for card in map(registry.card, methods):
        record = card.record(card.config())
        groups = {card.group: record} if card.group is not None else record
        for group, values in groups.items():
            idle = set() if "q" in qualities or not card.by_quality else supervised.BY_Q.get(group, set())
            found.setdefault(group, set()).update((set(values) if isinstance(values, dict) else {""}) - idle)
        for quality in qualities if card.by_quality else ("q",):
            for group, fields in effective(card.dependencies(quality if card.by_quality else None), [quality]).items():
                found.setdefault(group, set()).update(fields)
    return found


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
    known = bounds.is_of(settings["preset"], supervised.Preset)
    require(known, f"--preset must be 'released' or '', not {settings['preset']!r:.40}.")
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
