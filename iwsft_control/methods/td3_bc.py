"""TD3+BC: Fujimoto & Gu, "A Minimalist Approach to Offline Reinforcement Learning", NeurIPS 2021.

    Q       E[(r + gamma (1 - d) min_i Q'_i(s', a') - Q_i(s, a))^2],  a' = clip(pi'(s') + clip(noise, +-c), +-1)   TD3
    policy  -lambda E[Q_1(s, pi(s))] + E[(pi(s) - a)^2],  lambda = alpha / E|Q_1(s, pi(s))|                  eq. 3, 5

Observations are normalised by the data's mean and standard deviation (eq. 4); the policy that is evaluated has that
folded into its first layer. Policy and targets move every second step. Hyper-parameters are the paper's (table 4):
alpha 2.5, noise 0.2 clipped at 0.5, batch 256, learning rates 3e-4.

The policy that is evaluated has the last parameters, as in the paper, not their exponential average, as most methods
here: on Walker2d the average costs TD3+BC about 12 points (learning curves, tuning seeds 100 to 102).

Deviation: Flax's initialisation.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iwsft_control.configs.td3_bc import CARD, TD3BCConfig, TD3Config
from iwsft_control.datasets.transitions import Transitions, transitions
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning.gradient import adam, descend
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.learning.temporal_difference import temporal_difference_loss
from iwsft_control.networks.mlp import TwinCritic, first_critic
from iwsft_control.networks.policies import DeterministicPolicy, Exported


class TD3State(NamedTuple):
    """Policy, critics, their targets, the optimisers' states and the number of steps taken."""

    policy: Any
    policy_target: Any
    critic: Any
    target: Any
    optimisers: Any
    step: jax.Array


def normalisation(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (plus 1e-3) of the observations, (O,) each."""
    return data.observations.mean(axis=0), data.observations.std(axis=0) + np.float32(1e-3)


def prepare(config: TD3BCConfig, inputs: Inputs) -> Prepared:
    """Transitions with normalised observations, rewards as they are."""
    mean, std = normalisation(inputs.data)
    raw = transitions(inputs.data)
    # By JAX: NumPy's quotient differs in the last bit, and the data were accepted by scores of this one.
    observations, next_observations = ((jnp.asarray(x) - mean) / std for x in (raw.observations, raw.next_observations))
    return Prepared(raw._replace(observations=observations, next_observations=next_observations))


def create(config: TD3BCConfig, observation_dim: int, action_dim: int, key: jax.Array) -> TD3State:
    """Fresh parameters from ``key``."""
    return create_td3(
        DeterministicPolicy(config.hidden, action_dim),
        TwinCritic(config.hidden),
        config,
        observation_dim,
        action_dim,
        key,
    )


def create_td3(
    policy_net, critic_net, config: TD3Config, observation_dim: int, action_dim: int, key: jax.Array
) -> TD3State:
    """Fresh parameters of given networks."""
    policy_key, critic_key = jax.random.split(key)
    observation, action = jnp.zeros((1, observation_dim)), jnp.zeros((1, action_dim))
    policy, critic = policy_net.init(policy_key, observation), critic_net.init(critic_key, observation, action)
    optimiser = adam(config.learning_rate)
    optimisers = (optimiser.init(policy), optimiser.init(critic))
    return TD3State(policy, policy, critic, critic, optimisers, jnp.zeros((), jnp.int32))


def smoothed_actions(config: TD3Config, actions: jax.Array, key: jax.Array) -> jax.Array:
    """TD3's target policy smoothing: clip(a + clip(noise, +-noise_clip), +-1), (N, A)."""
    noise = config.noise * jax.random.normal(key, actions.shape)
    return jnp.clip(actions + jnp.clip(noise, -config.noise_clip, config.noise_clip), -1.0, 1.0)


def critic_loss(config: TD3BCConfig, critic: Any, state: TD3State, batch: Transitions, key: jax.Array) -> jax.Array:
    """E[sum_i (r + gamma (1 - d) min_j Q'_j(s', a') - Q_i(s, a))^2] with a smoothed target action."""
    net = TwinCritic(config.hidden)
    target_policy = DeterministicPolicy(config.hidden, batch.actions.shape[-1])
    next_actions = smoothed_actions(config, target_policy.apply(state.policy_target, batch.next_observations), key)
    next_q = net.apply(state.target, batch.next_observations, next_actions).min(axis=0)
    q = net.apply(critic, batch.observations, batch.actions)
    return temporal_difference_loss(config.discount, q, next_q, batch)


def policy_loss(config: TD3BCConfig, policy: Any, critic: Any, batch: Transitions) -> jax.Array:
    """-lambda E[Q_1(s, pi(s))] + E[(pi(s) - a)^2] (eq. 3), lambda = alpha / E|Q_1(s, pi(s))| (eq. 5)."""
    actions = DeterministicPolicy(config.hidden, batch.actions.shape[-1]).apply(policy, batch.observations)
    q = first_critic(config.hidden, critic, batch.observations, actions)
    weight = config.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
    return -weight * q.mean() + ((actions - batch.actions) ** 2).mean()


def update_td3(
    critic_loss: Any, policy_loss: Any, config: TD3Config, state: TD3State, batch: Any, key: jax.Array
) -> tuple[TD3State, dict[str, jax.Array]]:
    """One step of the critics; every ``policy_delay`` steps one of the policy and the targets.

    Args:
        critic_loss: of (config, critic, state, batch, key).
        policy_loss: of (config, policy, critic, batch).
    """
    optimiser = adam(config.learning_rate)
    critic, critic_optimiser, q_loss = descend(
        partial(critic_loss, config), optimiser, state.critic, state.optimisers[1], state, batch, key
    )

    def move(state: TD3State):
        policy, policy_optimiser, loss = descend(
            partial(policy_loss, config), optimiser, state.policy, state.optimisers[0], critic, batch
        )
        policy_target = optax.incremental_update(policy, state.policy_target, config.target_rate)
        target = optax.incremental_update(critic, state.target, config.target_rate)
        return policy, policy_target, target, policy_optimiser, loss

    def stay(state: TD3State):
        return state.policy, state.policy_target, state.target, state.optimisers[0], jnp.nan

    moves = (state.step + 1) % config.policy_delay == 0
    policy, policy_target, target, policy_optimiser, loss = jax.lax.cond(moves, move, stay, state)
    optimisers = (policy_optimiser, critic_optimiser)
    info = {"critic_loss": q_loss, "policy_loss": loss}  # not a number where the policy stays: left out of means
    return TD3State(policy, policy_target, critic, target, optimisers, state.step + 1), info


update = partial(update_td3, critic_loss, policy_loss)


def export(config: TD3BCConfig, data: Dataset, params: Any) -> Exported:
    """The policy with the normalisation (s - mean) / std folded into its first layer."""
    mean, std = normalisation(data)
    layers = dict(params["params"]["net"])
    first = layers["Dense_0"]
    kernel = np.asarray(first["kernel"]) / std[:, None]
    layers["Dense_0"] = {"kernel": kernel, "bias": np.asarray(first["bias"]) - mean @ kernel}
    return Exported({"params": {"net": layers}})


METHOD = Method(
    **vars(CARD),
    prepare=prepare,
    create=create,
    update=update,
    export=export,
    sparse_logs=("policy_loss",),
)
