"""Hyper-parameters of AWAC (Nair et al. 2020)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from iwsft_control.base.bounds import POSITIVE, SHARE
from iwsft_control.configs.card import Card, Published


@dataclasses.dataclass(frozen=True)
class AWACConfig:
    """Hyper-parameters."""

    steps: Annotated[int, POSITIVE] = 200_000
    """Gradient steps of critics and policy (chosen by learning curves)."""
    batch_size: Annotated[int, POSITIVE] = 256
    learning_rate: Annotated[float, POSITIVE] = 3e-4
    discount: Annotated[float, SHARE] = 0.99
    target_rate: Annotated[float, SHARE] = 0.005
    hidden: Annotated[tuple[int, ...], POSITIVE] = (256, 256)
    temperature: Annotated[float, POSITIVE] = 1.0
    """lambda: what advantages are divided by."""
    max_weight: Annotated[float, POSITIVE] = 100.0
    """Largest advantage weight."""
    average_decay: Annotated[float, SHARE] = 0.999
    """The policy that is evaluated is the exponential average of its parameters."""


CARD = Card(
    name="awac",
    config=AWACConfig,
    stream=9,
    seconds=7.0,
    published=Published("AWAC", (37.2, 40.5, 27.0)),
)
