"""A method's card: what the command line, tables and sweeps know of it before its code is imported."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Published(NamedTuple):
    """A column of published scores, on D4RL's own medium-replay data."""

    label: str
    scores: tuple[float, float, float]
    """Hopper, HalfCheetah, Walker2d."""
    quality: str | None = None
    """The quality that the publication means, for a method that has several."""


@dataclasses.dataclass(frozen=True, eq=False)
class Card:
    """The facts of a method. Its code is in the file of the same name in ``methods/``, which ends with its record."""

    name: str
    """As on the command line."""
    config: type
    """Frozen dataclass of hyper-parameters with ``steps``, ``batch_size``, and ``average_decay`` where it has a policy:
    the exponential average of the policy's parameters is evaluated (0: the last ones)."""
    option: str | None = ""
    """Its group of options on the command line, by default its name. None: the fields of ``config`` are groups."""
    by_quality: bool = False
    """Whether it curates by quality, be that a learned Q-function or the return."""
    dependencies: Callable[[str | None], tuple[str, ...]] = lambda quality: ()
    """(quality) -> names of the methods that are trained first, whose artefacts it prepares from."""
    record: Callable[[Any], dict[str, Any]] = dataclasses.asdict
    """(config) -> the settings that its own work depends on."""
    stream: int | None = None
    """Which stream of a seed's random numbers is its own; by default one named after it."""
    has_policy: bool = True
    """Whether it ends in a policy; a critic does not."""
    seconds: float | Callable[[Any], float] = 3.0
    """Rough seconds of 1,000 steps on one core, for estimates before anything was timed; or (config) -> these."""
    published: Published | None = None
    """Its published scores."""

    @property
    def group(self) -> str | None:
        """Its group of options: "td3_bc"."""
        return (self.option or self.name.replace("-", "_")) if self.option is not None else None

    @property
    def groups(self) -> tuple[str, ...]:
        """Every group of options that its configuration is made of."""
        group = self.group
        return (group,) if group is not None else tuple(f.name for f in dataclasses.fields(self.config))

    def seconds_of(self, config: Any) -> float:
        """Rough seconds of a whole training on one core."""
        of_1000 = self.seconds(config) if callable(self.seconds) else self.seconds
        return float(of_1000 * config.steps / 1000)

    @property
    def random_stream(self) -> int:
        """The integer that is folded into a seed's key."""
        return zlib.crc32(self.name.encode()) if self.stream is None else self.stream
