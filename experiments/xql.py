"""XQL: Garg et al., "Extreme Q-Learning: MaxEnt RL without Entropy", ICLR 2023. An example of a method of your own.

    python -m iwsft_control.run --env hopper-medium-replay --method-file experiments/xql.py --method xql

    V       E[exp(z) - z - 1],  z = (min_i Q'_i(s, a) - V(s)) / beta                       eq. 11 (Gumbel regression)
    Q       E[(r + gamma (1 - d) V(s') - Q_i(s, a))^2]
    policy  -E[min(exp(alpha (min_i Q'_i(s, a) - V(s))), 100) log pi(a|s)]

Everything that is not here comes from the suite: data, loop, store, evaluation, tables. Deviation: z is clipped at 5
and the loss divided by the batch's largest exp(z), as in the authors' code; the policy is IQL's.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from iwsft_control.base.bounds import POSITIVE
from iwsft_control.learning.gradient import adam, descend
from iwsft_control.learning.method import Method
from iwsft_control.methods import critic, iql
from iwsft_control.methods.critic import CriticState
from iwsft_control.methods.iql import IQLConfig, IQLState
from iwsft_control.networks.mlp import TwinCritic, ValueFunction


@dataclasses.dataclass(frozen=True)
class XQLConfig(IQLConfig):
    """IQL's, but for the loss of V: ``beta`` is its temperature, ``alpha`` the policy's inverse one."""

    expectile: ClassVar[float]  # type: ignore[misc]  # of IQL's loss alone: no option here
    beta: Annotated[float, POSITIVE] = 2.0
    alpha: Annotated[float, POSITIVE] = 3.0
    clip: Annotated[float, POSITIVE] = 5.0


def gumbel_loss(residual: jax.Array, beta: float, clip: float = 5.0) -> jax.Array:
    """exp(z) - z - 1 with z = residual / beta, clipped from above; divided by the largest exp(z), elementwise."""
    z = jnp.minimum(residual / beta, clip)
    largest = jax.lax.stop_gradient(jnp.maximum(z.max(), -1.0))
    return jnp.exp(z - largest) - (z + 1) * jnp.exp(-largest)


def value_loss(config: XQLConfig, value: Any, target: Any, batch: Any) -> jax.Array:
    """E[exp(z) - z - 1] (eq. 11)."""
    q = TwinCritic(config.hidden).apply(target, batch.observations, batch.actions).min(axis=0)
    v = ValueFunction(config.hidden).apply(value, batch.observations)
    return gumbel_loss(q - v, config.beta, config.clip).mean()


def update(config: XQLConfig, state: IQLState, batch: Any, key: jax.Array) -> tuple[IQLState, dict[str, jax.Array]]:
    """One step of V, of Q, of the targets and of the policy, all on one batch."""
    old, optimiser = state.critic, adam(config.learning_rate)
    value, value_optimiser, v_loss = descend(
        partial(value_loss, config), optimiser, old.value, old.optimisers[1], old.target, batch
    )
    q, q_optimiser, q_loss = descend(
        partial(critic.critic_loss, config), optimiser, old.critic, old.optimisers[0], value, batch
    )
    target = optax.incremental_update(q, old.target, config.target_rate)
    weighted = partial(iql.policy_loss, dataclasses.replace(config, beta=config.alpha))
    policy, policy_optimiser, loss = descend(
        weighted, iql.policy_optimiser(config), state.policy, state.optimiser, old.value, old.target, batch
    )
    critics = CriticState(q, target, value, (q_optimiser, value_optimiser))
    losses = {"critic_loss": q_loss, "value_loss": v_loss, "policy_loss": loss}
    return IQLState(critics, policy, policy_optimiser), losses


METHOD = Method(name="xql", config=XQLConfig, prepare=iql.prepare, create=iql.create, update=update)
