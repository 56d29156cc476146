"""Flax networks: the policies, the critics and the value function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control import files

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # of the offline policies: iw-SFT's released code
SAC_LOG_STD_MIN, SAC_LOG_STD_MAX = -20.0, 2.0  # of SAC's policy: rlkit


class MLP(nn.Module):
    """Dense layers with ReLU (then layer normalisation, where asked for) between them: (..., in) -> (..., out)."""

    hidden: Sequence[int]
    out: int
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
            if self.layer_norm:
                x = nn.LayerNorm()(x)
        return nn.Dense(self.out)(x)


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


class TwinCritic(nn.Module):
    """Two independent Q-functions: observations (..., O), actions (..., A) -> (2, ...)."""

    hidden: Sequence[int]
    layer_norm: bool = False

    @nn.compact
    def __call__(self, observations: jax.Array, actions: jax.Array) -> jax.Array:
        twins = nn.vmap(
            MLP, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, out_axes=0, axis_size=2
        )
        return twins(self.hidden, 1, self.layer_norm, name="net")(
            jnp.concatenate([observations, actions], axis=-1)
        ).squeeze(-1)


def twin(params: Any, i: int) -> Any:
    """The :class:`MLP` parameters of one of the two Q-functions, i = 0 or 1, of a :class:`TwinCritic`."""
    return {"params": jax.tree.map(lambda x: x[i], params["params"]["net"])}


def first_critic(hidden: Sequence[int], params: Any, observations: jax.Array, actions: jax.Array) -> jax.Array:
    """Q_1(s, a) of a :class:`TwinCritic`'s parameters, without the work of Q_2: (..., O), (..., A) -> (...)."""
    return MLP(hidden, 1).apply(twin(params, 0), jnp.concatenate([observations, actions], axis=-1)).squeeze(-1)


class ValueFunction(nn.Module):
    """V(s): observations (..., O) -> (...)."""

    hidden: Sequence[int]

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        return MLP(self.hidden, 1, name="net")(observations).squeeze(-1)


def numpy_mlp(layers: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """:class:`MLP` in NumPy, for acting: the batches of a rollout are too small and too varied for a device call."""
    x = x.astype(np.float32)
    for i in range(len(layers)):
        x = x @ layers[f"Dense_{i}"]["kernel"] + layers[f"Dense_{i}"]["bias"]
        if i < len(layers) - 1:
            x = np.maximum(x, 0, out=x)
    return x


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
        raise files.UserError(f"{path} does not hold a policy; give the .safetensors file beside a result.")
    return greedy(params)
