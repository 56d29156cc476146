"""Hyper-parameters of curation."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from iwsft_control.base.bounds import PERCENTILE, POSITIVE


@dataclasses.dataclass(frozen=True)
class CurationConfig:
    """Which units fine-tuning sees, and how often."""

    filter_percentile: Annotated[float, PERCENTILE] = 90
    """filtered-bc, sft, iw-sft: episodes above this percentile of return."""
    q_unit: Literal["episode", "segment", "transition"] = "episode"
    """--quality q: whole episodes by their mean learned Q, or parts of them by their (mean) learned advantage."""
    segment_steps: Annotated[int, POSITIVE] = 50
    """Transitions of a segment; the last one of an episode may have fewer."""
    episode_strata: Annotated[tuple[float, ...], PERCENTILE] = (90, 95, 98)
    """Episodes are taken once for each of these percentiles of quality that they exceed (the paper's)."""
    strata_of: Literal["episodes", "transitions"] = "episodes"
    """What these percentiles count."""
    transition_strata: Annotated[tuple[float, ...], PERCENTILE] = (70, 85, 95)
    """Likewise for segments and transitions."""

    def problem(self, option: str) -> str | None:
        """What no single field tells."""
        empty = not (self.episode_strata and self.transition_strata)
        return f"--{option}.episode-strata and --{option}.transition-strata must not be empty." if empty else None
