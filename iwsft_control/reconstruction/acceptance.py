"""What a reconstruction is compared with, and what keeps it from being accepted."""

from __future__ import annotations

import numpy as np

from iwsft_control.datasets.facts import Fingerprint
from iwsft_control.datasets.types import Episodes
from iwsft_control.envs import tasks


def fingerprint(episodes: Episodes) -> Fingerprint:
    """The facts by which a reconstruction is held against D4RL's data."""
    returns = np.add.reduceat(episodes.rewards.astype(np.float64), episodes.starts[:-1])
    moments = (float(f(returns)) for f in (np.mean, np.std, np.min, np.max))
    return Fingerprint(len(episodes.rewards), len(returns), *moments)


def acceptance(found: Fingerprint, wanted: Fingerprint, environment: tasks.Environment) -> list[str]:
    """What keeps a medium-replay reconstruction from being accepted, as sentences; empty if nothing does."""

    def score(value: float) -> float:
        return tasks.normalise(value, environment.ref_min_score, environment.ref_max_score)

    faults = []
    if found.transitions != wanted.transitions:
        faults.append(f"it has {found.transitions} transitions, D4RL's has {wanted.transitions}")
    if abs(score(found.mean) / score(wanted.mean) - 1) > 0.15:
        faults.append(f"mean normalised return {score(found.mean):.1f} is not within 15% of {score(wanted.mean):.1f}")
    if not 0.80 <= found.max / wanted.max <= 1.15:
        faults.append(f"maximum {found.max:.0f} is not between 80% and 115% of {wanted.max:.0f}")
    return faults
