"""Curation: scores of units to the multiset of units that fine-tuning samples from uniformly.

A unit that stands in it k times is drawn k times as often. Ranks decide, ties go to the earlier unit, so the size of
the result depends on the number of scores alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def everything(n: int) -> np.ndarray:
    """All of n units once: behaviour cloning."""
    return np.arange(n)


def above(scores: np.ndarray, percentile: float) -> np.ndarray:
    """Indices of the units above a percentile of the scores, at least one: binary R in {0, 1}, the set D+.

    Raises:
        ValueError: the percentile is not in [0, 100).
    """
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile must lie in [0, 100), not {percentile}")
    keep = max(1, round(len(scores) * (100 - percentile) / 100))
    return np.sort(np.argsort(-scores, kind="stable")[:keep])


def nested_strata(scores: np.ndarray, percentiles: Sequence[float]) -> np.ndarray:
    """The concatenation of the sets above each percentile, so the best units stand in it once per stratum.

    SFT(Q)'s quality-proportional sampling as in the paper's released code (percentiles 90, 95, 98 of return).
    """
    return np.concatenate([above(scores, p) for p in percentiles])
