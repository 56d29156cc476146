"""Bounds of hyper-parameters: they stand with the field (``Annotated[float, POSITIVE]``), :func:`check` reads them."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Annotated, Any, Literal, Union

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
    """Make sure that every field of a configuration is of its type and lies in its bounds.

    Args:
        config: a dataclass; a field without bounds may hold anything, a number only what is finite. A method
            ``problem(option)`` of it may name what no single field tells.
        option: the configuration's name on the command line, for the sentence; "" for a command's own options.

    Raises:
        UserError: a value of another type or out of its bounds; the sentence names the option and says what it must be.
    """
    prefix = f"--{option}." if option else "--"
    try:
        hints = typing.get_type_hints(type(config), include_extras=True)
    except NameError:  # names that only a type checker imports
        hints = {field.name: Any for field in dataclasses.fields(config)}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{prefix}{field.name}".replace("_", "-")
        require(is_of(value, hints[field.name]), f"{name} must be {in_words(hints[field.name])}, not {value!r:.80}.")
        numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, int | float)]
        for bounds in (b for b in getattr(hints[field.name], "__metadata__", ()) if isinstance(b, Bounds)):
            require(all(map(bounds.holds, numbers)), f"{name} {bounds.sentence}, not {value}.")
        finite = all(math.isfinite(x) for x in numbers if isinstance(x, float))
        require(finite, f"{name} must be a finite number, not {value}.")
    problem = getattr(config, "problem", None)
    sentence = problem(option.replace("_", "-")) if problem else None
    require(sentence is None, str(sentence))


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. A whole number is a float too; a truth value is no number."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return is_of(value, inner[0])
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if origin in (Union, types.UnionType):
        return any(is_of(value, each) for each in inner)
    if hint is Any or hint is object:
        return True
    if origin is tuple and inner:
        of = inner[:1] * len(value) if isinstance(value, tuple) and inner[-1:] == (...,) else inner
        return isinstance(value, tuple) and len(value) == len(of) and all(map(is_of, value, of))
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    try:
        return isinstance(value, origin or hint)
    except TypeError:  # what is no class, or one that cannot be asked
        return True


def in_words(hint: Any) -> str:
    """An annotated type as a sentence names it: "a tuple of whole numbers"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return in_words(inner[0])
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(map(in_words, inner))
    if origin is tuple and inner:
        every = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts"}
        words = [in_words(each) for each in inner if each is not ...]
        return f"a tuple of {every.get(words[0], words[0])}" if ... in inner else f"a tuple ({', '.join(words)})"
    if hint is Any or hint is object:
        return "anything"
    plain = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    return plain.get(hint) or f"of class {getattr(origin or hint, '__name__', hint)}"
