"""AWAC: Nair et al., "AWAC: Accelerating Online Reinforcement Learning with Offline Datasets", arXiv 2006.09359.

    Q       E[(r + gamma (1 - d) min_j Q'_j(s', a') - Q_i(s, a))^2],  a' ~ pi(s')                    eq. 3
    policy  -E[min(exp(A(s, a) / lambda), 100) log pi(a|s)],  A = min_i Q_i(s, a) - min_i Q_i(s, a_pi)   eq. 13

with a_pi ~ pi(s) one sample, for V(s) = E_pi[Q(s, .)]. Offline training only, with lambda = 1
(authors, on MuJoCo: 2; CORL, on medium-replay: 1/3).

Deviations, all but the first two CORL's as well: the policy has two layers of 256 (authors: four; critics as here); log
standard deviations are clamped to [-5, 2] and start at 0 (authors: a sigmoid's [-6, 0], from -3); weights are clipped
at 100 instead of normalised over the batch (authors: a softmax); the advantage is that of the critics after their step
(authors: before); batches of 256 (1,024); no weight decay; sampled actions are clipped to the action box. Flax's
initialisation; the policy that is evaluated is the exponential average of the parameters, as for most methods here.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from iwsft_control.configs.awac import CARD, AWACConfig
from iwsft_control.datasets.transitions import Transitions, transitions
from iwsft_control.learning.gradient import descend
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.learning.temporal_difference import temporal_difference_loss
from iwsft_control.networks.mlp import TwinCritic
from iwsft_control.networks.policies import GaussianPolicy, policy_log_prob


class AWACState(NamedTuple):
    """Policy, critics, target critics and the optimisers' states."""

    policy: Any
    critic: Any
    target: Any
    optimisers: Any


def prepare(config: AWACConfig, inputs: Inputs) -> Prepared:
    """Transitions as they are."""
    return Prepared(transitions(inputs.data))


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


def critic_loss(config: AWACConfig, critic: Any, state: AWACState, batch: Transitions, noise: jax.Array) -> jax.Array:
    """E[sum_i (r + gamma (1 - d) min_j Q'_j(s', a') - Q_i(s, a))^2], a' ~ pi(s') from ``noise`` (N, A) (eq. 3)."""
    next_actions = sample(config, state.policy, batch.next_observations, noise)
    next_q = TwinCritic(config.hidden).apply(state.target, batch.next_observations, next_actions).min(axis=0)
    q = TwinCritic(config.hidden).apply(critic, batch.observations, batch.actions)
    return temporal_difference_loss(config.discount, q, next_q, batch)


def policy_loss(config: AWACConfig, policy: Any, critic: Any, batch: Transitions, noise: jax.Array) -> jax.Array:
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
    config: AWACConfig, state: AWACState, batch: Transitions, key: jax.Array
) -> tuple[AWACState, dict[str, jax.Array]]:
    """One step of the critics, of the policy with the new critics, and of the targets."""
    optimiser = optax.adam(config.learning_rate)
    next_noise, noise = jax.random.normal(key, (2, *batch.actions.shape))
    critic, critic_optimiser, q_loss = descend(
        partial(critic_loss, config), optimiser, state.critic, state.optimisers[1], state, batch, next_noise
    )
    policy, policy_optimiser, loss = descend(
        partial(policy_loss, config), optimiser, state.policy, state.optimisers[0], critic, batch, noise
    )
    target = optax.incremental_update(critic, state.target, config.target_rate)
    return AWACState(policy, critic, target, (policy_optimiser, critic_optimiser)), {
        "critic_loss": q_loss,
        "policy_loss": loss,
    }


METHOD = Method(
    **vars(CARD),
    prepare=prepare,
    create=create,
    update=update,
)
