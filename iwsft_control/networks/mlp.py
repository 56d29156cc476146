"""Multi-layer perceptrons: critics, value functions, and how they run in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


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
