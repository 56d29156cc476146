"""SFT(Q) and iw-SFT(Q) on the parts of episodes that have the highest Q, not the highest advantage.

    python experiments/tuning.py --round parts --seeds 100 101

An advantage asks how good an action is for its state; Q asks how good the state is as well. The best segments by mean Q
are those in which a good policy is in full stride: a good episode without its start and its fall.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np

from iwsft_control.configs.supervised import KINDS, Kind
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.methods import registry, supervised


def prepare(kind: Kind, config: Any, inputs: Inputs) -> Prepared:
    """As of the method, with Q in the place of the advantage Q - V."""
    critic = inputs.artefacts["critic"]
    values = {**critic.arrays, "v": np.zeros_like(critic.arrays["v"])}
    artefacts = {**inputs.artefacts, "critic": critic._replace(arrays=values)}
    return supervised.prepare(kind, config, inputs._replace(artefacts=artefacts))


def method(name: str) -> Method:
    """A method that curates by quality, its parts of episodes ranked by Q."""
    own: dict[str, Any] = {"name": f"{name}-of-parts", "stream": None, "published": None}
    return dataclasses.replace(registry.get(name), **own, prepare=partial(prepare, KINDS[name]))


METHODS = tuple(map(method, ("sft-q", "iw-sft-q")))
