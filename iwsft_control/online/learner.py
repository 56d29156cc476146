"""PPO with the terms of UFT and Prefix-RFT: one compiled update of all its epochs and minibatches.

Episodes differ in length, so only the valid rows of (T, B) are worked on: they are brought to the front, and loops run
as far as they reach, without another compilation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from iwsft_control.configs.online import PPOConfig
from iwsft_control.learning.gradient import adam
from iwsft_control.networks.mlp import ValueFunction
from iwsft_control.networks.policies import gaussian_log_prob
from iwsft_control.online import methods, objectives
from iwsft_control.online.methods import OnlineMethod
from iwsft_control.online.policy import OnlinePolicy

CHUNK = 1024  # rows of one forward pass
LIKELIHOOD_BATCH = 256  # rows of the prefixes in a gradient step
LOG_RATIO_CAP = 20.0  # recorded actions can be all but impossible under the policy; exp must stay a float


@dataclasses.dataclass(frozen=True)
class Setup:
    """What an update is compiled for."""

    ppo: PPOConfig
    method: OnlineMethod
    hidden: tuple[int, ...]
    action_dim: int
    sparse: bool
    entropy_share: float

    @property
    def estimator(self) -> str:
        """How advantages are estimated: gae or group."""
        return methods.estimator_of(self.ppo, "sparse" if self.sparse else "dense")

    @property
    def policy(self) -> OnlinePolicy:
        """The policy network."""
        return OnlinePolicy(self.hidden, self.action_dim)

    @property
    def discount(self) -> float:
        """Of the reward that is learned from."""
        return 1.0 if self.sparse else self.ppo.discount


class LearnerState(NamedTuple):
    """All that changes in training, and the reference, which does not."""

    policy: Any
    critic: Any
    reference: Any
    """Parameters of pi_ref."""
    optimisers: tuple[Any, Any]


class Batch(NamedTuple):
    """The episodes of an update on the device: T steps, B = G N episodes in G groups, F features beside observations.

    The prefixes are one for each group: that of all its episodes (UFT) or of its hybrid (Prefix-RFT).
    """

    observations: Any  # (T, B, O)
    features: Any  # (T, B, F) what else the critic sees
    actions: Any  # (T, B, A)
    rewards: Any  # (T, B) that are learned from
    lengths: Any  # (B,)
    terminated: Any  # (B,) whether nothing can come after the last step
    final_observations: Any  # (B, O)
    final_features: Any  # (B, F)
    outcomes: Any  # (G, N) of the whole episodes, prefix included
    hybrid: Any  # (G, N)
    prefix_observations: Any  # (G, T, O)
    prefix_actions: Any  # (G, T, A)
    prefix_lengths: Any  # (G,)


class Rows(NamedTuple):
    """Steps that the policy learns from, (M, ...) each."""

    observations: Any
    features: Any
    actions: Any
    log_prob: Any  # under the policy that acted
    advantages: Any
    targets: Any  # of the critic
    reference_mean: Any
    reference_log_std: Any
    prefix: Any  # whether it is a demonstration's step


def optimisers(ppo: PPOConfig) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Those of policy and critic."""
    clipped = optax.clip_by_global_norm(ppo.max_gradient_norm)
    return tuple(optax.chain(clipped, adam(rate)) for rate in (ppo.policy_learning_rate, ppo.critic_learning_rate))  # type: ignore[return-value]


def create(setup: Setup, policy: Any, observation_dim: int, features: int, key: jax.Array) -> LearnerState:
    """The state at the beginning, from the policy's parameters."""
    critic = ValueFunction(setup.ppo.critic_hidden).init(key, jnp.zeros((1, observation_dim + features)))
    of_policy, of_critic = optimisers(setup.ppo)
    return LearnerState(policy, critic, policy, (of_policy.init(policy), of_critic.init(critic)))


