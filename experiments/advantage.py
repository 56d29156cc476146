"""SFT(Q) and iw-SFT(Q) that also prefer, inside of the curated episodes, the better actions.

    python experiments/tuning.py --round advantage --seeds 100 101

    L = -E_w[min(exp(beta (Q(s, a) - V(s))), 100) log pi(a|s)]

Curation and importance weights choose among episodes, w; inside of one, all actions count alike. Here each counts by
its advantage as in IQL (Kostrikov et al. 2022, eq. 7), by the same critic that ranks the episodes. Everything else is
the methods' own, in ``methods/supervised.py``.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.configs.supervised import KINDS, Kind, SupervisedConfig
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.methods import registry, supervised
from iwsft_control.methods.one_step import Weighted
from iwsft_control.methods.supervised import PolicyState

MAX_WEIGHT = 100.0
VARIANTS = (("iw-sft-q", 3.0), ("iw-sft-q", 1.0), ("sft-q", 3.0))


class Own(NamedTuple):
    """:class:`supervised.Own`, and the weight of every row of the data."""

    curated: Any
    start: Any
    reference: Any
    held_out: Any
    cumulative: Any
    advantage_weights: Any  # (S, N)


def prepare(beta: float, kind: Kind, config: SupervisedConfig, inputs: Inputs) -> Prepared:
    """As of the method, and min(exp(beta (Q - V)), 100) of every row."""
    prepared, values = supervised.prepare(kind, config, inputs), inputs.artefacts["critic"].arrays
    weights = np.exp(np.minimum(beta * (values["q"] - values["v"]), np.log(MAX_WEIGHT)))
    return prepared._replace(own=Own(**prepared.own._asdict(), advantage_weights=jnp.asarray(weights, jnp.float32)))


def sample(config: SupervisedConfig, data: Prepared, key: jax.Array) -> Weighted:
    """The method's batch, and its rows' weights."""
    rows = supervised.draw(config, data, key)
    return Weighted(data.shared.rows(rows), data.own.advantage_weights[rows])


def loss(config: SupervisedConfig, params: Any, batch: Weighted) -> jax.Array:
    """-mean weight log pi(a|s) of a batch."""
    return -(batch.weights * supervised.log_prob(config, params, batch.rows)).mean()


def update(
    config: SupervisedConfig, state: PolicyState, batch: Weighted, key: jax.Array
) -> tuple[PolicyState, dict[str, jax.Array]]:
    """One gradient step; q follows, where there is one."""
    return supervised.descended(partial(loss, config), config, state, batch)


def method(name: str, beta: float) -> Method:
    """A method that curates by learned Q, with advantage weights inside of episodes."""
    own: dict[str, Any] = {"name": f"{name}-advantage-{beta:g}", "stream": None, "published": None}
    return dataclasses.replace(
        registry.get(name), **own, prepare=partial(prepare, beta, KINDS[name]), sample=sample, update=update
    )


METHODS = tuple(method(name, beta) for name, beta in VARIANTS)
