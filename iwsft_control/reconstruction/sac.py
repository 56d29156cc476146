"""Soft actor-critic, the learner that D4RL's locomotion data came from (rlkit's form of it).

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905: twin critics (eq. 5-6),
reparametrised policy (eq. 7-9), automatic temperature (eq. 18) with target entropy -A.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iwsft_control.datasets.transitions import Transitions
from iwsft_control.learning.gradient import adam
from iwsft_control.networks.mlp import TwinCritic
from iwsft_control.networks.policies import TanhGaussianPolicy, numpy_mean_std, squash


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """Hyper-parameters; the defaults are rlkit's."""

    updates_per_step: float = 1.0
    learning_rate: float = 3e-4
    batch_size: int = 256
    discount: float = 0.99
    target_rate: float = 0.005
    hidden: tuple[int, ...] = (256, 256)
    first_steps: int = 1000  # of the untrained policy, before the first update


class SACState(NamedTuple):
    """Everything that SAC learns."""

    policy: Any
    critic: Any
    target: Any
    log_alpha: jax.Array
    optimisers: Any


HIDDEN_BIAS = 0.1  # rlkit's initial bias of hidden layers
POLICY_LAST_LAYER, CRITIC_LAST_LAYER = 1e-3, 3e-3  # rlkit's bounds of the last layers' initial weights and biases


def initialise(params: Any, last_layer: float, key: jax.Array) -> Any:
    """Parameters of one or more MLPs drawn anew as rlkit draws them (as of 2019).

    Hidden layers: weights uniform in +-1/sqrt(width), biases 0.1. rlkit calls the bound's width "fan in", but reads it
    from the wrong axis of PyTorch's (out, in) weights: it is the layer's own width, so that the first layer starts
    several times smaller than by its fan-in. Last layer: weights and biases uniform in +-``last_layer``.

    Args:
        params: Flax parameters {"params": {"net": {"Dense_0": {"kernel": (..., in, out), "bias": (..., out)}, ...}}}.
        last_layer: bound of the last layer's.
    """
    layers = params["params"]["net"]
    drawn = {}
    for i in range(len(layers)):
        kernel, bias = (layers[f"Dense_{i}"][k] for k in ("kernel", "bias"))
        kernel_key, bias_key = jax.random.split(jax.random.fold_in(key, i))
        last = i == len(layers) - 1
        bound = last_layer if last else 1 / math.sqrt(kernel.shape[-1])
        drawn[f"Dense_{i}"] = {
            "kernel": jax.random.uniform(kernel_key, kernel.shape, minval=-bound, maxval=bound),
            "bias": jax.random.uniform(bias_key, bias.shape, minval=-bound, maxval=bound)
            if last
            else jnp.full(bias.shape, HIDDEN_BIAS),
        }
    return {"params": {"net": drawn}}


def create(config: SACConfig, observation_dim: int, action_dim: int, key: jax.Array) -> SACState:
    """Fresh parameters from ``key``."""
    policy_key, critic_key = jax.random.split(key)
    observation, action = jnp.zeros((1, observation_dim)), jnp.zeros((1, action_dim))
    policy = TanhGaussianPolicy(config.hidden, action_dim).init(policy_key, observation)
    critic = TwinCritic(config.hidden).init(critic_key, observation, action)
    policy = initialise(policy, POLICY_LAST_LAYER, policy_key)
    critic = initialise(critic, CRITIC_LAST_LAYER, critic_key)
    log_alpha = jnp.zeros(())
    optimiser = adam(config.learning_rate)
    return SACState(policy, critic, critic, log_alpha, tuple(optimiser.init(p) for p in (policy, critic, log_alpha)))