def policy_terms(setup: Setup, params: Any, rows: Rows, weights: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """J_value - beta_kl KL of a minibatch (M,), and its parts; a scratch policy has no reference."""
    mean, log_std = setup.policy.apply(params, rows.observations)
    log_ratio = gaussian_log_prob(mean, log_std, rows.actions) - rows.log_prob
    log_ratio = jnp.clip(log_ratio, -LOG_RATIO_CAP, LOG_RATIO_CAP)
    surrogate = objectives.clipped_surrogate(log_ratio, rows.advantages, setup.ppo.clip, rows.prefix)
    own = weights * ~rows.prefix
    value = objectives.weighted_mean(surrogate, weights)
    divergence = objectives.gaussian_kl(mean, log_std, rows.reference_mean, rows.reference_log_std)
    divergence = objectives.weighted_mean(divergence, own)
    kl_weight = 0.0 if setup.method.scratch else setup.ppo.kl_weight
    ratio = jnp.exp(log_ratio)
    return objectives.uft(value, divergence, jnp.zeros(()), kl_weight, 0.0), {
        "surrogate": value,
        "kl_to_reference": divergence,
        "kl_of_update": objectives.weighted_mean(ratio - 1 - log_ratio, own),
        "clipped": objectives.weighted_mean((jnp.abs(ratio - 1) > setup.ppo.clip).astype(jnp.float32), own),
        "entropy": objectives.weighted_mean(objectives.gaussian_entropy(log_std), own),
    }


def likelihood_term(
    setup: Setup, params: Any, batch: Batch, key: jax.Array, size: int = LIKELIHOOD_BATCH
) -> tuple[jax.Array, jax.Array]:
    """beta times the mean over groups of mean_{t<k} log pi(a*_t|s*_t), and without beta: an unbiased sample of steps.

    A group without a prefix counts zero.
    """
    group_key, step_key = jax.random.split(key)
    group = jax.random.randint(group_key, (size,), 0, batch.prefix_lengths.shape[0])
    length = batch.prefix_lengths[group]
    step = jnp.floor(jax.random.uniform(step_key, (size,)) * length).astype(jnp.int32)
    mean, log_std = setup.policy.apply(params, batch.prefix_observations[group, step])
    log_prob = gaussian_log_prob(mean, log_std, batch.prefix_actions[group, step])
    log_likelihood = jnp.where(length > 0, log_prob, 0.0).mean()
    nothing = jnp.zeros(())
    return objectives.uft(nothing, nothing, log_likelihood, 0.0, setup.ppo.likelihood_weight), log_likelihood


def values(setup: Setup, critic: Any, observations: jax.Array, features: jax.Array) -> jax.Array:
    """V of states (..., O) with their features (..., F), (...)."""
    return ValueFunction(setup.ppo.critic_hidden).apply(critic, jnp.concatenate([observations, features], -1))


def prepare_rows(setup: Setup, state: LearnerState, batch: Batch) -> tuple[Rows, jax.Array]:
    """All steps that an update learns from, and which rows are steps (M,): those of the episodes first."""
    t, b = batch.rewards.shape
    groups, size = batch.outcomes.shape
    steps = jnp.arange(t)[:, None]
    valid, ended = steps < batch.lengths, steps == batch.lengths - 1
    order, n = jnp.argsort(~valid.reshape(-1), stable=True), valid.sum()

    def at_front(x: jax.Array) -> jax.Array:
        return x.reshape(t * b, *x.shape[2:])[order]

    def forward(observations: jax.Array, features: jax.Array, actions: jax.Array) -> tuple[jax.Array, ...]:
        mean, log_std = setup.policy.apply(state.policy, observations)
        log_prob = gaussian_log_prob(mean, log_std, actions)
        known = values(setup, state.critic, observations, features) if setup.estimator == "gae" else log_prob
        return log_prob, *setup.policy.apply(state.reference, observations), known

    observations, features, actions = (at_front(x) for x in (batch.observations, batch.features, batch.actions))
    log_prob, mean, log_std, v = _by_chunks(forward, (observations, features, actions), n)
    own, of_prefix = objectives.group_advantages(
        batch.outcomes, batch.hybrid, setup.ppo.centred, setup.ppo.divide_by_std
    )
    if setup.estimator == "gae":
        grid = jnp.zeros(t * b).at[order].set(jnp.where(jnp.arange(t * b) < n, v, 0.0)).reshape(t, b)
        last = values(setup, state.critic, batch.final_observations, batch.final_features)
        following = jnp.where(ended, last, jnp.concatenate([grid[1:], jnp.zeros((1, b))]))
        terminated = ended & batch.terminated
        raw = objectives.gae(batch.rewards, grid, following, terminated, ended, setup.discount, setup.ppo.trace)
        raw = jnp.where(valid, raw, 0.0)
        by_group = (t, groups, size)
        advantages = objectives.standardise(raw.reshape(by_group), valid.reshape(by_group)).reshape(t, b)
        targets = raw + grid
        # The prefix's advantage is in units of outcomes: standardised by its group, like those of the steps.
        of_prefix = objectives.group_advantages(batch.outcomes, batch.hybrid, divide_by_std=True)[1]
    else:
        advantages = targets = jnp.where(valid, own.reshape(b), 0.0)
    rows = Rows(
        observations,
        features,
        actions,
        log_prob,
        at_front(advantages),
        at_front(targets),
        mean,
        log_std,
        jnp.zeros(t * b, bool),
    )
    real = jnp.arange(t * b) < n
    if setup.method.law != "hybrid":
        return rows, real
    kept, counts = _prefix_rows(setup, state, batch, of_prefix.sum(-1))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), rows, kept), jnp.concatenate([real, counts])


