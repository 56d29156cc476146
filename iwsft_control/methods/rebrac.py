"""ReBRAC: Tarasov et al., "Revisiting the Minimalist Approach to Offline Reinforcement Learning", NeurIPS 2023.

    Q       E[(r + gamma (1 - d) (min_i Q'_i(s', a') - beta_2 |a' - a'_data|^2) - Q_i(s, a))^2]      eq. 4
    policy  E[beta_1 |pi(s) - a|^2 - lambda min_i Q_i(s, pi(s))],  lambda = 1 / E|min_i Q_i|         eq. 3

on TD3's schedule and target smoothing, with three layers and layer normalisation in the critics (section 3); |.|^2 is
summed over action dimensions. a'_data is the data's next action.

One default (beta_1, beta_2) serves all tasks: the middle of the paper's search grid, chosen before any return was seen.
:data:`TUNED` holds the paper's values (table 11), tuned per task with online returns, which is more than the other
methods are given.

Deviations: 200,000 updates with TD3+BC's batch and learning rate, 256 and 3e-4, which the authors' configurations have
for Adroit. For these tasks they have 1M, 1,024 and 1e-3 (table 10; --rebrac.steps, --rebrac.batch-size,
--rebrac.learning-rate): 6 to 11 hours of one core. Where the data have no next action (the last transition of a
truncated episode) the penalty of the critic is zero, and the transition stays; the policy's target follows the policy
after its step (authors: before); Flax's initialisation.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from iwsft_control.base.errors import UserError, require
from iwsft_control.configs.rebrac import CARD, TUNED_CARD, ReBRACConfig
from iwsft_control.datasets.transitions import FollowedTransitions, transitions, with_next_actions
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.learning.temporal_difference import temporal_difference_loss
from iwsft_control.methods.td3_bc import TD3State, create_td3, smoothed_actions, update_td3
from iwsft_control.networks.mlp import TwinCritic
from iwsft_control.networks.policies import DeterministicPolicy

# (beta_1, beta_2), the paper's table 11, for D4RL's medium-replay-v2.
TUNED = {
    "hopper-medium-replay": (0.05, 0.5),
    "halfcheetah-medium-replay": (0.01, 0.001),
    "walker2d-medium-replay": (0.05, 0.01),
}


def prepare(config: ReBRACConfig, inputs: Inputs) -> Prepared:
    """Transitions, observations and rewards as they are, each with the next action of its episode."""
    return Prepared(with_next_actions(transitions(inputs.data), inputs.data))


def create(config: ReBRACConfig, observation_dim: int, action_dim: int, key: jax.Array) -> TD3State:
    """Fresh parameters from ``key``."""
    policy, critic = DeterministicPolicy(config.hidden, action_dim), TwinCritic(config.hidden, layer_norm=True)
    return create_td3(policy, critic, config, observation_dim, action_dim, key)


def critic_loss(
    config: ReBRACConfig, critic: Any, state: TD3State, batch: FollowedTransitions, key: jax.Array
) -> jax.Array:
    """E[sum_i (r + gamma (1 - d) (min_j Q'_j(s', a') - beta_2 |a' - a'_data|^2) - Q_i(s, a))^2] (eq. 4)."""
    net = TwinCritic(config.hidden, layer_norm=True)
    target_policy = DeterministicPolicy(config.hidden, batch.actions.shape[-1])
    next_actions = smoothed_actions(config, target_policy.apply(state.policy_target, batch.next_observations), key)
    penalty = batch.has_next * ((next_actions - batch.next_actions) ** 2).sum(axis=-1)
    next_q = net.apply(state.target, batch.next_observations, next_actions).min(axis=0) - config.beta_critic * penalty
    q = net.apply(critic, batch.observations, batch.actions)
    return temporal_difference_loss(config.discount, q, next_q, batch)


def policy_loss(config: ReBRACConfig, policy: Any, critic: Any, batch: FollowedTransitions) -> jax.Array:
    """E[beta_1 |pi(s) - a|^2 - lambda min_i Q_i(s, pi(s))], lambda = 1 / E|min_i Q_i| (eq. 3)."""
    actions = DeterministicPolicy(config.hidden, batch.actions.shape[-1]).apply(policy, batch.observations)
    q = TwinCritic(config.hidden, layer_norm=True).apply(critic, batch.observations, actions).min(axis=0)
    weight = 1.0 / jax.lax.stop_gradient(jnp.abs(q).mean())
    cloning = ((actions - batch.actions) ** 2).sum(axis=-1)
    return (config.beta_policy * cloning - weight * q).mean()


update = partial(update_td3, critic_loss, policy_loss)


def tuned(config: ReBRACConfig, task: str) -> ReBRACConfig:
    """The paper's weights for a task.

    Raises:
        UserError: the paper has none for the task, or others were given.
    """
    given = next((n for n in ("beta_policy", "beta_critic") if getattr(config, n) != getattr(ReBRACConfig, n)), None)
    option = f"--rebrac.{given}".replace("_", "-")
    require(given is None, f"{option} has no effect on rebrac-tuned, which has the paper's of each task: use rebrac.")
    if task not in TUNED:
        raise UserError(f"rebrac-tuned is for --env {', '.join(TUNED)}, not for {task}; use rebrac.")
    beta_policy, beta_critic = TUNED[task]
    return dataclasses.replace(config, beta_policy=beta_policy, beta_critic=beta_critic)


METHOD = Method(
    **vars(CARD),
    prepare=prepare,
    create=create,
    update=update,
    sparse_logs=("policy_loss",),
)
TUNED_METHOD = dataclasses.replace(METHOD, **vars(TUNED_CARD), for_task=tuned)
METHODS = (METHOD, TUNED_METHOD)
