"""How long the prefix of an episode is: the sources' schedules, in the share of training that is over.

UFT (arXiv 2505.16984, section 3) hints l of L pieces of a solution, l ~ Binomial(L, p(t)). Prefix-RFT (arXiv
2507.01679) gives a share u ~ U(low_t, high) of its length. Both papers count updates. Here an update takes as many
simulator steps as its episodes last, so that time is the share of the budget of steps that is spent.
"""

from __future__ import annotations

import math

import numpy as np


def cosine(fraction: float, high: float, low: float) -> float:
    """From ``high`` (at 0) to ``low`` (at 1) along half a cosine; ``low`` from there on."""
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(fraction, 1.0)))


def hint_probability(progress: float, hinted_share: float = 0.6, high: float = 0.95, low: float = 0.05) -> float:
    """p(t) of UFT: a cosine from ``high`` to ``low`` over the first ``hinted_share`` of training, then 0.

    The paper's (t + 1)/T_hint is ``progress / hinted_share`` at the end of update t.
    """
    return cosine(progress / hinted_share, high, low) if progress < hinted_share else 0.0


def hint_pieces(rng: np.random.Generator, pieces: int, probability: float) -> int:
    """l ~ Binomial(L, p): pieces of the demonstration that are given; L p on average."""
    return int(rng.binomial(pieces, probability))


def uniform_pieces(rng: np.random.Generator, pieces: int) -> int:
    """l uniform on 0, 1, ..., L during the whole training: R3 of UFT's code."""
    return int(rng.integers(pieces + 1))


def piece_steps(hinted: int, pieces: int, length: int) -> int:
    """Steps of the first ``hinted`` of ``pieces`` pieces of an episode of ``length`` steps."""
    return round(hinted * length / pieces)


def prefix_steps(rng: np.random.Generator, length: int, progress: float, high: float = 0.95, low: float = 0.05) -> int:
    """k = floor(u T) of Prefix-RFT, u ~ U(low_t, high), low_t a cosine from ``high`` to ``low`` over training."""
    return math.floor(rng.uniform(cosine(progress, high, low), high) * length)
