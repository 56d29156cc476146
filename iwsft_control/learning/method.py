"""What a method is to the rest of the suite: one record of its functions and facts, at the end of its own file.

A method's file reads from top to bottom: its paper and equations, its configuration (bounds beside each field), its
losses as pure functions, its update, and last this record. The registry lists the records; the command line, its help
and checks, the store, sweeps, tables and benches all come from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from iwsft_control.configs.card import Card
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning import defaults
from iwsft_control.networks.policies import Exported


class Artefact(NamedTuple):
    """What a stage made."""

    arrays: dict[str, Any]
    """Nested arrays with a leading seed axis S: a policy's "params"; of the critic "q" and "v" (S, N) and "params"."""
    record: dict[str, Any]
    """What JSON can hold: logs, evaluation returns, diagnostics, seconds, device, versions, commit."""


class Inputs(NamedTuple):
    """What a method may learn from."""

    data: Dataset
    artefacts: Mapping[str, Artefact]
    """By name, what the stages made that it depends on."""
    quality: str | None
    """What scores the data, "q" or "return", for a method that curates by quality; else None."""
    seeds: tuple[int, ...]


class Prepared(NamedTuple):
    """What a method samples from."""

    shared: Any
    """The same for every seed: a NamedTuple of float32 arrays (N, ...), of NumPy if they can, with ``observations`` and
    ``actions``. The loop packs them on the device: all functions but ``prepare`` find a
    :class:`~iwsft_control.datasets.transitions.Table`."""
    own: Any = ()
    """A pytree with a leading seed axis S; inside the loop that of one seed."""
    diagnostics: Sequence[Mapping[str, Any]] = ()
    """For every seed what a result file says of its data; empty for nothing."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Method(Card):
    """A method: its card and its functions. These get the method's configuration first; S is the number of seeds.

    ``name``, ``config``, ``create``, ``update`` and ``prepare`` are all that a new method needs.
    """

    create: Callable[..., Any]
    """(config, observation_dim, action_dim, key) -> state of one seed; a NamedTuple with a field ``policy``, the
    parameters that act (but for the critic, which has none)."""
    update: Callable[..., tuple[Any, dict[str, jax.Array]]]
    """(config, state, batch, key) -> (state, scalars for the log): one gradient step."""
    prepare: Callable[[Any, Inputs], Prepared]
    """(config, inputs) -> what it samples from."""
    sample: Callable[[Any, Prepared, jax.Array], Any] = defaults.uniform
    """(config, prepared data of one seed, key) -> batch."""
    random_update: bool = True
    """Whether ``update`` draws random numbers; if not, ``sample`` gets the step's whole key."""
    warm_start: Callable[[Any, Any, Prepared], Any] = defaults.fresh
    """(config, state, prepared data of one seed) -> state: where training begins."""
    refresh: Callable[[Any, Any, Prepared], tuple[Prepared, dict[str, jax.Array]]] = defaults.as_it_is
    """(config, state, prepared data of one seed) -> (prepared data, values for the log), before every compiled call."""
    call_steps: Callable[[Any], int] = defaults.call_steps
    """Steps of a compiled call."""
    export: Callable[[Any, Dataset, Any], Exported] | None = defaults.tanh_mlp
    """(config, data, parameters of one seed) -> the policy that is kept and evaluated; None for what has no policy."""
    values: Callable[[Any, Dataset, Any], dict[str, Any]] | None = None
    """(config, data, states (S, ...)) -> arrays to keep, for what has no policy."""
    variant: Callable[[Any], Method | None] = lambda config: None
    """(config) -> the method that does the work instead, if a setting asks for another one."""
    for_task: Callable[[Any, str], Any] = lambda config, task: config
    """(config, task) -> configuration, for settings that depend on the task."""
    quick: Callable[[Any], Any] = defaults.shorten
    """(config) -> configuration of a trial."""
    sparse_logs: tuple[str, ...] = ()
    """Scalars that ``update`` gives as NaN in steps that do not compute them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "has_policy", self.export is not None)