def _prefix_rows(setup: Setup, state: LearnerState, batch: Batch, advantages: jax.Array) -> tuple[Rows, jax.Array]:
    """The steps of the prefixes where the policy's entropy is highest, with the advantages (G,) of their prefixes."""
    groups, t = batch.prefix_observations.shape[:2]
    most = min(groups * t, math.ceil(setup.entropy_share * groups * t) + 1)
    observations, actions = (x.reshape(groups * t, -1) for x in (batch.prefix_observations, batch.prefix_actions))
    valid = (jnp.arange(t) < batch.prefix_lengths[:, None]).reshape(-1)
    mean, log_std = setup.policy.apply(state.policy, observations)
    index, counts = objectives.highest_entropy(objectives.gaussian_entropy(log_std), valid, setup.entropy_share, most)
    log_prob = gaussian_log_prob(mean, log_std, actions)[index]
    nothing = jnp.zeros((most, setup.action_dim))
    return (
        Rows(
            observations[index],
            jnp.zeros((most, batch.features.shape[-1])),
            actions[index],
            log_prob,
            advantages[index // t],
            jnp.zeros(most),
            nothing,
            nothing,
            jnp.ones(most, bool),
        ),
        counts,
    )


def _by_chunks(function: Callable[..., tuple[jax.Array, ...]], rows: tuple[jax.Array, ...], n: jax.Array) -> Any:
    """``function`` of the first ``n`` of the rows (M, ...), in cache-sized chunks; zeros behind them."""
    m = rows[0].shape[0]
    padded = tuple(jnp.pad(x, ((0, -m % CHUNK), *((0, 0),) * (x.ndim - 1))) for x in rows)

    def chunk(i: jax.Array | int) -> tuple[jax.Array, ...]:
        return function(*(jax.lax.dynamic_slice_in_dim(x, i * CHUNK, CHUNK) for x in padded))

    shapes = jax.eval_shape(lambda: chunk(0))
    out = tuple(jnp.zeros((padded[0].shape[0], *s.shape[1:]), s.dtype) for s in shapes)

    def body(i: jax.Array, out: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(o, x, i * CHUNK, 0) for o, x in zip(out, chunk(i), strict=True)
        )

    found = jax.lax.fori_loop(0, (n + CHUNK - 1) // CHUNK, body, out)
    return tuple(x[:m] for x in found)


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))


def shuffles(key: jax.Array, real: jax.Array, episodes: int, epochs: int) -> jax.Array:
    """For every epoch an order of the rows (epochs, M), real ones first; rows behind ``episodes`` move no other."""

    def one(key: jax.Array) -> jax.Array:
        drawn = [jax.random.uniform(key, (episodes,))]
        if real.shape[0] > episodes:
            drawn.append(jax.random.uniform(jax.random.fold_in(key, 1), (real.shape[0] - episodes,)))
        return jnp.argsort(jnp.where(real, jnp.concatenate(drawn), jnp.inf), stable=True)

    return jax.vmap(one)(jax.random.split(key, epochs))


