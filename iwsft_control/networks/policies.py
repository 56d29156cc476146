"""Policies: their densities, how they are squashed, how they act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.base import errors, files
from iwsft_control.networks.mlp import MLP, numpy_mlp

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # of the offline policies: iw-SFT's released code


SAC_LOG_STD_MIN, SAC_LOG_STD_MAX = -20.0, 2.0  # of SAC's policy: rlkit


class GaussianPolicy(nn.Module):
    """pi(a|s) = N(tanh(f(s)), diag(exp(2 log_std))) with a state-independent log_std, as in iw-SFT's released code.

    A plain Normal: the tanh bounds the mean only, so the density needs no Jacobian.
    """

    hidden: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Observations (..., O) to means (..., A) in (-1, 1) and clamped log standard deviations (A,)."""
        mean = jnp.tanh(MLP(self.hidden, self.action_dim, name="net")(observations))
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)


class DeterministicPolicy(nn.Module):
    """a = tanh(f(s)): observations (..., O) to actions (..., A) in (-1, 1)."""

    hidden: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        return jnp.tanh(MLP(self.hidden, self.action_dim, name="net")(observations))


def gaussian_log_prob(mean: jax.Array, log_std: jax.Array, actions: jax.Array) -> jax.Array:
    """Log density of a diagonal Gaussian, summed over action dimensions: (..., A) -> (...)."""
    z = (actions - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * z**2 - log_std - 0.5 * jnp.log(2 * jnp.pi), axis=-1)


def policy_log_prob(policy: GaussianPolicy, params: Any, observations: jax.Array, actions: jax.Array) -> jax.Array:
    """log pi(a|s): observations (..., O), actions (..., A) -> (...)."""
    mean, log_std = policy.apply(params, observations)
    return gaussian_log_prob(mean, log_std, actions)


class TanhGaussianPolicy(nn.Module):
    """SAC's policy: a = tanh(u), u ~ N(mu(s), diag(sigma(s)^2)) (Haarnoja et al. 2018)."""

    hidden: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Observations (..., O) to the mean (..., A) and log standard deviation (..., A) of u."""
        mean, log_std = jnp.split(MLP(self.hidden, 2 * self.action_dim, name="net")(observations), 2, axis=-1)
        return mean, jnp.clip(log_std, SAC_LOG_STD_MIN, SAC_LOG_STD_MAX)


def greedy(params: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The deterministic policy a = tanh(f(s)) of :class:`GaussianPolicy` parameters: (K, O) -> (K, A), float32."""
    layers = jax.tree.map(np.asarray, params["params"]["net"])
    return lambda observations: np.tanh(numpy_mlp(layers, observations))


def load_policy(path: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """The deterministic policy of a run, from the safetensors file beside its result.

    Returns:
        A function from observations (K, O) or (O,) to actions (K, A) or (A,) in [-1, 1].

    Raises:
        UserError: no such file, it is damaged, or it is not a policy of this project.
    """
    arrays, _ = files.load_arrays(Path(path))
    params = files.nest(arrays)
    if not isinstance(params.get("params", {}).get("net"), dict):
        raise errors.UserError(f"{path} does not hold a policy; give the .safetensors file beside a result.")
    return greedy(params)


def squash(mean: jax.Array, log_std: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions a = tanh(mean + std noise) (..., A) and log pi(a|s) (...), the Jacobian of tanh in its stable form."""
    u = mean + jnp.exp(log_std) * noise
    log_jacobian = 2 * (jnp.log(2.0) - u - jax.nn.softplus(-2 * u))
    return jnp.tanh(u), gaussian_log_prob(mean, log_std, u) - log_jacobian.sum(-1)
