"""What is published of D4RL's own data sets."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Facts of a data set: transitions, episodes, and mean, standard deviation, minimum, maximum of episode returns."""

    transitions: int
    episodes: int
    mean: float
    std: float
    min: float
    max: float


# Of D4RL's own medium-replay-v2 files.
D4RL_MEDIUM_REPLAY = {
    "hopper": Fingerprint(402_000, 2041, 467.3, 511.0, -1.4, 3192.9),
    "halfcheetah": Fingerprint(202_000, 202, 3093.3, 1680.7, -638.5, 4985.1),
    "walker2d": Fingerprint(302_000, 1093, 682.7, 896.0, -50.2, 4132.0),
}


class StateMoments(NamedTuple):
    """Mean and standard deviation of every observation dimension."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# Of the same files, to four digits, as the model cards of edbeeching/decision-transformer-gym-<env>-medium-replay
# publish them (the constants by which that model normalises observations).
D4RL_MEDIUM_REPLAY_STATES = {
    "hopper": StateMoments(
        (1.231, -0.04371, -0.4454, -0.0937, 0.09094, 1.369, -0.1999, -0.02286, -0.5287, -0.1447, -0.1965),
        (0.1757, 0.06369, 0.3438, 0.1957, 0.5548, 1.051, 1.158, 0.7963, 1.48, 1.654, 5.109),
    ),
    "halfcheetah": StateMoments(
        (-0.1288, 0.3738, -0.15, -0.2348, -0.2841, -0.131, -0.2016, -0.06518, 3.477, -0.02785, -0.01504, 0.07697)
        + (0.01267, 0.02733, 0.02316, 0.01044, -0.01584),
        (0.1702, 1.284, 0.3344, 0.3673, 0.2609, 0.4784, 0.3181, 0.3355, 2.093, 0.8037, 1.904, 6.573, 7.573, 5.07)
        + (9.106, 6.086, 7.253),
    ),
    "walker2d": StateMoments(
        (1.209, 0.1326, -0.1437, -0.2047, 0.5578, -0.03232, -0.2785, 0.1913, 1.47, -0.125, 0.0565, -0.09991, -0.3403)
        + (0.03546, -0.08934, -0.2992, -0.5984),
        (0.1193, 0.3563, 0.2585, 0.4208, 0.5202, 0.1569, 0.3677, 0.7161, 1.376, 0.8632, 2.636, 3.013, 3.721, 4.867)
        + (2.668, 3.845, 5.477),
    ),
}


# What known methods score on D4RL's own v2 data (normalised): the IQL paper's table (Kostrikov et al. 2022, table 1),
# and CORL's last checkpoints (README of corl-team/CORL, commit eeeeef2; ReBRAC with its settings for each task).
REFERENCE_METHODS = ("bc", "filtered-bc", "iql", "td3-bc")
PAPER = {
    "hopper-medium-replay": (18.1, 75.9, 94.7, 60.9),
    "halfcheetah-medium-replay": (36.6, 40.6, 44.2, 44.6),
    "walker2d-medium-replay": (26.0, 62.5, 73.9, 81.8),
    "hopper-medium": (52.9, 56.9, 66.3, 59.3),
    "halfcheetah-medium": (42.6, 42.5, 47.4, 48.3),
    "walker2d-medium": (75.3, 75.0, 78.3, 83.7),
    "hopper-medium-expert": (52.5, 110.9, 91.5, 98.0),
    "halfcheetah-medium-expert": (55.2, 92.9, 86.7, 90.7),
    "walker2d-medium-expert": (107.5, 109.0, 109.6, 110.1),
}
CORL_METHODS = ("bc", "filtered-bc", "iql", "td3-bc", "awac", "cql", "rebrac-tuned", "decision-transformer")
CORL = {
    "hopper-medium-replay": (29.8, 70.4, 97.4, 64.4, 98.9, 95.1, 95.0, 81.8),
    "halfcheetah-medium-replay": (35.7, None, 44.5, 44.8, 45.1, 45.0, 51.2, 38.9),  # its loader cuts episodes wrongly
    "walker2d-medium-replay": (21.8, 54.4, 82.2, 85.6, 80.6, 73.1, 84.3, 59.9),
    "hopper-medium": (53.5, 55.5, 67.5, 60.4, 63.0, 59.1, 102.3, 65.1),
    "halfcheetah-medium": (42.4, 42.5, 48.3, 48.1, 50.0, 47.0, 64.0, 42.2),
    "walker2d-medium": (63.2, 67.3, 80.9, 82.7, 68.5, 80.8, 85.8, 67.6),
    "hopper-medium-expert": (52.3, 111.2, 107.4, 101.2, 101.9, 99.3, 109.5, 110.4),
    "halfcheetah-medium-expert": (56.0, 90.1, 94.7, 90.8, 95.0, 95.6, 103.8, 91.6),
    "walker2d-medium-expert": (99.0, 108.7, 111.7, 110.0, 111.4, 109.6, 111.9, 107.1),
}


def published_range(task: str, method: str, *others: float) -> tuple[float, float]:
    """From and to: a method's published scores on D4RL's own data of a task, and ``others`` that the caller knows."""
    papers = dict(zip(REFERENCE_METHODS, PAPER[task], strict=True))
    corl = dict(zip(CORL_METHODS, CORL[task], strict=True))
    known = [x for x in (papers.get(method), corl.get(method), *others) if x is not None]
    return min(known), max(known)


PUBLISHED_SCORES = {task: {method: published_range(task, method) for method in REFERENCE_METHODS} for task in PAPER}
"""Of the reference methods, by task and method: what data are accepted by."""