def sample(
    policy: TanhGaussianPolicy, params: Any, observations: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Actions (N, A) drawn from the policy and their log pi(a|s) (N,)."""
    mean, log_std = policy.apply(params, observations)
    return squash(mean, log_std, jax.random.normal(key, mean.shape))


def update(config: SACConfig, state: SACState, batch: Transitions, key: jax.Array) -> SACState:
    """One update of temperature, policy, critics and target critics, all on one batch.

    As in rlkit the losses use the temperature after its step, and policy and critics as they were before theirs.
    """
    action_dim = batch.actions.shape[-1]
    policy_net, critic_net = TanhGaussianPolicy(config.hidden, action_dim), TwinCritic(config.hidden)
    optimiser = adam(config.learning_rate)
    policy_key, target_key = jax.random.split(key)
    policy_optimiser, critic_optimiser, alpha_optimiser = state.optimisers

    def policy_loss(params):
        actions, log_prob = sample(policy_net, params, batch.observations, policy_key)
        # d/d log_alpha of -log_alpha (log pi + target entropy -A); the temperature steps before it is used.
        grad = -jax.lax.stop_gradient(log_prob - action_dim).mean()
        step, stepped = optimiser.update(grad, alpha_optimiser)
        log_alpha = state.log_alpha + step
        q = critic_net.apply(state.critic, batch.observations, actions).min(axis=0)
        return (jnp.exp(log_alpha) * log_prob - q).mean(), (log_alpha, stepped)

    policy_grad, (log_alpha, alpha_optimiser) = jax.grad(policy_loss, has_aux=True)(state.policy)

    next_actions, next_log_prob = sample(policy_net, state.policy, batch.next_observations, target_key)
    next_q = critic_net.apply(state.target, batch.next_observations, next_actions).min(axis=0)
    backup = next_q - jnp.exp(log_alpha) * next_log_prob
    backup = batch.rewards + config.discount * (1 - batch.terminations) * backup

    def critic_loss(params):
        q = critic_net.apply(params, batch.observations, batch.actions)
        return ((q - backup) ** 2).mean(axis=-1).sum()

    critic_grad = jax.grad(critic_loss)(state.critic)
    step, policy_optimiser = optimiser.update(policy_grad, policy_optimiser)
    policy = optax.apply_updates(state.policy, step)
    step, critic_optimiser = optimiser.update(critic_grad, critic_optimiser)
    critic = optax.apply_updates(state.critic, step)
    target = optax.incremental_update(critic, state.target, config.target_rate)
    return SACState(policy, critic, target, log_alpha, (policy_optimiser, critic_optimiser, alpha_optimiser))


@partial(jax.jit, static_argnums=(0, 1))
def train(config: SACConfig, updates: int, state: SACState, replay: Transitions, size: jax.Array, key: jax.Array):
    """``updates`` updates on uniform batches from the first ``size`` rows of the replay buffer, in one program."""

    def body(state, key):
        index_key, update_key = jax.random.split(key)
        rows = jax.random.randint(index_key, (config.batch_size,), 0, size)
        return update(config, state, jax.tree.map(lambda x: x[rows], replay), update_key), None

    return jax.lax.scan(body, state, jax.random.split(key, updates))[0]


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_together(config: SACConfig, updates: int, states: SACState, replays: Transitions, size: Any, keys: jax.Array):
    """:func:`train` for several runs (S, ...) as one program; ``keys`` (S,)."""
    one = partial(train, config, updates)
    return jax.vmap(one, in_axes=(0, 0, None, 0))(states, replays, size, keys)


@partial(jax.jit, donate_argnums=0)
def insert_together(replays: Transitions, rows: Transitions, start: jax.Array) -> Transitions:
    """:func:`insert` for several runs (S, ...)."""
    return jax.tree.map(lambda b, r: jax.lax.dynamic_update_slice_in_dim(b, r, start, 1), replays, rows)


@partial(jax.jit, donate_argnums=0)
def insert(replay: Transitions, rows: Transitions, start: jax.Array) -> Transitions:
    """Write ``rows`` into the replay buffer from row ``start`` on, in place."""
    return jax.tree.map(lambda b, r: jax.lax.dynamic_update_slice_in_dim(b, r, start, 0), replay, rows)


def act(policy: Any, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Sampled actions tanh(mu + sigma noise), in NumPy: a single observation is not worth a device call.

    Args:
        policy: NumPy parameters of :class:`TanhGaussianPolicy`.
        observations: (..., O); noise: (..., A) standard normal.
    """
    mean, std = numpy_mean_std(policy["params"]["net"], observations)
    return np.tanh(mean + std * noise).astype(np.float32)
