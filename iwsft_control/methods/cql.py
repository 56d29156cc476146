"""CQL(H): Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning", NeurIPS 2020.

    Q       E[(r + gamma (1 - d) min_j Q'_j(s', a') - Q_i(s, a))^2]
            + alpha E[log sum_a exp Q_i(s, a) - Q_i(s, a)]                                    eq. 4
    policy  E[temperature log pi(a|s) - min_i Q_i(s, a)],  a ~ pi(s), temperature as in SAC

with a' ~ pi(s'). The log of the integral over actions is estimated by importance sampling (appendix F): n uniform
actions, n from pi(s) and n from pi(s'), each Q minus the log density of what it was drawn from. (The constant
log 3n is left out: it has no gradient.) That gradient is the mean of grad Q over the 3n actions, each weighed by
exp(Q - log density); it is estimated without bias from a few of them that are drawn by these weights, which spares most
of a step's work (``gradient_actions``). n = 10 and no entropy in the backup are the authors' code; alpha 5 without the
Lagrange form, two layers of 256, learning rates of 3e-4 and no cloning at first are Geng's
(https://github.com/young-geng/JaxCQL).

Deviations: the authors' code has three layers, a policy learning rate of 1e-4 (paper: 3e-5), alpha 5 or 10, and a
policy that clones the data for 40,000 steps; that is made for 1M updates, more than a day of one core, and each has an
option here. CORL's scores for Hopper and Walker2d, 95 and 73, are of three layers, alpha 10, a policy learning rate of
3e-5 and normalised observations (no option here). Nor is here what Geng changed elsewhere: a learned factor and offset
of the log standard deviation, a small last layer, actions clipped at 0.999, 2M updates.
Temperature and policy step at once (authors: the temperature first); the policy acts by its mean, as in the authors'
code (TD3+BC's authors report that the paper chose among sampled actions); Flax's initialisation; the policy that is
evaluated is the exponential average of the parameters, as for most methods here.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from iwsft_control.configs.cql import CARD, CQLConfig
from iwsft_control.datasets.transitions import Transitions, transitions
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning.gradient import descend
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.learning.temporal_difference import temporal_difference_loss
from iwsft_control.networks.mlp import MLP, TwinCritic, twin
from iwsft_control.networks.policies import Exported, TanhGaussianPolicy, squash

DATA_ACTION_BOUND = 1 - 1e-5  # the tanh policy's density of the data's actions is taken inside the action box


class CQLState(NamedTuple):
    """Policy, critics, target critics, temperature, the optimisers' states and the number of steps taken."""

    policy: Any
    critic: Any
    target: Any
    log_temperature: jax.Array
    optimisers: Any
    step: jax.Array


class Noise(NamedTuple):
    """Random numbers of one step; standard normal but for ``uniform`` in (-1, 1); n = sampled_actions."""

    policy: jax.Array  # (N, A)
    next_policy: jax.Array  # (N, A)
    uniform: jax.Array  # (n, N, A)
    current: jax.Array  # (n, N, A)
    following: jax.Array  # (n, N, A)
    chosen: jax.Array  # (2, N), in [0, 1): which actions the gradient is estimated from


def prepare(config: CQLConfig, inputs: Inputs) -> Prepared:
    """Transitions as they are."""
    return Prepared(transitions(inputs.data))


def create(config: CQLConfig, observation_dim: int, action_dim: int, key: jax.Array) -> CQLState:
    """Fresh parameters from ``key``."""
    policy_key, critic_key = jax.random.split(key)
    observation, action = jnp.zeros((1, observation_dim)), jnp.zeros((1, action_dim))
    policy = TanhGaussianPolicy(config.hidden, action_dim).init(policy_key, observation)
    critic = TwinCritic(config.hidden).init(critic_key, observation, action)
    slow, fast = optax.adam(config.policy_learning_rate), optax.adam(config.learning_rate)
    temperature = jnp.zeros(())
    optimisers = slow.init(policy), fast.init(critic), slow.init(temperature)
    return CQLState(policy, critic, critic, temperature, optimisers, jnp.zeros((), jnp.int32))


