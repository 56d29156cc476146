"""What a method is to the rest of the suite: one record of its functions and facts, at the end of its own file.

A method's file reads from top to bottom: its paper and equations, its configuration (bounds beside each field), its
losses as pure functions, its update, and last this record. The registry lists the records; the command line, its help
and checks, the store, sweeps, tables and benches all come from them.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

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
    """What a method samples from, on the device."""

    shared: Any
    """The same for every seed: a NamedTuple of float32 arrays (N, ...) with ``observations`` and ``actions``, which the
    loop packs: all functions but ``prepare`` find a :class:`~iwsft_control.datasets.transitions.Table`."""
    own: Any = ()
    """A pytree with a leading seed axis S; inside the loop that of one seed."""
    diagnostics: Sequence[Mapping[str, Any]] = ()
    """For every seed what a result file says of its data; empty for nothing."""


class Published(NamedTuple):
    """A column of published scores, on D4RL's own medium-replay data."""

    label: str
    scores: tuple[float, float, float]
    """Hopper, HalfCheetah, Walker2d."""
    quality: str | None = None
    """The quality that the publication means, for a method that has several."""


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """A method. Functions get the method's configuration first; S is the number of seeds.

    The first five fields are all that a new method needs.
    """

    name: str
    """As on the command line."""
    config: type
    """Frozen dataclass of hyper-parameters with ``steps``, ``batch_size``, and ``average_decay`` where it has a policy:
    the exponential average of the policy's parameters is evaluated (0: the last ones)."""
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
    stream: int | None = None
    """Which stream of a seed's random numbers is its own; by default one named after it."""
    option: str | None = ""
    """Its group of options on the command line, by default its name. None: the fields of ``config`` are groups."""
    by_quality: bool = False
    """Whether it curates by quality, be that a learned Q-function or the return."""
    dependencies: Callable[[str | None], tuple[str, ...]] = lambda quality: ()
    """(quality) -> names of the methods that are trained first, whose artefacts it prepares from."""
    variant: Callable[[Any], Method | None] = lambda config: None
    """(config) -> the method that does the work instead, if a setting asks for another one."""
    for_task: Callable[[Any, str], Any] = lambda config, task: config
    """(config, task) -> configuration, for settings that depend on the task."""
    quick: Callable[[Any], Any] = defaults.shorten
    """(config) -> configuration of a trial."""
    record: Callable[[Any], dict[str, Any]] = dataclasses.asdict
    """(config) -> the settings that its own work depends on."""
    sparse_logs: tuple[str, ...] = ()
    """Scalars that ``update`` gives as NaN in steps that do not compute them."""
    seconds: float = 3.0
    """Rough seconds of 1,000 steps on one core, for estimates before anything was timed."""
    published: Published | None = None
    """Its published scores."""

    @property
    def group(self) -> str | None:
        """Its group of options: "td3_bc"."""
        return (self.option or self.name.replace("-", "_")) if self.option is not None else None

    @property
    def random_stream(self) -> int:
        """The integer that is folded into a seed's key."""
        return zlib.crc32(self.name.encode()) if self.stream is None else self.stream
