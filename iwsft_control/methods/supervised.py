"""The six methods of supervised fine-tuning: what each curates, where it starts, how it is weighted."""

from __future__ import annotations

import dataclasses

import numpy as np

from iwsft_control.datasets.types import Dataset
from iwsft_control.learning import curation
from iwsft_control.learning.curation import CurationConfig, Values


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table above."""

    curation: str  # "everything", "filtered" (transitions of the best episodes), "binary" (those episodes), "quality"
    fine_tunes: bool = False  # starts from BC's parameters instead of from scratch
    importance_weighted: bool = False


METHODS = {
    "bc": Method("everything"),
    "filtered-bc": Method("filtered"),
    "sft": Method("binary", fine_tunes=True),
    "iw-sft": Method("binary", fine_tunes=True, importance_weighted=True),
    "sft-q": Method("quality", fine_tunes=True),
    "iw-sft-q": Method("quality", fine_tunes=True, importance_weighted=True),
}


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Hyper-parameters of policy training, the same for all methods and tasks."""

    hidden: tuple[int, ...] = (256, 256, 256)
    batch_size: int = 256
    bc_steps: int = 20_000
    """Gradient steps of bc and filtered-bc."""
    bc_learning_rate: float = 1e-3
    fine_tune_steps: int = 5_000
    """Gradient steps of sft, iw-sft, sft-q and iw-sft-q, from the run's own BC policy."""
    fine_tune_learning_rate: float = 3e-4
    length_weighted: bool = True
    """A unit counts by its length, as in log p(tau) = sum_t log pi; otherwise by the mean over t (released code)."""
    average_decay: float = 0.999
    """The policy that is evaluated is the exponential average of the parameters, for all of these methods alike."""


def curate(
    config: CurationConfig, method: str, source: str | None, data: Dataset, values: Values | None
) -> tuple[curation.Curated, np.ndarray | None]:
    """The multiset of units that ``method`` samples from, and the scores behind it (None where all data count)."""
    kind = METHODS[method].curation
    transitions, episodes = curation.transition_units(data), curation.episode_units(data)
    if kind == "everything":
        return curation.curate(curation.everything(len(data.rewards)), transitions), None
    scores = curation.episode_returns(data)
    if kind == "quality":
        if source == "return":
            return curation.curate(curation.nested_strata(scores, config.episode_strata), episodes), scores
        assert values is not None
        if config.q_unit == "transition":
            scores = curation.transition_advantages(*values)
            return curation.curate(curation.nested_strata(scores, config.transition_strata), transitions), scores
        scores = curation.episode_values(data, values[0])
        return curation.curate(curation.nested_strata(scores, config.episode_strata), episodes), scores
    best = curation.above(scores, config.filter_percentile)
    if kind == "filtered":  # transitions of the best episodes, uniformly: long episodes count by their length
        rows = np.flatnonzero(np.isin(data.episode_of, best))
        return curation.curate(rows, transitions), scores
    return curation.curate(best, episodes), scores