@partial(jax.jit, static_argnums=0)
def update(
    setup: Setup, state: LearnerState, batch: Batch, moves: jax.Array, key: jax.Array
) -> tuple[LearnerState, dict[str, jax.Array]]:
    """All epochs and minibatches of an update; the state after it, and means over its minibatches for the log.

    Args:
        moves: whether the policy learns too, or only the critic.
    """
    ppo, m = setup.ppo, setup.ppo.minibatch
    rows, real = prepare_rows(setup, state, batch)
    total = real.sum()
    each = jnp.maximum(total // m, 1)  # minibatches of an epoch; an odd rest waits for the next shuffle
    orders = jnp.pad(shuffles(key, real, batch.rewards.size, ppo.epochs), ((0, 0), (0, m)))
    of_policy, of_critic = optimisers(ppo)
    hinted = (batch.prefix_lengths > 0).any()

    def policy_gradient(params: Any, some: Rows, weights: jax.Array, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        gradient, parts = jax.grad(lambda p: policy_terms(setup, p, some, weights), has_aux=True)(params)
        parts |= {"gradient_norm": _norm(gradient)}
        if not setup.method.likelihood:
            return gradient, parts

        def supervised(params: Any) -> tuple[Any, jax.Array, jax.Array]:
            own, found = jax.grad(lambda p: likelihood_term(setup, p, batch, key), has_aux=True)(params)
            return jax.tree.map(jnp.add, gradient, own), found, _norm(own)

        def plain(params: Any) -> tuple[Any, jax.Array, jax.Array]:
            return gradient, jnp.zeros(()), jnp.zeros(())

        gradient, found, norm = jax.lax.cond(hinted, supervised, plain, params)
        return gradient, parts | {"log_likelihood": found, "likelihood_gradient_norm": norm}

    def critic_loss(params: Any, some: Rows, weights: jax.Array) -> jax.Array:
        errors = (values(setup, params, some.observations, some.features) - some.targets) ** 2
        return objectives.weighted_mean(errors, weights * ~some.prefix)

    def minibatch(carry: Any) -> Any:
        i, _, policy, critic, states, sums = carry
        first = (i % each) * m
        index = jax.lax.dynamic_slice(orders, (i // each, first), (1, m))[0]
        weights = (first + jnp.arange(m) < total).astype(jnp.float32)
        some = Rows(*(x[index] for x in rows))
        gradient, parts = policy_gradient(policy, some, weights, jax.random.fold_in(key, i))
        upwards = jax.tree.map(jnp.negative, gradient)
        change, moved = of_policy.update(upwards, states[0])
        stepped = (optax.apply_updates(policy, change), moved)
        policy, own = jax.tree.map(lambda new, old: jnp.where(moves, new, old), stepped, (policy, states[0]))
        if setup.estimator == "gae":
            loss, down = jax.value_and_grad(critic_loss)(critic, some, weights)
            change, of_value = of_critic.update(down, states[1])
            critic, states = optax.apply_updates(critic, change), (own, of_value)
            parts |= {"critic_loss": loss}
        else:
            states = (own, states[1])
        sums = {k: sums[k] + parts[k] for k in sums}
        return i + 1, parts["kl_of_update"] > ppo.target_kl, policy, critic, states, sums

    names = ["surrogate", "kl_to_reference", "kl_of_update", "clipped", "entropy", "gradient_norm"]
    names += ["log_likelihood", "likelihood_gradient_norm"] if setup.method.likelihood else []
    names += ["critic_loss"] if setup.estimator == "gae" else []
    sums = {k: jnp.zeros(()) for k in names}
    start = (jnp.int32(0), jnp.bool_(False), state.policy, state.critic, state.optimisers, sums)
    going = lambda carry: (carry[0] < each * ppo.epochs) & ~carry[1]  # noqa: E731
    i, _, policy, critic, states, sums = jax.lax.while_loop(going, minibatch, start)
    means = {k: x / i for k, x in sums.items()} | {"gradient_steps": i}
    return LearnerState(policy, critic, state.reference, states), means
