"""Hyper-parameters of IQL (Kostrikov et al. 2022)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from iwsft_control.base.bounds import NOT_NEGATIVE, POSITIVE, SHARE
from iwsft_control.configs.card import Card, Published
from iwsft_control.configs.critic import CriticConfig


@dataclasses.dataclass(frozen=True)
class IQLConfig(CriticConfig):
    """Hyper-parameters; those of critics and value function are the quality critic's."""

    steps: Annotated[int, POSITIVE] = 200_000
    """Gradient steps, of critics, value function and policy together (paper: 1M; by learning curves)."""
    beta: Annotated[float, NOT_NEGATIVE] = 3.0
    """Inverse temperature of the advantage weights."""
    max_weight: Annotated[float, POSITIVE] = 100.0
    """Largest advantage weight."""
    policy_learning_rate: Annotated[float, POSITIVE] = 3e-4
    """Decays to zero over all steps (cosine)."""
    average_decay: Annotated[float, SHARE] = 0.999
    """The policy that is evaluated is the exponential average of its parameters."""


CARD = Card(
    name="iql",
    config=IQLConfig,
    stream=7,
    seconds=7.0,
    published=Published("IQL", (94.7, 44.2, 73.9)),
)
