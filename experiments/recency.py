"""SFT(Q) on the latest half of its curated set: how much of iw-SFT(Q)'s gain is that its weights prefer late episodes?

    python -m iwsft_control.run --env hopper-medium-replay --method-file experiments/recency.py --method recent-sft-q

A control, not a method for use: only a replay buffer in the order of collection has late episodes. It draws from as
many entries as iw-SFT(Q)'s weights leave at an effective sample size of 0.5, chosen by place instead of likelihood.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.configs.supervised import KINDS
from iwsft_control.datasets.transitions import Demonstrations
from iwsft_control.learning import curation
from iwsft_control.learning.method import Inputs, Prepared
from iwsft_control.methods import registry, supervised

SHARE = 0.5  # of the curated multiset, entries


def latest(entries: np.ndarray, share: float = SHARE) -> np.ndarray:
    """The entries of the last episodes of a multiset (M,) of episodes: at least a ``share`` of it, whole episodes."""
    ordered = np.sort(entries)
    first = ordered[len(ordered) - math.ceil(share * len(ordered))]
    return ordered[ordered >= first]


def prepare(config: Any, inputs: Inputs) -> Prepared:
    """As of sft-q by learned Q, from the latest half of each seed's own curated set."""
    data, values = inputs.data, inputs.artefacts["critic"].arrays
    units, sets = curation.episode_units(data), []
    for q, v in zip(values["q"], values["v"], strict=True):
        curated = supervised.curate(config.curation, KINDS["sft-q"], "q", data, (q, v)).curated
        episodes = data.episode_of[curated.starts[curated.entries]]
        sets.append(curation.by_transition(curation.curate(latest(episodes), units)))
    own = supervised.Own(jax.tree.map(jnp.asarray, curation.stack(sets)))
    start = jax.tree.map(jnp.asarray, inputs.artefacts["bc"].arrays["params"])
    return Prepared(Demonstrations(data.observations, data.actions), own._replace(start=start))


METHOD = dataclasses.replace(
    registry.get("sft-q"),
    name="recent-sft-q",
    by_quality=False,
    dependencies=lambda quality: ("bc", "critic"),
    published=None,
    stream=None,
    prepare=prepare,
    variant=lambda config: None,
)
