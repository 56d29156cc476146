"""Portraits: what a reconstruction is compared with D4RL's data by, before any method is trained on it."""

from __future__ import annotations

import dataclasses

import numpy as np

from iwsft_control.datasets.facts import Fingerprint, StateMoments
from iwsft_control.datasets.types import Episodes

FULL_LENGTH = 1000
QUANTILES = (10, 25, 50, 75, 90, 98)  # of episode lengths, in percent


@dataclasses.dataclass(frozen=True)
class Portrait(Fingerprint):
    """A fingerprint, and what returns alone do not tell: how long the data stay up, and which states they visit."""

    last_tenth: float
    """Mean return of the last tenth of the episodes: the medium level, where collection stops."""
    full_length: int
    """Episodes of 1,000 steps."""
    best_length: float
    """Mean length of the best 2% of the episodes by return."""
    best_return: float
    """Mean return of these."""
    length_quantiles: tuple[float, ...]
    """Of episode lengths, at :data:`QUANTILES`."""
    state_shift: float | None
    """Root mean square over observation dimensions of (mean - D4RL's mean) / D4RL's standard deviation."""
    state_spread: float | None
    """Root mean square of log(standard deviation / D4RL's)."""


def fingerprint(episodes: Episodes) -> Fingerprint:
    """The facts by which a reconstruction is compared with D4RL's data."""
    returns = episodes.returns
    moments = (float(f(returns)) for f in (np.mean, np.std, np.min, np.max))
    return Fingerprint(len(episodes.rewards), len(returns), *moments)


def portrait(episodes: Episodes, d4rl: StateMoments | None) -> Portrait:
    """Everything that is compared with D4RL's data; without D4RL's moments no distance of states."""
    returns, lengths = episodes.returns, np.diff(episodes.starts)
    best = np.argsort(-returns, kind="stable")[: max(1, len(returns) // 50)]
    shift, spread = state_distance(episodes, d4rl) if d4rl is not None else (None, None)
    return Portrait(
        **dataclasses.asdict(fingerprint(episodes)),
        last_tenth=float(returns[-max(1, len(returns) // 10) :].mean()),
        full_length=int((lengths >= FULL_LENGTH).sum()),
        best_length=float(lengths[best].mean()),
        best_return=float(returns[best].mean()),
        length_quantiles=tuple(float(x) for x in np.percentile(lengths, QUANTILES)),
        state_shift=shift,
        state_spread=spread,
    )


def state_distance(episodes: Episodes, d4rl: StateMoments) -> tuple[float, float]:
    """How far the visited states lie from D4RL's: :attr:`Portrait.state_shift` and :attr:`Portrait.state_spread`."""
    last = episodes.starts[1:] + np.arange(len(episodes.starts) - 1)  # the final state of every episode
    states = np.delete(episodes.observations, last, axis=0).astype(np.float64)
    shift = (states.mean(axis=0) - d4rl.mean) / np.array(d4rl.std)
    spread = np.log(states.std(axis=0) / d4rl.std)
    return float(np.sqrt((shift**2).mean())), float(np.sqrt((spread**2).mean()))
