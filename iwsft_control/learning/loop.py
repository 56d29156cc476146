"""The jitted loops: critics, behaviour cloning and fine-tuning, for several seeds at once.

Every array that is learned has a leading seed axis S, and each loop is one ``vmap`` over it around one ``lax.scan``:
on an accelerator all seeds are one program, on a CPU S is one. The data set is shared and passed as an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iwsft_control.base.snapshot import Snapshot
from iwsft_control.datasets import transitions
from iwsft_control.learning import objectives
from iwsft_control.learning.curation import Curated, by_transition, draw, stack
from iwsft_control.learning.objectives import ImportanceConfig
from iwsft_control.methods import critic, supervised
from iwsft_control.methods.supervised import PolicyConfig
from iwsft_control.networks.policies import GaussianPolicy, policy_log_prob

PASS_CHUNK = 4096  # rows of one forward pass that stay in cache


REPORT_STEPS = 500  # steps of one compiled call of an unweighted loop, between two reports of progress


Progress = Callable[[int], None]


# Which stream of a seed's random numbers a stage draws from.
STAGES = {"bc": 0, "critic": 1, "filtered-bc": 2, "sft": 3, "iw-sft": 4, "sft-q": 5, "iw-sft-q": 6} | {
    "iql": 7, "td3-bc": 8, "awac": 9, "cql": 10, "rebrac": 11, "rebrac-tuned": 12
}  # fmt: skip


class PolicyState(NamedTuple):
    """Parameters, their exponential average (evaluated), the lagging q (iw-SFT's) and the optimiser's state."""

    params: Any
    average: Any
    lagged: Any
    optimiser: Any


def stage_keys(seeds: Sequence[int], stage: str) -> jax.Array:
    """One key per seed, (S,), distinct for every stage of the run."""
    return jnp.stack([jax.random.fold_in(jax.random.key(s), STAGES[stage]) for s in seeds])


def create_policies(config: PolicyConfig, observation_dim: int, action_dim: int, keys: jax.Array) -> Any:
    """Fresh policy parameters, one set per key, stacked (S, ...)."""
    policy = GaussianPolicy(config.hidden, action_dim)
    return jax.vmap(lambda key: policy.init(key, jnp.zeros((1, observation_dim))))(keys)


def _over_seeds(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function`` for every entry of the leading seed axis: a ``vmap``, or a plain call where there is one seed.

    (A batched product of batch one runs at less than half the speed of a plain one on a CPU.)
    """
    if jax.tree.leaves(arguments)[0].shape[0] > 1:
        return jax.vmap(function)(*arguments)
    result = function(*jax.tree.map(lambda x: x[0], arguments))
    return jax.tree.map(lambda x: x[None], result)


# --- critics -------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _critic_steps(config: critic.CriticConfig, steps: int, states: Any, data: transitions.CriticData, keys: jax.Array):
    return _over_seeds(lambda state, key: critic.train(config, steps, state, data, key), states, keys)


def train_critics(
    config: critic.CriticConfig, data: transitions.CriticData, seeds: Sequence[int], progress: Progress
) -> tuple[critic.CriticState, list[dict[str, Any]]]:
    """Learn Q and V for every seed, (S, ...); also the mean losses of each seed along training."""
    init_keys, loop_keys = _split(stage_keys(seeds, "critic"))
    dims = data.observations.shape[1], data.actions.shape[1]
    states = jax.vmap(lambda key: critic.create(config, *dims, key))(init_keys)
    states = jax.tree.map(jnp.copy, states)  # target and critic start as one buffer, which cannot be donated twice
    log = []
    for start, steps in _calls(config.steps, REPORT_STEPS):
        states, losses = _critic_steps(config, steps, states, data, _fold(loop_keys, start))
        log.append({"step": start + steps, **losses})
        jax.block_until_ready(losses)
        progress(steps)
    return states, _per_seed(log, len(seeds))


# --- policies ------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def log_probs(hidden: tuple[int, ...], params: Any, observations: jax.Array, actions: jax.Array) -> jax.Array:
    """log pi(a|s) of rows (R, O), (R, A) -> (R,), in cache-sized chunks, one pass."""
    policy = GaussianPolicy(hidden, actions.shape[1])
    pad = -actions.shape[0] % PASS_CHUNK
    chunked = [jnp.pad(x, ((0, pad), (0, 0))).reshape(-1, PASS_CHUNK, x.shape[1]) for x in (observations, actions)]
    values = jax.lax.map(lambda oa: policy_log_prob(policy, params, *oa), tuple(chunked))
    return values.reshape(-1)[: actions.shape[0]]


def _steps(
    config: PolicyConfig,
    learning_rate: optax.Schedule,
    importance: ImportanceConfig | None,
    steps: int,
    state: PolicyState,
    reference: jax.Array,
    curated: Curated,
    data: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> tuple[PolicyState, dict[str, jax.Array]]:
    """One refresh of the importance weights (iw methods), then ``steps`` gradient steps."""
    observations, actions = data
    policy = GaussianPolicy(config.hidden, actions.shape[1])
    optimiser = optax.adam(learning_rate)
    info, cumulative = {}, None
    if importance is not None:
        log_q = log_probs(config.hidden, state.lagged, observations[curated.rows], actions[curated.rows])
        log_ratio = objectives.unit_means(log_q - reference, curated.unit_of_row, curated.lengths)
        weights = objectives.importance_weights(importance, log_ratio)
        sizes = jnp.asarray(curated.lengths) if config.length_weighted else jnp.ones_like(curated.lengths)
        per_entry = (weights * sizes)[curated.entries]
        cumulative = jnp.cumsum(jnp.where(jnp.arange(per_entry.shape[0]) < curated.size, per_entry, 0.0))
        info = {
            "effective_sample_size": objectives.effective_sample_size(weights),
            "mean_log_ratio": log_ratio.mean(),
            "max_weight": weights.max(),
            "weight_histogram": objectives.weight_histogram(importance, weights),
        }

    def step(state: PolicyState, key: jax.Array):
        rows = draw(config.batch_size, curated, cumulative, key)
        value, grad = jax.value_and_grad(
            lambda params: objectives.loss(policy_log_prob(policy, params, observations[rows], actions[rows]))
        )(state.params)
        change, optimiser_state = optimiser.update(grad, state.optimiser)
        params = optax.apply_updates(state.params, change)
        average = optax.incremental_update(params, state.average, 1 - config.average_decay)
        lagged = state.lagged
        if importance is not None:
            lagged = optax.incremental_update(params, state.lagged, 1 - importance.lag)
        return PolicyState(params, average, lagged, optimiser_state), value

    state, losses = jax.lax.scan(step, state, jax.random.split(key, steps))
    return state, {"loss": losses.mean(), **info}


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _policy_steps(config, learning_rate, total, importance, steps, states, references, curated, data, keys):
    schedule = optax.cosine_decay_schedule(learning_rate, total)
    one = partial(_steps, config, schedule, importance, steps)
    return _over_seeds(lambda s, r, c, k: one(s, r, c, data, k), states, references, curated, keys)


@partial(jax.jit, static_argnums=0)
def _reference(config: PolicyConfig, params: Any, curated: Curated, data: tuple[jax.Array, jax.Array]) -> jax.Array:
    observations, actions = data
    return _over_seeds(lambda p, c: log_probs(config.hidden, p, observations[c.rows], actions[c.rows]), params, curated)


def train_policies(
    config: PolicyConfig,
    importance: ImportanceConfig,
    method: str,
    data: tuple[jax.Array, jax.Array],
    curated: Sequence[Curated],
    seeds: Sequence[int],
    start: Any | None,
    progress: Progress,
) -> tuple[Any, list[dict[str, Any]]]:
    """Train one method for every seed.

    Args:
        data: observations (N, O) and actions (N, A) on the device.
        curated: one set per seed, or a single one that all seeds share.
        start: BC parameters (S, ...) for methods that fine-tune; they are also pi_ref.
        progress: told the steps as they are done.

    Returns:
        The averaged policy parameters (S, ...), and a log of loss and weight diagnostics for every seed.
    """
    kind = supervised.METHODS[method]
    steps = config.fine_tune_steps if kind.fine_tunes else config.bc_steps
    rate = config.fine_tune_learning_rate if kind.fine_tunes else config.bc_learning_rate
    init_keys, loop_keys = _split(stage_keys(seeds, method))
    params = start if kind.fine_tunes else create_policies(config, data[0].shape[1], data[1].shape[1], init_keys)
    assert params is not None
    if config.length_weighted and not kind.importance_weighted:
        curated = [by_transition(c) for c in curated]
    stacked = jax.tree.map(jnp.asarray, stack(curated if len(curated) > 1 else [*curated] * len(seeds)))
    weighting = importance if kind.importance_weighted else None
    references = jnp.zeros((len(seeds), 1))
    if weighting is not None:
        references = _reference(config, params, stacked, data)
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))
    states = PolicyState(params, params, params, jax.vmap(optimiser.init)(params))
    log = []
    for first, count in _calls(steps, importance.refresh_every if weighting else REPORT_STEPS):
        states, info = _policy_steps(
            config, rate, steps, weighting, count, states, references, stacked, data, _fold(loop_keys, first)
        )
        log.append({"step": first + count, **info})
        jax.block_until_ready(info)
        progress(count)
    return states.average, _per_seed(log, len(seeds))


