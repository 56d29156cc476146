"""Hyper-parameters of OneStep (Brandfonbrener et al. 2021)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from iwsft_control.base.bounds import NOT_NEGATIVE, POSITIVE, SHARE
from iwsft_control.configs.card import Card, Published


@dataclasses.dataclass(frozen=True)
class OneStepConfig:
    """Hyper-parameters of the step of improvement."""

    steps: Annotated[int, POSITIVE] = 50_000
    """Gradient steps of the policy, from the run's own BC policy."""
    batch_size: Annotated[int, POSITIVE] = 256
    learning_rate: Annotated[float, POSITIVE] = 3e-4
    temperature: Annotated[float, NOT_NEGATIVE] = 3.0
    """Factor on advantages: IQL's inverse temperature, on the same scale of rewards."""
    max_weight: Annotated[float, POSITIVE] = 100.0
    """Largest advantage weight."""
    samples: Annotated[int, POSITIVE] = 10
    """Actions of BC that V is the mean of."""
    average_decay: Annotated[float, SHARE] = 0.999
    """The policy that is evaluated is the exponential average of its parameters."""


CARD = Card(
    name="one-step",
    config=OneStepConfig,
    dependencies=lambda quality: ("bc", "sarsa"),
    stream=14,
    seconds=3.0,
    published=Published("OneStep", (97.5, 38.1, 49.5)),
)