def _draw(
    net: TanhGaussianPolicy, policy: Any, observations: jax.Array, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    mean, log_std = net.apply(policy, observations)
    return squash(mean, log_std, noise)


def conservative_term(
    config: CQLConfig, critic: Any, policy: Any, batch: Transitions, data_q: jax.Array, noise: Noise
) -> jax.Array:
    """E[log sum_a exp Q_i(s, a) - Q_i(s, a)] summed over i, the sum by importance sampling (eq. 4, appendix F).

    Args:
        data_q: Q_i(s, a) of the batch, (2, N).
    """
    net = TanhGaussianPolicy(config.hidden, batch.actions.shape[-1])
    current, log_current = _draw(net, policy, batch.observations, noise.current)
    following, log_following = _draw(net, policy, batch.next_observations, noise.following)
    actions = jax.lax.stop_gradient(jnp.concatenate([noise.uniform, current, following]))
    log_uniform = jnp.full(log_current.shape, -batch.actions.shape[-1] * jnp.log(2.0))
    log_density = jax.lax.stop_gradient(jnp.concatenate([log_uniform, log_current, log_following]))
    if config.gradient_actions == 0:
        q = _values(config, critic, batch.observations, actions, differentiated=True)
        return (jax.nn.logsumexp(q - log_density[:, None], axis=0) - data_q).mean(axis=-1).sum()
    exponents = _values(config, jax.lax.stop_gradient(critic), batch.observations, actions) - log_density[:, None]
    term = (jax.nn.logsumexp(exponents, axis=0) - data_q).mean(axis=-1).sum()
    index = choose(exponents, noise.chosen, config.gradient_actions)  # (m, 2, N)
    rows = jnp.arange(actions.shape[1])
    q = jnp.stack(
        [
            jax.vmap(partial(_value, config, twin(critic, i), batch.observations))(actions[index[:, i], rows])
            for i in range(2)
        ]
    )
    estimate = (q.mean(axis=1) - data_q).mean(axis=-1).sum()
    return jax.lax.stop_gradient(term - estimate) + estimate


def _value(config: CQLConfig, critic: Any, observations: jax.Array, actions: jax.Array) -> jax.Array:
    """Q (N,) of one critic."""
    return MLP(config.hidden, 1).apply(critic, jnp.concatenate([observations, actions], axis=-1)).squeeze(-1)


def _values(
    config: CQLConfig, critic: Any, observations: jax.Array, actions: jax.Array, differentiated: bool = False
) -> jax.Array:
    """Q_i(s, a) of K actions a state, (K, N, A) -> (K, 2, N).

    On a CPU one action per state and one critic at a time, since K N rows at once do not fit into its cache. For a
    gradient only the products of hidden layers are kept: to compute the rest again costs less than to fetch it.
    """
    twins = [twin(critic, i) for i in range(2)]  # sliced once, outside the loop

    def q_of(action: jax.Array) -> jax.Array:
        return jnp.stack([_value(config, one, observations, action) for one in twins])

    def kept(primitive: Any, *operands: Any, **_: Any) -> bool:
        return primitive.name == "dot_general" and operands[0].shape[-1] in config.hidden

    if differentiated:
        q_of = jax.checkpoint(q_of, policy=kept)
    return jax.lax.map(q_of, actions) if jax.default_backend() == "cpu" else jax.vmap(q_of)(actions)


def choose(exponents: jax.Array, uniform: jax.Array, count: int) -> jax.Array:
    """``count`` indices in [0, K), among which each index is expected ``count`` times its softmax(exponents).

    The draws of a column share one random number, spread evenly over [0, 1): draw j comes from the j-th of ``count``
    equal parts of that distribution, so their mean is unbiased and varies less than that of independent draws.

    Args:
        exponents: (K, ...).
        uniform: in [0, 1), (...).

    Returns:
        (count, ...)
    """
    cumulative = jnp.cumsum(jax.nn.softmax(exponents, axis=0), axis=0)
    levels = (jnp.arange(count).reshape(-1, *([1] * uniform.ndim)) + uniform) / count
    return jax.vmap(lambda level: (cumulative[:-1] <= level).sum(axis=0))(levels)


def critic_loss(
    config: CQLConfig, critic: Any, state: CQLState, batch: Transitions, noise: Noise
) -> tuple[jax.Array, jax.Array]:
    """Squared temporal difference plus alpha times :func:`conservative_term` (eq. 4), and that term alone."""
    net, policy_net = TwinCritic(config.hidden), TanhGaussianPolicy(config.hidden, batch.actions.shape[-1])
    next_actions, _ = _draw(policy_net, state.policy, batch.next_observations, noise.next_policy)
    next_q = net.apply(state.target, batch.next_observations, next_actions).min(axis=0)
    q = net.apply(critic, batch.observations, batch.actions)
    gap = conservative_term(config, critic, state.policy, batch, q, noise)
    return temporal_difference_loss(config.discount, q, next_q, batch) + config.alpha * gap, gap


def policy_loss(
    config: CQLConfig, policy: Any, state: CQLState, batch: Transitions, noise: Noise
) -> tuple[jax.Array, jax.Array]:
    """E[temperature log pi - min_i Q_i(s, a)], a ~ pi(s); while cloning, -log pi of the data's action instead of Q.

    Also log pi of the drawn actions (N,), for the temperature.
    """
    mean, log_std = TanhGaussianPolicy(config.hidden, batch.actions.shape[-1]).apply(policy, batch.observations)
    actions, log_prob = squash(mean, log_std, noise.policy)

    def cloning() -> jax.Array:
        u = jnp.arctanh(jnp.clip(batch.actions, -DATA_ACTION_BOUND, DATA_ACTION_BOUND))
        return squash(mean, log_std, (u - mean) * jnp.exp(-log_std))[1]

    def q_values() -> jax.Array:
        return TwinCritic(config.hidden).apply(state.critic, batch.observations, actions).min(axis=0)

    value = jax.lax.cond(state.step < config.cloning_steps, cloning, q_values)
    return (jnp.exp(state.log_temperature) * log_prob - value).mean(), log_prob


def update(
    config: CQLConfig, state: CQLState, batch: Transitions, key: jax.Array
) -> tuple[CQLState, dict[str, jax.Array]]:
    """One step of temperature, policy, critics and targets, all on one batch."""
    slow, fast = optax.adam(config.policy_learning_rate), optax.adam(config.learning_rate)
    normal_key, uniform_key, chosen_key = jax.random.split(key, 3)
    n, shape = config.sampled_actions, batch.actions.shape
    normal = jax.random.normal(normal_key, (2 * n + 2, *shape))
    uniform = jax.random.uniform(uniform_key, (n, *shape), minval=-1.0, maxval=1.0)
    chosen = jax.random.uniform(chosen_key, (2, shape[0]))
    noise = Noise(normal[0], normal[1], uniform, normal[2 : n + 2], normal[n + 2 :], chosen)

    policy, policy_optimiser, (loss, log_prob) = descend(
        partial(policy_loss, config), slow, state.policy, state.optimisers[0], state, batch, noise, has_aux=True
    )
    critic, critic_optimiser, (q_loss, gap) = descend(
        partial(critic_loss, config), fast, state.critic, state.optimisers[1], state, batch, noise, has_aux=True
    )
    temperature_grad = -(log_prob - shape[-1]).mean()  # of -log_temperature (log pi + target entropy), which is -A
    change, temperature_optimiser = slow.update(temperature_grad, state.optimisers[2])
    log_temperature = optax.apply_updates(state.log_temperature, change)
    target = optax.incremental_update(critic, state.target, config.target_rate)
    optimisers = (policy_optimiser, critic_optimiser, temperature_optimiser)
    info = {
        "critic_loss": q_loss,
        "policy_loss": loss,
        "conservative_term": gap,
        "temperature": jnp.exp(log_temperature),
    }
    return CQLState(policy, critic, target, log_temperature, optimisers, state.step + 1), info


def export(config: CQLConfig, data: Dataset, params: Any) -> Exported:
    """The policy acts by tanh of its mean: the last layer without the columns of the standard deviation."""
    layers = dict(params["params"]["net"])
    last, actions = f"Dense_{len(config.hidden)}", data.actions.shape[1]
    layers[last] = {"kernel": layers[last]["kernel"][:, :actions], "bias": layers[last]["bias"][:actions]}
    return Exported({"params": {"net": layers}})


METHOD = Method(
    **vars(CARD),
    prepare=prepare,
    create=create,
    update=update,
    export=export,
)
