"""Bounds of hyper-parameters: they stand with the field (``Annotated[float, POSITIVE]``), :func:`check` reads them."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from iwsft_control.base.errors import require


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Where a number must lie; of a tuple, every element."""

    low: float
    high: float = math.inf
    includes_low: bool = True
    includes_high: bool = True
    sentence: str = ""
    """What is said of a value that lies elsewhere: "must be positive"."""

    def holds(self, value: float) -> bool:
        """Whether a number lies within the bounds; NaN does not."""
        above = value >= self.low if self.includes_low else value > self.low
        return above and (value <= self.high if self.includes_high else value < self.high)


POSITIVE = Bounds(0.0, includes_low=False, sentence="must be positive")
NOT_NEGATIVE = Bounds(0.0, sentence="must not be negative")
TWO_OR_MORE = Bounds(2.0, sentence="must be at least 2")
SHARE = Bounds(0.0, 1.0, sentence="must lie in [0, 1]")
SHARE_BELOW_ONE = Bounds(0.0, 1.0, includes_high=False, sentence="must lie in [0, 1)")
SHARE_ABOVE_ZERO = Bounds(0.0, 1.0, includes_low=False, sentence="must lie in (0, 1]")
PERCENTILE = Bounds(0.0, 100.0, includes_high=False, sentence="must lie in [0, 100)")


def check(config: Any, option: str) -> None:
    """Make sure that every field of a configuration lies in its bounds.

    Args:
        config: a dataclass; a field without bounds may hold anything, a number only what is finite. A method
            ``problem(option)`` of it may name what no single field tells.
        option: the configuration's name on the command line, for the sentence; "" for a command's own options.

    Raises:
        UserError: a value out of its bounds; the sentence names the option and says where it must lie.
    """
    prefix = f"--{option}." if option else "--"
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{prefix}{field.name}".replace("_", "-")
        numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, int | float)]
        for bounds in (b for b in getattr(hints[field.name], "__metadata__", ()) if isinstance(b, Bounds)):
            require(all(map(bounds.holds, numbers)), f"{name} {bounds.sentence}, not {value}.")
        require(all(map(math.isfinite, numbers)), f"{name} must be a finite number, not {value}.")
    problem = getattr(config, "problem", None)
    sentence = problem(option.replace("_", "-")) if problem else None
    require(sentence is None, str(sentence))
