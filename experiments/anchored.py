"""iw-SFT(Q) that is held to the policy it starts from: does an anchor earn its place?

    python experiments/tuning.py --round anchor --seeds 100 101

    L = -E_w[log pi(a|s)] + beta E_w[KL(pi(.|s) || pi_ref(.|s))],  pi_ref = BC

One method for every beta, named after it. Everything else is iw-SFT(Q)'s, in ``methods/supervised.py``: so this is also
an example of a method that changes the loss of another one.
"""

from __future__ import annotations

import dataclasses
import zlib
from functools import partial
from typing import Any, NamedTuple

import jax

from iwsft_control.configs.supervised import SupervisedConfig
from iwsft_control.datasets.transitions import Demonstrations
from iwsft_control.learning import objectives
from iwsft_control.learning.method import Method, Prepared
from iwsft_control.methods import registry, supervised
from iwsft_control.methods.supervised import PolicyState
from iwsft_control.networks.policies import GaussianPolicy
from iwsft_control.online.objectives import gaussian_kl

BETAS = (0.1, 1.0)
FREE = registry.get("iw-sft-q")


class Batch(NamedTuple):
    """Rows (B, ...) and the distribution of pi_ref in their states."""

    rows: Demonstrations
    mean: jax.Array  # (B, A)
    log_std: jax.Array  # (A,)


def sample(config: SupervisedConfig, data: Prepared, key: jax.Array) -> Batch:
    """iw-SFT(Q)'s batch, and what BC would do in its states."""
    rows = supervised.sample(config, data, key)
    policy = GaussianPolicy(config.policy.hidden, rows.actions.shape[-1])
    return Batch(rows, *policy.apply(data.own.start, rows.observations))


def loss(beta: float, config: SupervisedConfig, params: Any, batch: Batch) -> jax.Array:
    """-mean log pi(a|s) + beta mean KL(pi || pi_ref) of a batch that was drawn by weight."""
    policy = GaussianPolicy(config.policy.hidden, batch.rows.actions.shape[-1])
    mean, log_std = policy.apply(params, batch.rows.observations)
    apart = gaussian_kl(mean, log_std, batch.mean, batch.log_std)
    return objectives.loss(partial(supervised.log_prob, config), params, batch.rows) + beta * apart.mean()


def update(
    beta: float, config: SupervisedConfig, state: PolicyState, batch: Batch, key: jax.Array
) -> tuple[PolicyState, dict[str, jax.Array]]:
    """One gradient step; q follows."""
    return supervised.descended(partial(loss, beta, config), config, state, batch)


def method(beta: float) -> Method:
    """iw-SFT(Q) with an anchor of this strength."""
    name = f"iw-sft-q-kl-{beta:g}"
    # The runs in results/tuning drew from the stream of the name with its point, which no name may have any more.
    own: dict[str, Any] = {"name": name.replace(".", "-"), "stream": zlib.crc32(name.encode()), "published": None}
    return dataclasses.replace(FREE, **own, sample=sample, update=partial(update, beta))


METHODS = tuple(map(method, BETAS))
