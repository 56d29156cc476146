"""What can go wrong, in one sentence: a user's mistake, or a run that failed by its own numbers."""

from __future__ import annotations

import difflib
import math


class UserError(Exception):
    """A user's mistake; commands print its one sentence and exit with code 2."""


class RunError(UserError):
    """A run failed by its own numbers (it diverged, its policy acts outside its bounds): recorded, never scored."""


def require(condition: bool, sentence: str) -> None:
    """Raise a :class:`UserError` with ``sentence`` unless ``condition`` holds."""
    if not condition:
        raise UserError(sentence)


def is_finite(value: object) -> bool:
    """Whether something is a number (not a truth value) that a float can hold, neither NaN nor infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def near(name: str, known: list[str]) -> str:
    """The end of an error sentence: the known names most like ``name``, or all of them."""
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(matches)}?" if matches else f"choose one of {', '.join(known)}."
