"""Hyper-parameters of CQL (Kumar et al. 2020); alpha, layers and learning rates are Geng's (JaxCQL)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from iwsft_control.base.bounds import NOT_NEGATIVE, POSITIVE, SHARE
from iwsft_control.configs.card import Card, Published


@dataclasses.dataclass(frozen=True)
class CQLConfig:
    """Hyper-parameters."""

    steps: Annotated[int, POSITIVE] = 100_000
    """Gradient steps of critics and policy (paper: 1M; chosen by learning curves)."""
    batch_size: Annotated[int, POSITIVE] = 256
    learning_rate: Annotated[float, POSITIVE] = 3e-4
    """Of the critics."""
    policy_learning_rate: Annotated[float, POSITIVE] = 3e-4
    """Of policy and temperature."""
    discount: Annotated[float, SHARE] = 0.99
    target_rate: Annotated[float, SHARE] = 0.005
    hidden: Annotated[tuple[int, ...], POSITIVE] = (256, 256)
    alpha: Annotated[float, NOT_NEGATIVE] = 5.0
    """Weight of the conservative term."""
    sampled_actions: Annotated[int, POSITIVE] = 10
    """n: uniform, from pi(s) and from pi(s'), each."""
    gradient_actions: Annotated[int, NOT_NEGATIVE] = 2
    """Of these 3n, how many the conservative term's gradient is estimated from; 0 takes all of them, as the authors."""
    cloning_steps: Annotated[int, NOT_NEGATIVE] = 0
    """Steps in which the policy maximises log pi(a|s) of the data instead of Q."""
    average_decay: Annotated[float, SHARE] = 0.999
    """The policy that is evaluated is the exponential average of its parameters."""


CARD = Card(
    name="cql",
    config=CQLConfig,
    stream=10,
    seconds=40.0,
    published=Published("CQL", (95.0, 45.5, 77.2)),
)
