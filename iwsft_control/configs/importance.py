"""Hyper-parameters of the importance weights of iw-SFT."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from iwsft_control.base.bounds import NOT_NEGATIVE, POSITIVE, SHARE, SHARE_ABOVE_ZERO


@dataclasses.dataclass(frozen=True)
class ImportanceConfig:
    """The importance weight w(u) of iw-SFT and the lag of q."""

    effective_sample_size: Annotated[float | None, SHARE_ABOVE_ZERO] = 0.5
    """Share of the curated set that the weights leave: 1 is SFT, less follows q more. The temperature is found from it
    at every refresh. None: the temperature below."""
    temperature: Annotated[float, NOT_NEGATIVE] = 10.0
    """Factor on the unit's mean log-ratio, where there is no effective sample size to meet."""
    relative: bool = True
    """Whether weights are divided by their mean over the curated set before they are clipped."""
    low: Annotated[float, NOT_NEGATIVE] = 0.0
    """Smallest weight."""
    high: Annotated[float, POSITIVE] = 1000.0
    """Largest weight."""
    lag: Annotated[float, SHARE] = 0.9
    """q <- lag q + (1 - lag) pi after every step, on the parameters; 0: q is the policy."""
    refresh_every: Annotated[int, POSITIVE] = 100
    """Steps between two passes over the curated set that recompute all weights."""

    def problem(self, option: str) -> str | None:
        """What no single field tells."""
        if self.low > self.high:
            return f"--{option}.low must not be above --{option}.high."
        if self.effective_sample_size is not None and not self.relative:
            return f"--{option}.effective-sample-size is for relative weights: None with --{option}.no-relative."
        if self.effective_sample_size is not None and self.temperature != type(self).temperature:
            return (
                f"--{option}.temperature has no effect, since the one that meets --{option}.effective-sample-size is "
                "taken; set that to None."
            )
        return None
