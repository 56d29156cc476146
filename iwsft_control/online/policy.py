"""The policy of online fine-tuning: the suite's, with a standard deviation that depends on the state.

Prefix-RFT asks where the policy is least certain, so its entropy must differ between states; BC's standard deviation is
one for all. A small head adds to it, zero at first: the policy then is BC's. :func:`fit_spread` fits the head by the
likelihood of the data with the mean held, which stands in for what BC does not learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.datasets.transitions import Demonstrations
from iwsft_control.learning.gradient import adam, descend
from iwsft_control.networks.mlp import MLP, numpy_mlp
from iwsft_control.networks.policies import LOG_STD_MAX, LOG_STD_MIN, gaussian_log_prob

SPREAD_HIDDEN = (64, 64)
SPREAD_BATCH, SPREAD_LEARNING_RATE = 256, 1e-3


class OnlinePolicy(nn.Module):
    """pi(a|s) = N(tanh(f(s)), diag(exp(2 (log_std + g(s))))); its mean is a :class:`GaussianPolicy`'s."""

    hidden: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Observations (..., O) to means and log standard deviations (..., A)."""
        mean = jnp.tanh(MLP(self.hidden, self.action_dim, name="net")(observations))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        spread = MLP(SPREAD_HIDDEN, self.action_dim, name="spread")(observations)
        return mean, jnp.clip(log_std + spread, LOG_STD_MIN, LOG_STD_MAX)


def create(policy: OnlinePolicy, observation_dim: int, key: jax.Array, start: Any = None) -> Any:
    """Parameters that act as a :class:`GaussianPolicy`'s ``start`` does, or fresh ones; g is zero."""
    params = policy.init(key, jnp.zeros((1, observation_dim)))["params"]
    last = f"Dense_{len(SPREAD_HIDDEN)}"
    params = {**params, "spread": {**params["spread"], last: jax.tree.map(jnp.zeros_like, params["spread"][last])}}
    if start is not None:
        params |= {name: jax.tree.map(jnp.asarray, start["params"][name]) for name in ("net", "log_std")}
    return {"params": params}


@partial(jax.jit, static_argnums=(0, 1))
def fit_spread(policy: OnlinePolicy, steps: int, params: Any, rows: Demonstrations, key: jax.Array) -> Any:
    """The parameters with g fitted to states and actions by their likelihood, ``steps`` gradient steps, mean held."""
    optimiser = adam(SPREAD_LEARNING_RATE)
    own = {name: params["params"][name] for name in ("spread", "log_std")}

    def whole(own: Any) -> Any:
        return {"params": {**params["params"], **own}}

    def loss(own: Any, observations: jax.Array, actions: jax.Array) -> jax.Array:
        mean, log_std = policy.apply(whole(own), observations)
        return -gaussian_log_prob(jax.lax.stop_gradient(mean), log_std, actions).mean()

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        index = jax.random.randint(key, (SPREAD_BATCH,), 0, rows.actions.shape[0])
        own, state, _ = descend(loss, optimiser, *carry, rows.observations[index], rows.actions[index])
        return (own, state), None

    (own, _), _ = jax.lax.scan(step, (own, optimiser.init(own)), jax.random.split(key, steps))
    return whole(own)


def scale_std(params: Any, factor: float) -> Any:
    """The parameters with all standard deviations times ``factor``."""
    own = params["params"]
    return {"params": {**own, "log_std": own["log_std"] + math.log(factor)}}


class Actor(NamedTuple):
    """An :class:`OnlinePolicy` in NumPy, for rollouts."""

    net: Any
    log_std: np.ndarray
    spread: Any

    @classmethod
    def of(cls, params: Any) -> Actor:
        """Of its parameters."""
        own = jax.tree.map(np.asarray, params["params"])
        return cls(own["net"], own["log_std"], own["spread"])

    def mean_std(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Observations (K, O) to mean and standard deviation (K, A) each."""
        log_std = np.clip(self.log_std + numpy_mlp(self.spread, observations), LOG_STD_MIN, LOG_STD_MAX)
        return np.tanh(numpy_mlp(self.net, observations)), np.exp(log_std)
