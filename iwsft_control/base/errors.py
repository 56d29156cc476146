"""What can go wrong, in one sentence: a user's mistake, or a run that failed by its own numbers."""

from __future__ import annotations

import difflib
import math
import numbers
import re
from typing import TypeGuard


class UserError(Exception):
    """A user's mistake; commands print its one sentence and exit with code 2."""


class RunError(UserError):
    """A run failed by its own numbers (it diverged, its policy acts outside its bounds): recorded, never scored."""


def require(condition: bool, sentence: str) -> None:
    """Raise a :class:`UserError` with ``sentence`` unless ``condition`` holds."""
    if not condition:
        raise UserError(sentence)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether something is a whole number, of Python or NumPy, and not a truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


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


def apart(one: object, other: object, shared: bool = False, path: str = "") -> str | None:
    """Where two values of JSON first differ: "policy.bc_steps (5 and 10)"; None where they do not.

    Args:
        shared: whether what one of two objects lacks is no difference.
        path: of the values, within those that are compared.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        names = [k for k in one if k in other] if shared else dict.fromkeys([*one, *other])
        each = (apart(one.get(k), other.get(k), shared, f"{path}.{k}" if path else k) for k in names)
        return next((found for found in each if found is not None), None)
    return None if one == other else f"{path} ({one!r:.40} and {other!r:.40})".lstrip()


def told_apart(one: object, other: object) -> str:
    """What a sentence that two objects differ ends in: ", first in policy.bc_steps (5 and 10)"; nothing of others."""
    found = apart(one, other) if isinstance(one, dict) and isinstance(other, dict) else None
    return f", first in {found}" if found else ""


IN_PYTHON = {  # options that are no argument of the same name
    "them with --ref-min-score and --ref-max-score": "reference_scores=(low, high)",
    "others with --ref-min-score and --ref-max-score": "other reference_scores=(low, high)",
    "--trust-environment": "trust_environment=True",
    "--flatten-observations": "flatten_observations=True",
    "--env": "task",
}


def in_python(sentence: str) -> str:
    """A sentence that names options of the command line, with the names that Python's functions have for them:
    ``--policy.fine-tune-steps`` is ``policy.fine_tune_steps``. Commands in quotation marks stay as they are."""

    def renamed(found: re.Match[str]) -> str:
        if found["command"]:
            return found[0]
        return IN_PYTHON.get(found[0], found[0].removeprefix("--").replace("-", "_"))

    special = "|".join(map(re.escape, IN_PYTHON))
    option = rf"(?<![\w/.-])(?:(?:{special})(?![\w-])|--[a-z][\w.-]*\w)"  # and not a part of a path
    return re.sub(rf"(?P<command>'(?:python|iwsft) [^']*')|{option}", renamed, sentence)
