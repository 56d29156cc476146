"""AWAC: Nair et al., "AWAC: Accelerating Online Reinforcement Learning with Offline Datasets", arXiv 2006.09359.

    Q       E[(r + gamma (1 - d) min_j Q'_j(s', a') - Q_i(s, a))^2],  a' ~ pi(s')                    eq. 3
    policy  -E[min(exp(A(s, a) / lambda), 100) log pi(a|s)],  A = min_i Q_i(s, a) - min_i Q_i(s, a_pi)   eq. 13

with a_pi ~ pi(s) one sample, for V(s) = E_pi[Q(s, .)]. Offline training only, with lambda = 1.

Deviations, all but the first two CORL's as well: the policy has two layers of 256 (authors: four; critics as here); log
standard deviations are clamped to [-5, 2] and start at 0 (authors: a sigmoid's [-6, 0], from -3); weights are clipped
at 100 instead of normalised over the batch (authors: a softmax); the advantage is that of the critics after their step
(authors: before); batches of 256 (1,024); no weight decay; sampled actions are clipped to the action box. Flax's
initialisation; the policy that is evaluated is the exponential average of the parameters, as for most methods here.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from iwsft_control.datasets import transitions
from iwsft_control.datasets.transitions import CriticData
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning import temporal_difference
from iwsft_control.networks.mlp import TwinCritic
from iwsft_control.networks.policies import GaussianPolicy, policy_log_prob


@dataclasses.dataclass(frozen=True)
class AWACConfig:
    """Hyper-parameters."""

    steps: int = 200_000
    """Gradient steps of critics and policy (chosen by results/curves)."""
    batch_size: int = 256
    learning_rate: float = 3e-4
    discount: float = 0.99
    target_rate: float = 0.005
    hidden: tuple[int, ...] = (256, 256)
    temperature: float = 1.0
    """lambda: what advantages are divided by."""
    max_weight: float = 100.0
    """Largest advantage weight."""
    average_decay: float = 0.999
    """The policy that is evaluated is the exponential average of its parameters."""


class AWACState(NamedTuple):
    """Policy, critics, target critics and the optimisers' states."""

    policy: Any
    critic: Any
    target: Any
    optimisers: Any


def prepare(config: AWACConfig, data: Dataset) -> CriticData:
    """Transitions as they are."""
    return transitions.transitions(data)


def create(config: AWACConfig, observation_dim: int, action_dim: int, key: jax.Array) -> AWACState:
    """Fresh parameters from ``key``."""
    policy_key, critic_key = jax.random.split(key)
    observation, action = jnp.zeros((1, observation_dim)), jnp.zeros((1, action_dim))
    policy = GaussianPolicy(config.hidden, action_dim).init(policy_key, observation)
    critic = TwinCritic(config.hidden).init(critic_key, observation, action)
    optimiser = optax.adam(config.learning_rate)
    return AWACState(policy, critic, critic, (optimiser.init(policy), optimiser.init(critic)))


def sample(config: AWACConfig, policy: Any, observations: jax.Array, noise: jax.Array) -> jax.Array:
    """Actions mu(s) + sigma noise, clipped to the action box: (N, O), standard normal (N, A) -> (N, A)."""
    mean, log_std = GaussianPolicy(config.hidden, noise.shape[-1]).apply(policy, observations)
    return jnp.clip(mean + jnp.exp(log_std) * noise, -1.0, 1.0)


def critic_loss(config: AWACConfig, critic: Any, state: AWACState, batch: CriticData, noise: jax.Array) -> jax.Array:
    """E[sum_i (r + gamma (1 - d) min_j Q'_j(s', a') - Q_i(s, a))^2], a' ~ pi(s') from ``noise`` (N, A) (eq. 3)."""
    next_actions = sample(config, state.policy, batch.next_observations, noise)
    next_q = TwinCritic(config.hidden).apply(state.target, batch.next_observations, next_actions).min(axis=0)
    q = TwinCritic(config.hidden).apply(critic, batch.observations, batch.actions)
    return temporal_difference.temporal_difference_loss(config.discount, q, next_q, batch)


def policy_loss(config: AWACConfig, policy: Any, critic: Any, batch: CriticData, noise: jax.Array) -> jax.Array:
    """-E[min(exp(A / lambda), max_weight) log pi(a|s)], V from one action, drawn with ``noise`` (N, A) (eq. 13)."""
    net = TwinCritic(config.hidden)
    v = net.apply(critic, batch.observations, sample(config, policy, batch.observations, noise)).min(axis=0)
    advantage = net.apply(critic, batch.observations, batch.actions).min(axis=0) - v
    weight = jnp.minimum(jnp.exp(advantage / config.temperature), config.max_weight)
    policy_net = GaussianPolicy(config.hidden, batch.actions.shape[-1])
    return -(
        jax.lax.stop_gradient(weight) * policy_log_prob(policy_net, policy, batch.observations, batch.actions)
    ).mean()


def update(
    config: AWACConfig, state: AWACState, batch: CriticData, key: jax.Array
) -> tuple[AWACState, dict[str, jax.Array]]:
    """One step of the critics, of the policy with the new critics, and of the targets."""
    optimiser = optax.adam(config.learning_rate)
    next_noise, noise = jax.random.normal(key, (2, *batch.actions.shape))
    q_loss, grad = jax.value_and_grad(partial(critic_loss, config))(state.critic, state, batch, next_noise)
    change, critic_optimiser = optimiser.update(grad, state.optimisers[1])
    critic = optax.apply_updates(state.critic, change)
    loss, grad = jax.value_and_grad(partial(policy_loss, config))(state.policy, critic, batch, noise)
    change, policy_optimiser = optimiser.update(grad, state.optimisers[0])
    policy = optax.apply_updates(state.policy, change)
    target = optax.incremental_update(critic, state.target, config.target_rate)
    return AWACState(policy, critic, target, (policy_optimiser, critic_optimiser)), {
        "critic_loss": q_loss,
        "policy_loss": loss,
    }


def policy(config: AWACConfig, data: Dataset, parameters: Any) -> Any:
    """The policy acts by its mean."""
    return parameters