def _split(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def _fold(keys: jax.Array, step: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)


def _calls(total: int, each: int) -> list[tuple[int, int]]:
    """(first step, steps) of every compiled call: equal but for the last, so at most two programs are compiled."""
    return [(first, min(each, total - first)) for first in range(0, total, each)]


def _per_seed(log: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """A log of (S, ...) arrays as one dict of lists per seed: {"step": [...], "loss": [...], ...}.

    What is not a number (of a diverged run, or of a policy that did not move) is None, since JSON has no word for it.
    """
    names = log[0].keys() if log else ()
    columns = {k: [np.asarray(row[k]) for row in log] for k in names}

    def values(x: np.ndarray) -> Any:
        if x.ndim:
            return [values(each) for each in x]
        return x.item() if np.isfinite(x) else None

    return [{k: [values(v[s] if v.ndim else v) for v in column] for k, column in columns.items()} for s in range(seeds)]


# --- baselines -------------------------------------------------------------------------------------------------------


def _pack(data: Any) -> tuple[jax.Array, Any]:
    """The arrays of a data set side by side, (N, D), and their shapes for :func:`_unpack`.

    A row of a batch is then one look-up in memory, not five.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data)
    return jnp.concatenate([x.reshape(len(x), -1) for x in data], axis=1), shapes


def _unpack(rows: jax.Array, like: Any) -> Any:
    """Packed rows (B, D) as the arrays of a batch, shaped as those of ``like``."""
    widths = [math.prod(x.shape[1:]) for x in like]
    parts = jnp.split(rows, np.cumsum(widths)[:-1], axis=1)
    return type(like)(*(part.reshape(len(rows), *x.shape[1:]) for part, x in zip(parts, like, strict=True)))


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=4)
def _baseline_steps(algorithm, config, steps, shapes, states, data, keys):
    def step(carry, key):
        state, average = carry
        rows_key, update_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (config.batch_size,), 0, len(data))
        state, info = algorithm.update(config, state, _unpack(data[rows], shapes), update_key)
        average = optax.incremental_update(state.policy, average, 1 - config.average_decay)
        return (state, average), info

    def loop(carry, key):
        carry, infos = jax.lax.scan(step, carry, jax.random.split(key, steps))
        # A policy that moves every second step has no loss in between.
        return carry, {k: (jnp.nanmean if k == "policy_loss" else jnp.mean)(v) for k, v in infos.items()}

    return _over_seeds(loop, states, keys)


def train_baselines(
    algorithm: Any,
    config: Any,
    data: Any,
    method: str,
    seeds: Sequence[int],
    progress: Progress,
    checkpoint: Callable[[int, Any, Any], None] | None = None,
    snapshot: Snapshot | None = None,
) -> tuple[Any, list[dict[str, Any]]]:
    """Train a baseline for every seed.

    Args:
        algorithm: module of :mod:`iwsft_control.baselines`; config: its configuration.
        data: what ``algorithm.prepare`` made.
        method: whose random numbers are drawn.
        checkpoint: told the steps done and given the policy's averaged and its last parameters (S, ...) after every
            compiled call.
        snapshot: where the training goes on that a kill has cut short.

    Returns:
        The averaged parameters of the policy (S, ...) and a log of mean losses for every seed.
    """
    init_keys, loop_keys = _split(stage_keys(seeds, method))
    dims = data.observations.shape[1], data.actions.shape[1]
    states = jax.vmap(lambda key: algorithm.create(config, *dims, key))(init_keys)
    carry = jax.tree.map(jnp.copy, (states, states.policy))  # one buffer cannot be donated twice
    packed, shapes = _pack(data)
    snapshot = snapshot or Snapshot()
    carry, record = snapshot.load(carry)
    log: list[dict[str, Any]] = record.get("log", [])
    done = log[-1]["step"] if log else 0
    progress(done)
    carry = jax.tree.map(jnp.asarray, carry)
    for first, count in _calls(config.steps, REPORT_STEPS):
        if first < done:
            continue
        carry, info = _baseline_steps(algorithm, config, count, shapes, carry, packed, _fold(loop_keys, first))
        log.append({"step": first + count, **{k: np.asarray(v).tolist() for k, v in info.items()}})
        progress(count)
        if checkpoint is not None:
            # Copies: the next call takes the buffers.
            checkpoint(first + count, *jax.tree.map(np.array, (carry[1], carry[0].policy)))
        snapshot.save(carry, {"log": log})
    return carry[1], _per_seed(log, len(seeds))


# --- the released code's whole-trajectory loop, for comparison --------------------------------------------------------

TRAJECTORIES = 256  # per step


RELEASED_LEARNING_RATE = 4e-5


RELEASED_WARM_UP = 300  # steps


@partial(jax.jit, static_argnums=(0, 1, 2))
def _whole_trajectory_step(config, total, longest, state, reference, curated, data, key):
    """One step on ``TRAJECTORIES`` whole trajectories, packed end to end and visited in cache-sized chunks.

    A first pass gives log q of every row, hence the weights; a second adds up the gradients of -sum_r c_r log pi.
    ``reference`` holds log pi_ref of all curated rows (R,).
    """
    observations, actions = data
    policy = GaussianPolicy(config.hidden, actions.shape[1])
    unit = curated.entries[jax.random.randint(key, (TRAJECTORIES,), 0, curated.entries.shape[0])]
    lengths = curated.lengths[unit]
    ends = jnp.cumsum(lengths)
    offsets = jnp.cumsum(curated.lengths) - curated.lengths  # of each unit in curated.rows
    chunks = -(-ends[-1] // PASS_CHUNK)
    capacity = -(-TRAJECTORIES * longest // PASS_CHUNK)  # chunks if all were of the longest

    def chunk_rows(c):
        """Rows in the data, in curated.rows, and the trajectory (TRAJECTORIES past the end) of chunk c's places."""
        place = c * PASS_CHUNK + jnp.arange(PASS_CHUNK)
        slot = jnp.searchsorted(ends, place, side="right")
        inside = jnp.minimum(slot, TRAJECTORIES - 1)
        position = jnp.where(slot < TRAJECTORIES, place - (ends - lengths)[inside], 0) + offsets[unit[inside]]
        return curated.rows[position], position, slot

    lagged = optax.incremental_update(state.params, state.lagged, 1 - objectives.RELEASED.lag)

    def ratio_of(c, ratios):
        rows, position, _ = chunk_rows(c)
        log_q = policy_log_prob(policy, lagged, observations[rows], actions[rows])
        return ratios.at[c].set(log_q - reference[position])

    ratios = jax.lax.fori_loop(0, chunks, ratio_of, jnp.zeros((capacity, PASS_CHUNK)))
    slots = jnp.searchsorted(ends, jnp.arange(capacity * PASS_CHUNK), side="right")
    row_weights, weights = objectives.trajectory_row_weights(objectives.RELEASED, ratios.reshape(-1), slots, lengths)
    row_weights = row_weights.reshape(capacity, PASS_CHUNK)

    def add_gradient(c, carry):
        rows, _, _ = chunk_rows(c)
        value, grad = jax.value_and_grad(
            lambda params: objectives.trajectory_loss(
                policy_log_prob(policy, params, observations[rows], actions[rows]), row_weights[c]
            )
        )(state.params)
        return carry[0] + value, jax.tree.map(jnp.add, carry[1], grad)

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    value, grad = jax.lax.fori_loop(0, chunks, add_gradient, zero)
    optimiser = optax.adam(_released_schedule(total))
    change, optimiser_state = optimiser.update(grad, state.optimiser)
    params = optax.apply_updates(state.params, change)
    average = optax.incremental_update(params, state.average, 1 - config.average_decay)
    info = {
        "loss": value,
        "effective_sample_size": objectives.effective_sample_size(weights),
        "mean_log_ratio": objectives.unit_means(ratios.reshape(-1), slots, lengths).mean(),
        "max_weight": weights.max(),
    }
    return PolicyState(params, average, lagged, optimiser_state), info


def _released_schedule(total: int) -> optax.Schedule:
    warm_up = min(RELEASED_WARM_UP, total // 2)
    return optax.warmup_cosine_decay_schedule(0.0, RELEASED_LEARNING_RATE, warm_up, total)


def train_whole_trajectories(
    config: PolicyConfig,
    importance: ImportanceConfig,
    method: str,
    data: tuple[jax.Array, jax.Array],
    curated: Sequence[Curated],
    seeds: Sequence[int],
    start: Any | None,
    progress: Progress,
) -> tuple[Any, list[dict[str, Any]]]:
    """:func:`train_policies` for iw-sft and iw-sft-q as the released code trains them, seed after seed.

    256 whole trajectories a step, temperature 10, weights clamped to [0, 1000] and divided by their sum over the
    batch, learning rate 4e-5 with a warm-up of 300 steps and cosine decay. ``importance`` is not used; the units must
    be episodes. The released code takes 2,000 steps (``config.fine_tune_steps``).
    """
    assert start is not None and len(curated) == 1
    total = config.fine_tune_steps
    one, longest = jax.tree.map(jnp.asarray, curated[0]), int(np.max(curated[0].lengths))
    averages, logs = [], []
    for s, key in enumerate(stage_keys(seeds, method)):
        params = jax.tree.map(lambda x, s=s: x[s], start)
        reference = log_probs(config.hidden, params, data[0][one.rows], data[1][one.rows])
        optimiser = optax.adam(_released_schedule(total))
        state = PolicyState(params, params, params, optimiser.init(params))
        log = []
        for step in range(total):
            state, info = _whole_trajectory_step(
                config, total, longest, state, reference, one, data, jax.random.fold_in(key, step)
            )
            log.append({"step": step + 1, **info})
            jax.block_until_ready(info)
            progress(1)
        averages.append(state.average)
        logs += _per_seed(log, 1)
    return jax.tree.map(lambda *x: jnp.stack(x), *averages), logs
