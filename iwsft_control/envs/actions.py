"""Action boxes: every policy acts in [-1, 1], data and environments in whatever box they declare."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from iwsft_control.base.errors import require


class ActionBox(NamedTuple):
    """Where an environment's actions lie, (A,) float64 each. Policies act in [-1, 1], whatever the box."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def unit(cls, dim: int) -> ActionBox:
        """[-1, 1] in every dimension."""
        return cls(-np.ones(dim), np.ones(dim))

    @property
    def is_unit(self) -> bool:
        return bool((self.low == -1).all() and (self.high == 1).all())

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        """Actions (..., A) of the box as float32 in [-1, 1]; as they are where the box is that."""
        if self.is_unit:
            return actions
        return ((actions - (self.high + self.low) / 2) / ((self.high - self.low) / 2)).astype(np.float32)

    def from_unit(self, actions: np.ndarray) -> np.ndarray:
        """Actions (..., A) in [-1, 1] as float64 of the box; as they are where the box is [-1, 1]."""
        if self.is_unit:
            return actions
        return np.clip((self.high + self.low) / 2 + (self.high - self.low) / 2 * actions, self.low, self.high)

    def text(self) -> str:
        """The box in words: [-2, 2], or every dimension's where they differ."""
        ends = sorted(set(zip(self.low.tolist(), self.high.tolist(), strict=True)))
        return " x ".join(f"[{low:g}, {high:g}]" for low, high in ends[:4]) + (" x ..." if len(ends) > 4 else "")


def action_box(low: np.ndarray, high: np.ndarray, name: str) -> ActionBox:
    """The box of a space's bounds.

    Raises:
        UserError: it is not bounded, so that nothing can be scaled by it, or it is empty.
    """
    box = ActionBox(np.asarray(low, np.float64), np.asarray(high, np.float64))
    require(
        bool(np.isfinite(box.low).all() and np.isfinite(box.high).all()),
        f"the actions of {name} are not bounded ({box.text()}), so they cannot be scaled to [-1, 1]; choose a data set "
        "whose action space is.",
    )
    require(
        bool((box.low < box.high).all()),
        f"the action space of {name} is empty ({box.text()}); correct it, or choose another data set.",
    )
    return box
