"""Hyper-parameters of the learned Q-function, IQL's for locomotion (Kostrikov et al. 2022)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from iwsft_control.base.bounds import POSITIVE, SHARE
from iwsft_control.configs.card import Card


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """Hyper-parameters of the learned Q-function (IQL's for locomotion)."""

    steps: Annotated[int, POSITIVE] = 25_000
    """Gradient steps. More updates, up to 50,000, do not rank unseen episodes better (docs/difference.md)."""
    batch_size: Annotated[int, POSITIVE] = 256
    learning_rate: Annotated[float, POSITIVE] = 3e-4
    expectile: Annotated[float, SHARE] = 0.7
    discount: Annotated[float, SHARE] = 0.99
    target_rate: Annotated[float, SHARE] = 0.005
    """Polyak rate of the target critics."""
    hidden: Annotated[tuple[int, ...], POSITIVE] = (256, 256)


CARD = Card(
    name="critic",
    config=CriticConfig,
    stream=1,
    seconds=6.5,
    has_policy=False,
)
