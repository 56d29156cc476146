"""TD3+BC with PyTorch's initialisation, as its authors have it: does Flax's cost it anything?

    python -m iwsft_control.run --env hopper-medium-replay \\
        --method-file experiments/td3_bc_pytorch.py --method td3-bc-pytorch

PyTorch draws weights and biases of a layer uniformly from +-1/sqrt(inputs); Flax draws weights with standard deviation
1/sqrt(inputs), 1.7 times as large, and biases are zero.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any

import jax

from iwsft_control.methods import td3_bc
from iwsft_control.methods.td3_bc import TD3BCConfig, TD3State


def redrawn(params: Any, key: jax.Array) -> Any:
    """Parameters of dense layers, {"kernel": (..., in, out), "bias": (..., out)} each, as PyTorch draws them."""

    def draw(path: Any, values: jax.Array) -> jax.Array:
        inputs = params
        for step in path[:-1]:
            inputs = inputs[step.key]
        bound = 1 / math.sqrt(inputs["kernel"].shape[-2])
        name = zlib.crc32(jax.tree_util.keystr(path).encode())
        return jax.random.uniform(jax.random.fold_in(key, name), values.shape, minval=-bound, maxval=bound)

    return jax.tree_util.tree_map_with_path(draw, params)


def create(config: TD3BCConfig, observation_dim: int, action_dim: int, key: jax.Array) -> TD3State:
    """Fresh parameters from ``key``."""
    state = td3_bc.create(config, observation_dim, action_dim, key)
    policy_key, critic_key = jax.random.split(jax.random.fold_in(key, 1))
    policy, critic = redrawn(state.policy, policy_key), redrawn(state.critic, critic_key)
    return state._replace(policy=policy, policy_target=policy, critic=critic, target=critic)


METHOD = dataclasses.replace(td3_bc.METHOD, name="td3-bc-pytorch", stream=None, create=create, published=None)
