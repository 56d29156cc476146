"""IQL: Kostrikov, Nair & Levine, "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022.

    V       E[L_tau(min_i Q'_i(s, a) - V(s))]                       eq. 5   (:func:`critic.value_loss`)
    Q       E[(r + gamma (1 - d) V(s') - Q_i(s, a))^2]              eq. 6   (:func:`critic.critic_loss`)
    policy  -E[min(exp(beta (min_i Q'_i(s, a) - V(s))), 100) log pi(a|s)]   eq. 7

Q' are Polyak-averaged targets. Hyper-parameters are the paper's for locomotion (appendix B and the authors' code):
tau 0.7, beta 3, rewards scaled by 1000 / (best - worst return), cosine decay of the policy's learning rate.

Deviations: advantages are those of V before its step, as in CORL (authors: after); Flax's initialisation (authors:
orthogonal); the policy that is evaluated is the exponential average of its parameters, as for most methods here.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from iwsft_control.configs.iql import CARD, IQLConfig
from iwsft_control.datasets.transitions import Transitions, scaled_transitions
from iwsft_control.learning.gradient import adam, descend
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.methods import critic
from iwsft_control.methods.critic import CriticState
from iwsft_control.networks.mlp import TwinCritic, ValueFunction
from iwsft_control.networks.policies import GaussianPolicy, policy_log_prob


class IQLState(NamedTuple):
    """Critics, value function and policy."""

    critic: CriticState
    policy: Any
    optimiser: Any


def prepare(config: IQLConfig, inputs: Inputs) -> Prepared:
    """Transitions with rewards scaled by 1000 / (best - worst episode return)."""
    return Prepared(scaled_transitions(inputs.data))


def create(config: IQLConfig, observation_dim: int, action_dim: int, key: jax.Array) -> IQLState:
    """Fresh parameters from ``key``."""
    critic_key, policy_key = jax.random.split(key)
    policy = GaussianPolicy(config.hidden, action_dim).init(policy_key, jnp.zeros((1, observation_dim)))
    critics = critic.create(config, observation_dim, action_dim, critic_key)
    return IQLState(critics, policy, policy_optimiser(config).init(policy))


def policy_optimiser(config: IQLConfig) -> optax.GradientTransformation:
    """Adam with cosine decay over all steps."""
    return adam(optax.cosine_decay_schedule(config.policy_learning_rate, config.steps))


def policy_loss(config: IQLConfig, policy: Any, value: Any, target: Any, batch: Transitions) -> jax.Array:
    """-E[min(exp(beta A), max_weight) log pi(a|s)], A = min_i Q'_i(s, a) - V(s) (eq. 7)."""
    q = TwinCritic(config.hidden).apply(target, batch.observations, batch.actions).min(axis=0)
    advantage = q - ValueFunction(config.hidden).apply(value, batch.observations)
    weight = jnp.minimum(jnp.exp(config.beta * advantage), config.max_weight)
    net = GaussianPolicy(config.hidden, batch.actions.shape[-1])
    log_prob = policy_log_prob(net, policy, batch.observations, batch.actions)
    return -(jax.lax.stop_gradient(weight) * log_prob).mean()


def update(
    config: IQLConfig, state: IQLState, batch: Transitions, key: jax.Array
) -> tuple[IQLState, dict[str, jax.Array]]:
    """One step of V, of Q, of the targets and of the policy, all on one batch.

    The policy's advantages are those of V's own loss (compiled, they are computed once).
    """
    critics, info = critic.update(config, state.critic, batch)
    policy, optimiser, loss = descend(
        partial(policy_loss, config),
        policy_optimiser(config),
        state.policy,
        state.optimiser,
        state.critic.value,
        state.critic.target,
        batch,
    )
    return IQLState(critics, policy, optimiser), info | {"policy_loss": loss}


METHOD = Method(
    **vars(CARD),
    prepare=prepare,
    create=create,
    update=update,
)
