"""Curation: from the quality of units of data to the multiset that fine-tuning draws from.

In this order below: units (whole episodes, segments, single transitions) and their scores, higher is better; which are
taken, and how often (ranks decide, ties go to the earlier unit); the multiset on the device; and a draw from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.datasets.types import Dataset


def episode_returns(data: Dataset) -> np.ndarray:
    """R(tau) = sum_t r_t of every episode, (E,): the quality of the paper's released code (its section on control)."""
    return data.returns


Units = tuple[np.ndarray, np.ndarray]


def mean_values(values: np.ndarray, units: Units) -> np.ndarray:
    """Mean of a value per transition (N,) over each of the units that the data are cut into, (U,).

    Of Q(s, a) over whole episodes, or of the learned advantage Q(s, a) - V(s) (IQL's, Kostrikov et al. 2022) over parts
    of them, whose states differ in what can still be reached.
    """
    return np.add.reduceat(values.astype(np.float64), units[0]) / units[1]


def episode_units(data: Dataset) -> Units:
    """First row and length of every episode: ((E,), (E,))."""
    return data.starts[:-1], data.lengths


def segment_units(data: Dataset, steps: int) -> Units:
    """First row and length of every segment of at most ``steps`` transitions of one episode: ((U,), (U,)).

    Every episode is cut from its start; its last segment may be shorter. One step: every transition is a unit.
    """
    counts = -(-data.lengths // steps)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.repeat(data.starts[:-1], counts) + steps * within
    return first, np.minimum(first + steps, np.repeat(data.starts[1:], counts)) - first


def summary(scores: np.ndarray) -> dict[str, Any]:
    """Quantiles of scores for a result file's diagnostics."""
    return {f"p{q}": float(np.percentile(scores, q)) for q in (0, 5, 50, 70, 75, 85, 90, 95, 98, 100)}


def everything(n: int) -> np.ndarray:
    """All of n units once: behaviour cloning."""
    return np.arange(n)


def above(scores: np.ndarray, percentile: float, lengths: np.ndarray | None = None) -> np.ndarray:
    """Indices of the units above a percentile of the scores, at least one: binary R in {0, 1}, the set D+.

    Args:
        lengths: of the units (U,): the percentile is then one of their transitions, so that the best units which hold
            the rest of all transitions are taken (as %BC counts, Chen et al. 2021). By default one of the units.

    Raises:
        ValueError: the percentile is not in [0, 100).
    """
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile must lie in [0, 100), not {percentile}")
    order, share = np.argsort(-scores, kind="stable"), (100 - percentile) / 100
    if lengths is None:
        keep = round(len(scores) * share)
    else:  # the last one is taken if more than half of it lies in the share
        ends = np.cumsum(lengths[order])
        keep = int(np.searchsorted(ends - lengths[order] / 2, share * ends[-1]))
    return np.sort(order[: max(1, keep)])


def nested_strata(scores: np.ndarray, percentiles: Sequence[float], lengths: np.ndarray | None = None) -> np.ndarray:
    """The concatenation of the sets :func:`above` each percentile, so the best units stand in it once per stratum.

    SFT(Q)'s quality-proportional sampling as in the paper's released code (percentiles 90, 95, 98 of the episodes).
    """
    return np.concatenate([above(scores, p, lengths) for p in percentiles])


class Curated(NamedTuple):
    """A curated multiset of units on the device: M entries over U distinct units with R rows in all."""

    size: Any  # (), M without padding
    entries: Any  # (M,) index of a distinct unit; a unit is drawn in proportion to how often it stands here
    starts: Any  # (U,) first row of the unit in the data set
    lengths: Any  # (U,) its rows
    rows: Any  # (R,) all rows of all units, end to end
    unit_of_row: Any  # (R,)


def curate(entries: np.ndarray, units: Units) -> Curated:
    """Entries (indices into ``units``, as :func:`above` and :func:`nested_strata` give them) as a :class:`Curated`."""
    distinct, entries = np.unique(entries, return_inverse=True)
    starts, lengths = units[0][distinct], units[1][distinct]
    unit_of_row = np.repeat(np.arange(len(distinct)), lengths)
    offsets = np.cumsum(lengths) - lengths
    rows = np.arange(len(unit_of_row)) - offsets[unit_of_row] + starts[unit_of_row]
    size = np.array(len(entries))
    return Curated(*(x.astype(np.int32) for x in (size, entries, starts, lengths, rows, unit_of_row)))


HELD_OUT_ROWS = 4096


def next_best(scores: np.ndarray, units: Units, curated: Curated) -> np.ndarray:
    """Rows (4,096,), evenly spread, of the best units that are not in a curated set, as many units as it has.

    They are as alike to the set as any that fine-tuning never draws, so their likelihood tells what it learns by heart.
    Where every unit is in the set, rows of the set itself.
    """
    rest = np.flatnonzero(~np.isin(units[0], curated.starts))
    best = rest[np.argsort(-scores[rest], kind="stable")[: len(curated.starts)]]
    rows = curate(np.sort(best), units).rows if len(best) else np.asarray(curated.rows)
    return rows[np.linspace(0, len(rows) - 1, HELD_OUT_ROWS).astype(np.int64)]


def by_transition(curated: Curated) -> Curated:
    """The same multiset of rows with every row a unit of its own: a uniform draw weighs units by their length."""
    lengths = np.asarray(curated.lengths)
    first = (np.cumsum(lengths) - lengths)[curated.entries]
    repeats = lengths[curated.entries]
    within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    rows = np.asarray(curated.rows)
    one = np.ones(len(rows), np.int32)
    entries = (np.repeat(first, repeats) + within).astype(np.int32)
    return Curated(np.int32(len(entries)), entries, rows, one, rows, np.arange(len(rows), dtype=np.int32))


def rounded_up(n: int) -> int:
    """The next of a few sizes, four from each power of two to the next: at most a quarter more."""
    step = 1 << max(0, (n - 1).bit_length() - 3)
    return -(-n // step) * step


def stack(curated: Sequence[Curated]) -> Curated:
    """Several sets as one with a leading seed axis, padded with what no draw and no sum touches.

    To one of a few sizes: every seed has its own critic, hence its own set, and sets of nearly one size shall be one
    compiled program.
    """

    def pad(field: str, fill: int) -> np.ndarray:
        arrays = [np.asarray(getattr(c, field)) for c in curated]
        size = rounded_up(max(len(a) for a in arrays))
        return np.stack([np.pad(a, (0, size - len(a)), constant_values=fill) for a in arrays])

    outside = rounded_up(max(len(c.starts) for c in curated))  # no unit: segment sums drop it
    sizes = np.stack([c.size for c in curated])
    return Curated(
        sizes, pad("entries", 0), pad("starts", 0), pad("lengths", 1), pad("rows", 0), pad("unit_of_row", outside)
    )


def draw(batch_size: int, curated: Curated, cumulative: jax.Array | None, key: jax.Array) -> jax.Array:
    """Rows of a batch (batch_size,): an entry, in proportion to its weight, then one of its unit's rows uniformly.

    ``cumulative`` (M,) holds the running sum of the entries' weights; without it all entries weigh the same.
    """
    entry_key, row_key = jax.random.split(key)
    if cumulative is None:
        entry = jax.random.randint(entry_key, (batch_size,), 0, curated.size)
    else:
        u = jax.random.uniform(entry_key, (batch_size,)) * cumulative[-1]
        entry = jnp.minimum(jnp.searchsorted(cumulative, u, side="right"), curated.size - 1)
    unit = jnp.asarray(curated.entries)[entry]
    starts, lengths = jnp.asarray(curated.starts)[unit], jnp.asarray(curated.lengths)[unit]
    return starts + jax.random.randint(row_key, unit.shape, 0, lengths)


Values = tuple[np.ndarray, np.ndarray]  # the learned Q and V of every transition
