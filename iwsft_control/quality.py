"""Quality: one score for every unit of data. A unit is a whole episode or a single transition.

Scorers are pure functions from a data set (and what was learned from it) to an array of scores, higher is better;
only the order matters to :mod:`iwsft_control.curation`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from iwsft_control.dataset import Dataset


def episode_returns(data: Dataset) -> np.ndarray:
    """R(tau) = sum_t r_t of every episode, (E,): the quality of the paper's released code (its section on control)."""
    return data.returns


def episode_values(data: Dataset, q: np.ndarray) -> np.ndarray:
    """(1/T) sum_t Q(s_t, a_t) of every episode, (E,), from the learned Q of every transition (N,)."""
    return np.add.reduceat(q.astype(np.float64), data.starts[:-1]) / data.lengths


def transition_advantages(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The learned advantage Q(s, a) - V(s) of every transition, (N,) (IQL's, Kostrikov et al. 2022)."""
    return q - v


Units = tuple[np.ndarray, np.ndarray]


def episode_units(data: Dataset) -> Units:
    """First row and length of every episode: ((E,), (E,))."""
    return data.starts[:-1], data.lengths


def transition_units(data: Dataset) -> Units:
    """First row and length (one) of every transition: ((N,), (N,))."""
    n = len(data.rewards)
    return np.arange(n), np.ones(n, np.int64)


def summary(scores: np.ndarray) -> dict[str, Any]:
    """Quantiles of scores for a result file's diagnostics."""
    return {f"p{q}": float(np.percentile(scores, q)) for q in (0, 5, 50, 70, 85, 90, 95, 98, 100)}
