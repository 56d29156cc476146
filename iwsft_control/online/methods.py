"""The online methods: UFT, Prefix-RFT, and what they are compared with. Each differs from its neighbour in one thing.

rl                  PPO from a fresh policy
bc-rl               the same from the run's BC policy, near to it (KL)
rl-uniform-resets   bc-rl, but episodes start inside demonstrations, uniformly: R3 of UFT's code
uft-no-likelihood   the same with UFT's schedule: "RFT(cosine)" of UFT's paper
uft                 the same with the likelihood of the demonstration's actions before the start: UFT
prefix-rft          bc-rl, but one episode of each group continues a demonstration, whose steps count: Prefix-RFT
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from iwsft_control.base.errors import UserError, near, require
from iwsft_control.configs.online import PPOConfig, PrefixConfig, Reward


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


def estimator_of(ppo: PPOConfig, reward: Reward) -> str:
    """How advantages are estimated: gae or group."""
    return ppo.estimator or ("group" if reward == "sparse" else "gae")


class Use(NamedTuple):
    """What decides which settings matter."""

    method: OnlineMethod
    estimator: str
    reward: Reward


def _by_gae(use: Use) -> bool:
    return use.estimator == "gae"


def _from_a_policy(use: Use) -> bool:
    return not use.method.scratch


def _by_law(*laws: str) -> Callable[[Use], bool]:
    return lambda use: use.method.law in laws


EFFECTS: dict[str, Callable[[Use], bool]] = {
    "ppo.discount": lambda use: use.estimator == "gae" and use.reward == "dense",
    "ppo.trace": _by_gae,
    "ppo.critic_learning_rate": _by_gae,
    "ppo.critic_hidden": _by_gae,
    "ppo.critic_warmup": _by_gae,
    "ppo.divide_by_std": lambda use: use.estimator == "group",
    "ppo.centred": lambda use: use.estimator == "group" and use.method.law == "hybrid",
    "ppo.likelihood_weight": lambda use: use.method.likelihood,
    "ppo.kl_weight": _from_a_policy,
    "ppo.spread_steps": _from_a_policy,
    "ppo.start_std": _from_a_policy,
    "prefix.margin": _by_law("uniform", "cosine", "hybrid"),
    "prefix.pieces": _by_law("uniform", "cosine"),
    "prefix.unhinted_share": _by_law("uniform", "cosine"),
    "prefix.hinted_share": _by_law("cosine"),
    "prefix.high": _by_law("cosine", "hybrid"),
    "prefix.low": _by_law("cosine", "hybrid"),
    "prefix.entropy_share": _by_law("hybrid"),
}
"""The settings that not every method has a use for, and which have."""


def check_effects(names: Sequence[str], rewards: Sequence[Reward], ppo: PPOConfig, prefix: PrefixConfig) -> None:
    """See that what was set has an effect on one of the runs at least.

    Raises:
        UserError: something has none, or a method is unknown.
    """
    uses = [Use(get(name), estimator_of(ppo, reward), reward) for name in names for reward in rewards]
    groups: dict[str, tuple[Any, Any]] = {"ppo": (ppo, PPOConfig()), "prefix": (prefix, PrefixConfig())}
    for option, has_effect in EFFECTS.items():
        group, name = option.split(".")
        given, default = (getattr(config, name) for config in groups[group])
        where = f"{', '.join(names)} with the reward {' or '.join(rewards)}"
        estimators = " or ".join(dict.fromkeys(use.estimator for use in uses))
        require(
            given == default or any(map(has_effect, uses)),
            f"--{option.replace('_', '-')} has no effect on {where} and the estimator {estimators}; leave it out.",
        )
