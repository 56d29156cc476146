"""Hyper-parameters of Decision Transformer (Chen et al. 2021)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from iwsft_control.base.bounds import NOT_NEGATIVE, POSITIVE, SHARE, SHARE_BELOW_ONE
from iwsft_control.configs.card import Card, Published


@dataclasses.dataclass(frozen=True)
class DecisionTransformerConfig:
    """Hyper-parameters; the values are the paper's for Gym (appendix A), but for ``steps``."""

    steps: Annotated[int, POSITIVE] = 20_000
    """Gradient steps (authors: 100,000)."""
    batch_size: Annotated[int, POSITIVE] = 64
    """Segments of a batch."""
    context: Annotated[int, POSITIVE] = 20
    """K: steps of a segment, and that the policy remembers."""
    learning_rate: Annotated[float, POSITIVE] = 1e-4
    warmup: Annotated[float, SHARE] = 0.1
    """Share of the steps in which the learning rate rises to its value (authors: 10,000 of 100,000)."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-4
    gradient_clip: Annotated[float, POSITIVE] = 0.25
    """Largest norm of the gradient of all parameters."""
    width: Annotated[int, POSITIVE] = 128
    layers: Annotated[int, POSITIVE] = 3
    heads: Annotated[int, POSITIVE] = 1
    dropout: Annotated[float, SHARE_BELOW_ONE] = 0.1
    timesteps: Annotated[int, POSITIVE] = 1_000
    """Timesteps of an episode that have an embedding of their own; later ones share the last."""
    return_scale: Annotated[float, POSITIVE] = 1_000.0
    """What returns are divided by."""
    target_return: float | None = None
    """Return that is asked for in evaluation; by default the paper's for Hopper, HalfCheetah and Walker2d where the
    best episode is within a factor of two of it, else the best episode's."""
    average_decay: Annotated[float, SHARE] = 0.0
    """Of the exponential average of the policy's parameters that is evaluated; 0: the last parameters."""

    def problem(self, option: str) -> str | None:
        """What no single field tells."""
        return None if self.width % self.heads == 0 else f"--{option}.width must be a multiple of --{option}.heads."


CARD = Card(
    name="decision-transformer",
    config=DecisionTransformerConfig,
    stream=15,
    seconds=300.0,
    published=Published("DT", (82.7, 36.6, 66.6)),
)
