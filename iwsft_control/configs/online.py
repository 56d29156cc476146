"""Hyper-parameters of online fine-tuning: the learner, the prefixes of demonstrations, and what is rewarded."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from iwsft_control.base.bounds import NOT_NEGATIVE, PERCENTILE, POSITIVE, SHARE, SHARE_ABOVE_ZERO, SHARE_BELOW_ONE

Reward = Literal["dense", "sparse"]
Start = Literal["bc", "filtered-bc", "sft", "iw-sft", "sft-q", "iw-sft-q"]  # the offline policy


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """The learner, the same for all online methods."""

    groups: Annotated[int, POSITIVE] = 2
    """Groups of episodes in an update, each from one demonstration."""
    group_size: Annotated[int, POSITIVE] = 8
    """Episodes in a group."""
    estimator: Literal["", "gae", "group"] = ""
    """Advantages: generalised, with a critic; or an episode's outcome less its group's mean, without one (GRPO). By
    default gae for the dense reward, group for the sparse one."""
    divide_by_std: bool = False
    """Whether the group's standard deviation divides its advantages, as in UFT's code."""
    centred: bool = True
    """Prefix-RFT: whether the steps after the prefix count R - m_0, like all others; else R, as in its code."""
    discount: Annotated[float, SHARE_BELOW_ONE] = 0.99
    """Of the dense reward; the sparse one comes at the end and is not discounted."""
    trace: Annotated[float, SHARE] = 0.95
    """GAE's lambda."""
    epochs: Annotated[int, POSITIVE] = 4
    minibatch: Annotated[int, POSITIVE] = 256
    """Steps in a minibatch."""
    clip: Annotated[float, POSITIVE] = 0.2
    """Of the ratio of densities; that of a prefix's steps is not clipped, as in Prefix-RFT's code."""
    target_kl: Annotated[float, POSITIVE] = 0.02
    """An update ends when the policy has moved so far from where it began."""
    policy_learning_rate: Annotated[float, POSITIVE] = 3e-5
    critic_learning_rate: Annotated[float, POSITIVE] = 1e-3
    critic_hidden: Annotated[tuple[int, ...], POSITIVE] = (256, 256)
    critic_warmup: Annotated[int, NOT_NEGATIVE] = 3
    """First updates, in which only the critic learns."""
    max_gradient_norm: Annotated[float, POSITIVE] = 1.0
    kl_weight: Annotated[float, NOT_NEGATIVE] = 0.01
    """Of the KL divergence to the starting policy, for all methods that have one."""
    likelihood_weight: Annotated[float, NOT_NEGATIVE] = 0.1
    """UFT: of the mean log-likelihood of the demonstration's actions on the prefix."""
    spread_steps: Annotated[int, NOT_NEGATIVE] = 1000
    """Gradient steps that fit the standard deviation's dependence on the state to the data, before training."""
    start_std: Annotated[float, POSITIVE] = 0.3
    """Share of that standard deviation that training starts with. The data's is the spread between all the policies
    behind them, too wide to explore with: a policy that samples with it falls early."""


@dataclasses.dataclass(frozen=True)
class PrefixConfig:
    """Demonstrations, and how much of them is given; [S] is the sources' choice."""

    percentile: Annotated[float, PERCENTILE] = 90
    """Demonstrations are the episodes above this percentile of return: SFT's curated set."""
    success_percentile: Annotated[float, PERCENTILE] = 50
    """An episode whose return reaches this percentile of the demonstrations' is a success: the sparse reward is 1."""
    margin: Annotated[int, NOT_NEGATIVE] = 20
    """No episode starts within these steps of a demonstration's termination."""
    pieces: Annotated[int, POSITIVE] = 5
    """UFT: a demonstration is cut into so many pieces [S]."""
    hinted_share: Annotated[float, SHARE_ABOVE_ZERO] = 0.6
    """UFT: share of the training in which prefixes are given [S]."""
    high: Annotated[float, SHARE] = 0.95
    """UFT: p at the beginning; Prefix-RFT: longest prefix, as a share of the demonstration [S]."""
    low: Annotated[float, SHARE] = 0.05
    """UFT: p at the end of the hinted share; Prefix-RFT: shortest prefix at the end of training [S]."""
    unhinted_share: Annotated[float, SHARE] = 0.2
    """UFT and uniform resets: probability that a group starts at step 0 anyway, so that the critic sees it."""
    entropy_share: Annotated[float, SHARE] = 0.2
    """Prefix-RFT: share of the prefix's steps that count, those of highest policy entropy [S]."""

    def problem(self, option: str) -> str | None:
        """What no single field tells."""
        return f"--{option}.low must not be above --{option}.high." if self.low > self.high else None
