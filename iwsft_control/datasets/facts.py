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


# What reference methods score on D4RL's own v2 data (normalised, from and to): on medium-replay the papers' figure and,
# where it is another, CORL's of the last checkpoint. CORL's 10%BC on HalfCheetah is left out: its loader cuts
# trajectories wrongly. Other levels: the IQL paper's table.
REFERENCE_METHODS = ("bc", "filtered-bc", "iql", "td3-bc")
PUBLISHED_SCORES = {
    task: dict(zip(REFERENCE_METHODS, ranges, strict=True))
    for task, ranges in {
        "hopper-medium-replay": ((18.1, 29.8), (70.4, 75.9), (94.7, 94.7), (60.9, 60.9)),
        "halfcheetah-medium-replay": ((35.7, 36.6), (40.6, 40.6), (44.2, 44.2), (44.6, 44.6)),
        "walker2d-medium-replay": ((21.8, 26.0), (54.4, 62.5), (73.9, 73.9), (81.8, 81.8)),
        "hopper-medium": ((52.9, 52.9), (56.9, 56.9), (66.3, 66.3), (59.3, 59.3)),
        "halfcheetah-medium": ((42.6, 42.6), (42.5, 42.5), (47.4, 47.4), (48.3, 48.3)),
        "walker2d-medium": ((75.3, 75.3), (75.0, 75.0), (78.3, 78.3), (83.7, 83.7)),
        "hopper-medium-expert": ((52.5, 52.5), (110.9, 110.9), (91.5, 91.5), (98.0, 98.0)),
        "halfcheetah-medium-expert": ((55.2, 55.2), (92.9, 92.9), (86.7, 86.7), (90.7, 90.7)),
        "walker2d-medium-expert": ((107.5, 107.5), (109.0, 109.0), (109.6, 109.6), (110.1, 110.1)),
    }.items()
}
