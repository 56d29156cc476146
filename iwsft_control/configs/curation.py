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
    strata: Annotated[tuple[float, ...], PERCENTILE] = (75, 85, 95)
    """sft-q, iw-sft-q: units are taken once for each of these percentiles of quality that they exceed."""
    strata_of: Literal["transitions", "units"] = "transitions"
    """What these percentiles count: transitions (good episodes may be longer), or units (of episodes: the paper's)."""

    def problem(self, option: str) -> str | None:
        """What no single field tells."""
        if self.q_unit != "segment" and self.segment_steps != type(self).segment_steps:
            return f"--{option}.segment-steps has no effect: it is for --{option}.q-unit segment."
        return None if self.strata else f"--{option}.strata must not be empty."
