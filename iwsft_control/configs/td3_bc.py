"""Hyper-parameters of TD3+BC (Fujimoto & Gu 2021), and those of every method on TD3's schedule."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from iwsft_control.base.bounds import NOT_NEGATIVE, POSITIVE, SHARE
from iwsft_control.configs.card import Card, Published


@dataclasses.dataclass(frozen=True)
class TD3Config:
    """What every method on TD3's schedule has; the values are TD3+BC's."""

    steps: Annotated[int, POSITIVE] = 200_000
    """Gradient steps of the critics (paper: 1M; by learning curves); the policy takes one in ``policy_delay``."""
    batch_size: Annotated[int, POSITIVE] = 256
    learning_rate: Annotated[float, POSITIVE] = 3e-4
    discount: Annotated[float, SHARE] = 0.99
    target_rate: Annotated[float, SHARE] = 0.005
    hidden: Annotated[tuple[int, ...], POSITIVE] = (256, 256)
    policy_delay: Annotated[int, POSITIVE] = 2
    noise: Annotated[float, NOT_NEGATIVE] = 0.2
    """Standard deviation of the smoothing noise on target actions."""
    noise_clip: Annotated[float, NOT_NEGATIVE] = 0.5
    average_decay: Annotated[float, SHARE] = 0.0
    """Of the exponential average of the policy's parameters that is evaluated; 0: the last parameters."""


@dataclasses.dataclass(frozen=True)
class TD3BCConfig(TD3Config):
    """Hyper-parameters."""

    alpha: Annotated[float, NOT_NEGATIVE] = 2.5
    """Weight of the Q-function against behaviour cloning."""


CARD = Card(
    name="td3-bc",
    config=TD3BCConfig,
    stream=8,
    seconds=5.0,
    published=Published("TD3+BC", (60.9, 44.6, 81.8)),
)
