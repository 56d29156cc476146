"""Hyper-parameters of ReBRAC (Tarasov et al. 2023)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from iwsft_control.base.bounds import NOT_NEGATIVE, POSITIVE
from iwsft_control.configs.card import Card, Published
from iwsft_control.configs.td3_bc import TD3Config


@dataclasses.dataclass(frozen=True)
class ReBRACConfig(TD3Config):
    """Hyper-parameters; those that are not here are TD3's."""

    hidden: Annotated[tuple[int, ...], POSITIVE] = (256, 256, 256)
    beta_policy: Annotated[float, NOT_NEGATIVE] = 0.05
    """beta_1: weight of behaviour cloning in the policy's loss."""
    beta_critic: Annotated[float, NOT_NEGATIVE] = 0.1
    """beta_2: weight of the behaviour penalty in the critics' backup."""


CARD = Card(
    name="rebrac",
    config=ReBRACConfig,
    stream=11,
    seconds=13.0,
)
TUNED_CARD = dataclasses.replace(
    CARD,
    name="rebrac-tuned",
    option="rebrac",
    stream=12,
    published=Published("ReBRAC", (98.1, 51.0, 77.3)),  # tuned per task as well
)
