"""What is published of D4RL's own data sets."""

from __future__ import annotations

import dataclasses


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
