"""The learned Q-function: IQL's twin critics and expectile value function, on the whole data set.

Kostrikov, Nair & Levine, "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022: V by expectile
regression on the target critics (eq. 5), Q by its one-step backup r + gamma V(s') (eq. 6), Polyak-averaged targets.
Only true terminal states stop the bootstrap; truncations do not.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iwsft_control.configs.critic import CARD, CriticConfig
from iwsft_control.datasets.transitions import Demonstrations, Transitions, in_chunks, scaled_transitions
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning.gradient import adam, descend
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.learning.temporal_difference import temporal_difference_loss
from iwsft_control.networks.mlp import TwinCritic, ValueFunction


class CriticState(NamedTuple):
    """Parameters of Q, of its target and of V, and the optimisers' states."""

    critic: Any
    target: Any
    value: Any
    optimisers: Any


def create(config: CriticConfig, observation_dim: int, action_dim: int, key: jax.Array) -> CriticState:
    """Fresh parameters from ``key``."""
    critic_key, value_key = jax.random.split(key)
    observation, action = jnp.zeros((1, observation_dim)), jnp.zeros((1, action_dim))
    critic = TwinCritic(config.hidden).init(critic_key, observation, action)
    value = ValueFunction(config.hidden).init(value_key, observation)
    optimiser = adam(config.learning_rate)
    return CriticState(critic, critic, value, (optimiser.init(critic), optimiser.init(value)))


def expectile_loss(residual: jax.Array, expectile: float) -> jax.Array:
    """L_tau(u) = |tau - 1(u < 0)| u^2 (IQL, eq. 4), elementwise."""
    return jnp.where(residual < 0, 1 - expectile, expectile) * residual**2


def value_loss(config: CriticConfig, value: Any, target: Any, batch: Transitions) -> jax.Array:
    """E[L_tau(min_i Q_i(s, a) - V(s))] (IQL, eq. 5)."""
    q = TwinCritic(config.hidden).apply(target, batch.observations, batch.actions).min(axis=0)
    return expectile_loss(q - ValueFunction(config.hidden).apply(value, batch.observations), config.expectile).mean()


def critic_loss(config: CriticConfig, critic: Any, value: Any, batch: Transitions) -> jax.Array:
    """E[sum_i (r + gamma (1 - d) V(s') - Q_i(s, a))^2] (IQL, eq. 6)."""
    next_value = ValueFunction(config.hidden).apply(value, batch.next_observations)
    q = TwinCritic(config.hidden).apply(critic, batch.observations, batch.actions)
    return temporal_difference_loss(config.discount, q, next_value, batch)


def update(
    config: CriticConfig, state: CriticState, batch: Transitions, key: jax.Array | None = None
) -> tuple[CriticState, dict[str, jax.Array]]:
    """One update of V, then of Q with the new V, then of the target; nothing is random."""
    optimiser = adam(config.learning_rate)
    value, value_optimiser, v_loss = descend(
        partial(value_loss, config), optimiser, state.value, state.optimisers[1], state.target, batch
    )
    critic, critic_optimiser, q_loss = descend(
        partial(critic_loss, config), optimiser, state.critic, state.optimisers[0], value, batch
    )
    target = optax.incremental_update(critic, state.target, config.target_rate)
    return CriticState(critic, target, value, (critic_optimiser, value_optimiser)), {
        "critic_loss": q_loss,
        "value_loss": v_loss,
    }


def prepare(config: CriticConfig, inputs: Inputs) -> Prepared:
    """Transitions with rewards scaled by 1000 / (best - worst episode return)."""
    return Prepared(scaled_transitions(inputs.data))


@partial(jax.jit, static_argnums=0)
def min_q(hidden: tuple[int, ...], critic: Any, rows: Demonstrations) -> jax.Array:
    """min_i Q_i(s, a) of every row, (N,), in cache-sized chunks."""
    net = TwinCritic(hidden)
    found = jax.lax.map(lambda x: net.apply(critic, x.observations, x.actions).min(axis=0), in_chunks(rows))
    return found.reshape(-1)[: rows.actions.shape[0]]


@partial(jax.jit, static_argnums=0)
def _v(config: CriticConfig, value: Any, rows: Demonstrations) -> jax.Array:
    net = ValueFunction(config.hidden)
    found = jax.lax.map(lambda x: net.apply(value, x.observations), in_chunks(rows))
    return found.reshape(-1)[: rows.actions.shape[0]]


def values_of(
    config: CriticConfig, state: CriticState, observations: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """min_i Q_i(s, a) (target critics) and V(s) of every row, (N,) each."""
    rows = Demonstrations(observations, actions)
    return np.asarray(min_q(config.hidden, state.target, rows)), np.asarray(_v(config, state.value, rows))


def values(config: CriticConfig, data: Dataset, states: CriticState) -> dict[str, Any]:
    """What is kept of the critics of S seeds: "q" and "v" of every transition (S, N), and "params"."""
    seeds = jax.tree.leaves(states)[0].shape[0]
    each = [jax.tree.map(lambda x, s=s: x[s], states) for s in range(seeds)]
    q, v = zip(*(values_of(config, state, data.observations, data.actions) for state in each), strict=True)
    params = {"critic": states.critic, "target": states.target, "value": states.value}
    return {"q": np.stack(q), "v": np.stack(v), "params": params}


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
