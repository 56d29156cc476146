"""Hyper-parameters of SARSA, the critic of OneStep (Brandfonbrener et al. 2021)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from iwsft_control.base.bounds import POSITIVE, SHARE
from iwsft_control.configs.card import Card


@dataclasses.dataclass(frozen=True)
class SarsaConfig:
    """Hyper-parameters of the Q-function of the data's policy."""

    steps: Annotated[int, POSITIVE] = 200_000
    """Gradient updates."""
    batch_size: Annotated[int, POSITIVE] = 256
    learning_rate: Annotated[float, POSITIVE] = 3e-4
    discount: Annotated[float, SHARE] = 0.99
    target_rate: Annotated[float, SHARE] = 0.005
    """Polyak rate of the target critics."""
    hidden: Annotated[tuple[int, ...], POSITIVE] = (256, 256)


CARD = Card(
    name="sarsa",
    config=SarsaConfig,
    stream=13,
    seconds=5.0,
    has_policy=False,
)
