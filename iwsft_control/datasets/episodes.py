"""Episodes as they are read, one by one, checked and laid end to end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from iwsft_control.base.errors import UserError, require
from iwsft_control.datasets.types import Episodes


def join(read: Iterable[Mapping[str, np.ndarray]], name: str) -> Episodes:
    """Episodes laid end to end.

    Args:
        read: observations, actions, rewards, terminations and truncations of every episode.
        name: of the data set, for the sentence.

    Raises:
        UserError: an episode is not whole; the sentence names it.
    """
    checked = [episode(each, f"{name}, episode {e}") for e, each in enumerate(read)]
    require(bool(checked), f"{name} holds no episodes; it is damaged or empty: fetch or collect it again.")
    for field in ("observations", "actions"):
        width = checked[0][field].shape[1]
        for e, each in enumerate(checked):
            require(
                each[field].shape[1] == width,
                f"{name}, episode {e}: its {field} have {each[field].shape[1]} dimensions, those before {width}; it is "
                "damaged: fetch or collect it again.",
            )
    joined = {field: np.concatenate([each[field] for each in checked]) for field in checked[0]}
    return Episodes(**joined, starts=np.cumsum([0, *(len(each["rewards"]) for each in checked)]))


def episode(read: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """One episode of T steps: T + 1 observations, T of all else, float32 and bool; columns (T, 1) are flattened.

    Raises:
        UserError: lengths disagree, something is no number, or the episode goes on after it has ended.
    """
    again = "fetch or collect the data set again."
    for field, array in read.items():
        require(array.dtype.kind in "biuf", f"{name}: its {field} are no numbers ({array.dtype}); {again}")
    columns = {field: flat(read[field]) for field in ("rewards", "terminations", "truncations")}
    for field, column in columns.items():
        require(column.ndim == 1, f"{name}: its {field} have the shape {column.shape}, not one for each step; {again}")
    for field in ("observations", "actions"):
        require(read[field].ndim == 2, f"{name}: its {field} are no vectors (shape {read[field].shape}); {again}")
    steps = len(columns["rewards"])
    require(steps > 0, f"{name} has no steps; {again}")
    lengths = {field: len(array) for field, array in (*read.items(), *columns.items())}
    for field, length in lengths.items():
        wanted = steps + (field == "observations")
        require(length == wanted, f"{name} has {steps} rewards and {length} {field}, which should be {wanted}; {again}")
    for field in ("terminations", "truncations"):
        flags = columns[field]
        require(bool(((flags == 0) | (flags == 1)).all()), f"{name}: its {field} are neither true nor false; {again}")
        early = np.flatnonzero(flags[:-1]).tolist()
        if early:
            raise UserError(f"{name} goes on after its {field[:-1]} at step {early[0]} of {steps}; {again}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        found = {
            "observations": read["observations"].astype(np.float32),
            "actions": read["actions"].astype(np.float32),
            "rewards": columns["rewards"].astype(np.float32),
            "terminations": columns["terminations"].astype(bool),
            "truncations": columns["truncations"].astype(bool),
        }
    for field in ("observations", "actions", "rewards"):
        finite = np.isfinite(found[field])
        if not finite.all():
            step = int(np.argwhere(~finite)[0, 0])
            raise UserError(f"{name}: {field} hold a NaN or infinity (step {step}); {again}")
    return found


def flat(column: np.ndarray) -> np.ndarray:
    """A column (T, 1) as (T,); anything else as it is."""
    return column[:, 0] if column.ndim == 2 and column.shape[1] == 1 else column
