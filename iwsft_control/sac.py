"""Soft actor-critic, the learner that D4RL's locomotion data came from (rlkit's form of it).

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv 1812.05905: twin critics (eq. 5-6),
reparametrised policy (eq. 7-9), automatic temperature (eq. 18) with target entropy -A.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iwsft_control.networks import (
    SAC_LOG_STD_MAX,
    SAC_LOG_STD_MIN,
    TanhGaussianPolicy,
    TwinCritic,
    gaussian_log_prob,
    numpy_mlp,
)


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """Hyper-parameters; rlkit's, but for the number of updates a step."""

    updates_per_step: float = 0.5
    learning_rate: float = 3e-4
    batch_size: int = 256
    discount: float = 0.99
    target_rate: float = 0.005
    hidden: tuple[int, ...] = (256, 256)
    random_steps: int = 5000  # uniform actions before the first update


class SACState(NamedTuple):
    """Everything that SAC learns."""

    policy: Any
    critic: Any
    target: Any
    log_alpha: jax.Array
    optimisers: Any


class Transitions(NamedTuple):
    """A batch of transitions: (N, O), (N, A), (N,), (N, O), (N,) (1.0 where the next state is terminal)."""

    observations: Any
    actions: Any
    rewards: Any
    next_observations: Any
    terminations: Any


def create(config: SACConfig, observation_dim: int, action_dim: int, key: jax.Array) -> SACState:
    """Fresh parameters from ``key``."""
    policy_key, critic_key = jax.random.split(key)
    observation, action = jnp.zeros((1, observation_dim)), jnp.zeros((1, action_dim))
    policy = TanhGaussianPolicy(config.hidden, action_dim).init(policy_key, observation)
    critic = TwinCritic(config.hidden).init(critic_key, observation, action)
    log_alpha = jnp.zeros(())
    optimiser = optax.adam(config.learning_rate)
    return SACState(policy, critic, critic, log_alpha, tuple(optimiser.init(p) for p in (policy, critic, log_alpha)))


def squash(mean: jax.Array, log_std: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions a = tanh(mean + std noise) (..., A) and log pi(a|s) (...), the Jacobian of tanh in its stable form."""
    u = mean + jnp.exp(log_std) * noise
    log_jacobian = 2 * (jnp.log(2.0) - u - jax.nn.softplus(-2 * u))
    return jnp.tanh(u), gaussian_log_prob(mean, log_std, u) - log_jacobian.sum(-1)


def sample(
    policy: TanhGaussianPolicy, params: Any, observations: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Actions (N, A) drawn from the policy and their log pi(a|s) (N,)."""
    mean, log_std = policy.apply(params, observations)
    return squash(mean, log_std, jax.random.normal(key, mean.shape))


def update(config: SACConfig, state: SACState, batch: Transitions, key: jax.Array) -> SACState:
    """One update of temperature, policy, critics and target critics, all on one batch."""
    action_dim = batch.actions.shape[-1]
    policy_net, critic_net = TanhGaussianPolicy(config.hidden, action_dim), TwinCritic(config.hidden)
    optimiser = optax.adam(config.learning_rate)
    policy_key, target_key = jax.random.split(key)
    alpha = jnp.exp(state.log_alpha)

    def policy_loss(params):
        actions, log_prob = sample(policy_net, params, batch.observations, policy_key)
        q = critic_net.apply(state.critic, batch.observations, actions).min(axis=0)
        return (alpha * log_prob - q).mean(), log_prob

    next_actions, next_log_prob = sample(policy_net, state.policy, batch.next_observations, target_key)
    next_q = critic_net.apply(state.target, batch.next_observations, next_actions).min(axis=0)
    backup = batch.rewards + config.discount * (1 - batch.terminations) * (next_q - alpha * next_log_prob)

    def critic_loss(params):
        q = critic_net.apply(params, batch.observations, batch.actions)
        return ((q - backup) ** 2).mean(axis=-1).sum()

    policy_grad, log_prob = jax.grad(policy_loss, has_aux=True)(state.policy)
    critic_grad = jax.grad(critic_loss)(state.critic)
    alpha_grad = -(log_prob - action_dim).mean()  # d/d log_alpha of -log_alpha (log pi + target entropy)

    params, optimisers = [], []
    for grad, param, optimiser_state in zip(
        (policy_grad, critic_grad, alpha_grad),
        (state.policy, state.critic, state.log_alpha),
        state.optimisers,
        strict=True,
    ):
        step, optimiser_state = optimiser.update(grad, optimiser_state)
        params.append(optax.apply_updates(param, step))
        optimisers.append(optimiser_state)
    target = optax.incremental_update(params[1], state.target, config.target_rate)
    return SACState(params[0], params[1], target, params[2], tuple(optimisers))


@partial(jax.jit, static_argnums=(0, 1))
def train(config: SACConfig, updates: int, state: SACState, replay: Transitions, size: jax.Array, key: jax.Array):
    """``updates`` updates on uniform batches from the first ``size`` rows of the replay buffer, in one program."""

    def body(state, key):
        index_key, update_key = jax.random.split(key)
        rows = jax.random.randint(index_key, (config.batch_size,), 0, size)
        return update(config, state, jax.tree.map(lambda x: x[rows], replay), update_key), None

    return jax.lax.scan(body, state, jax.random.split(key, updates))[0]


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
    mean, log_std = np.split(numpy_mlp(policy["params"]["net"], observations), 2, axis=-1)
    return np.tanh(mean + np.exp(np.clip(log_std, SAC_LOG_STD_MIN, SAC_LOG_STD_MAX)) * noise).astype(np.float32)
