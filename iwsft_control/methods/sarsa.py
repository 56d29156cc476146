"""SARSA: the Q-function of the policy that made the data, which OneStep improves once.

    Q       E[(r + gamma (1 - d) min_j Q'_j(s', a') - Q_i(s, a))^2],  a' the data's next action

Brandfonbrener et al., "Offline RL Without Off-Policy Evaluation", NeurIPS 2021, section 3.

Deviations: two critics and the smaller of their targets (authors: one; two as an option), two layers of 256 (1,024),
batches of 256 (512), learning rate 3e-4 (1e-4), a target that moves every step (every second one), 200,000 steps (2M).
The last transition of a truncated episode has no next action in the data and is left out.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from iwsft_control.configs.sarsa import CARD, SarsaConfig
from iwsft_control.datasets.transitions import FollowedTransitions, scaled_transitions, with_next_actions
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning.gradient import adam, descend
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.networks.mlp import TwinCritic


class SarsaState(NamedTuple):
    """Parameters of Q and of its target, and the optimiser's state."""

    critic: Any
    target: Any
    optimiser: Any


def prepare(config: SarsaConfig, inputs: Inputs) -> Prepared:
    """Transitions with their next actions, rewards scaled by 1000 / (best - worst episode return)."""
    return Prepared(with_next_actions(scaled_transitions(inputs.data), inputs.data))


def create(config: SarsaConfig, observation_dim: int, action_dim: int, key: jax.Array) -> SarsaState:
    """Fresh parameters from ``key``."""
    critic = TwinCritic(config.hidden).init(key, jnp.zeros((1, observation_dim)), jnp.zeros((1, action_dim)))
    return SarsaState(critic, critic, adam(config.learning_rate).init(critic))


def critic_loss(config: SarsaConfig, critic: Any, target: Any, batch: FollowedTransitions) -> jax.Array:
    """E[sum_i (r + gamma (1 - d) min_j Q'_j(s', a') - Q_i(s, a))^2] over the rows whose target the data know."""
    net = TwinCritic(config.hidden)
    next_q = net.apply(target, batch.next_observations, batch.next_actions).min(axis=0)
    backup = jax.lax.stop_gradient(batch.rewards + config.discount * (1 - batch.terminations) * next_q)
    known = jnp.maximum(batch.has_next, batch.terminations)
    squared = ((net.apply(critic, batch.observations, batch.actions) - backup) ** 2).sum(axis=0)
    return (known * squared).sum() / jnp.maximum(known.sum(), 1.0)


def update(
    config: SarsaConfig, state: SarsaState, batch: FollowedTransitions, key: jax.Array
) -> tuple[SarsaState, dict[str, jax.Array]]:
    """One step of the critics and of their targets; nothing is random."""
    critic, optimiser, loss = descend(
        partial(critic_loss, config), adam(config.learning_rate), state.critic, state.optimiser, state.target, batch
    )
    target = optax.incremental_update(critic, state.target, config.target_rate)
    return SarsaState(critic, target, optimiser), {"critic_loss": loss}


def values(config: SarsaConfig, data: Dataset, states: SarsaState) -> dict[str, Any]:
    """What is kept: the critics' parameters (S, ...)."""
    return {"params": states.critic}


METHOD = Method(
    **vars(CARD),
    prepare=prepare,
    create=create,
    update=update,
    random_update=False,
    export=None,
    values=values,
    quick=lambda config: dataclasses.replace(config, steps=min(config.steps, 1000)),
)
