"""The online methods: UFT, Prefix-RFT, and what they are compared with. Each differs from its neighbour in one thing.

rl                  PPO from a fresh policy
bc-rl               the same from the run's BC policy, near to it (KL)
rl-uniform-resets   bc-rl, but episodes start inside demonstrations, uniformly: R3 of UFT's code
uft-no-likelihood   the same with UFT's schedule: "RFT(cosine)" of UFT's paper
uft                 the same with the likelihood of the demonstration's actions before the start: UFT
prefix-rft          bc-rl, but one episode of each group continues a demonstration, whose steps count: Prefix-RFT
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from iwsft_control.base.errors import UserError, near


class OnlineMethod(NamedTuple):
    """What an online method is made of."""

    law: Literal["none", "uniform", "cosine", "hybrid"]
    """How long prefixes are: none, uniform, UFT's schedule for all of a group, Prefix-RFT's for one of a group."""
    likelihood: bool = False
    """Whether the demonstration's actions on the prefix are made more likely."""
    scratch: bool = False
    """Whether it starts from a fresh policy, with no reference to stay near."""


METHODS = {
    "rl": OnlineMethod("none", scratch=True),
    "bc-rl": OnlineMethod("none"),
    "rl-uniform-resets": OnlineMethod("uniform"),
    "uft-no-likelihood": OnlineMethod("cosine"),
    "uft": OnlineMethod("cosine", likelihood=True),
    "prefix-rft": OnlineMethod("hybrid"),
}


def get(name: str) -> OnlineMethod:
    """The method of a name.

    Raises:
        UserError: there is none; the sentence lists the near ones.
    """
    if name not in METHODS:
        raise UserError(f"unknown online method {name!r}: {near(name, list(METHODS))}")
    return METHODS[name]
