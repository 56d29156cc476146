"""The recipe of the paper's released control code, exactly: whole trajectories, for comparison (``--preset released``).

Of bc: 128 whole trajectories a step out of all, 10,000 steps at 1e-3. Of the methods that start from it: 256 whole
trajectories a step, drawn from the curated entries (binary, or nested strata of return: percentiles 90, 95, 98), 2,000
steps at 4e-5 with a warm-up of 300 steps and cosine decay. Weighted ones have temperature 10, weights clamped to [0,
1000] and divided by their sum over the batch; q lags by 0.9. Each trajectory counts by its mean over t, and the last
parameters are evaluated.

    L = -(1/B) sum_i w_i (1/T_i) sum_t log pi(a_t|s_t)
    w_i = clamp(exp(10 mean_t[log q - log pi_ref]), 0, 1000) / sum_j clamp(...), or 1 without importance weights

This is one preset of the general sequence form in :mod:`iwsft_control.learning.objectives`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from iwsft_control.configs.released import BC_LEARNING_RATE, IMPORTANCE, LEARNING_RATE
from iwsft_control.learning import objectives
from iwsft_control.learning.method import Prepared
from iwsft_control.learning.objectives import LogProb

BC_TRAJECTORIES, TRAJECTORIES = 128, 256  # per step
WARM_UP = 300  # steps
CHUNK = 4096  # rows of one pass that stay in cache


class Recipe(NamedTuple):
    """What one of the methods does of it."""

    optimiser: optax.GradientTransformation
    trajectories: int
    weighted: bool


def recipe(fine_tunes: bool, weighted: bool, steps: int) -> Recipe:
    """The recipe of bc, or of a method that starts from it, over ``steps``."""
    if not fine_tunes:
        return Recipe(optax.adam(BC_LEARNING_RATE), BC_TRAJECTORIES, weighted)
    warm_up = min(WARM_UP, steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, warm_up, steps)
    return Recipe(optax.adam(schedule), TRAJECTORIES, weighted)


class Trajectories(NamedTuple):
    """A batch: indices of curated units (B,), and the data that they lie in."""

    units: jax.Array
    data: Prepared


def sample(count: int, data: Prepared, key: jax.Array) -> Trajectories:
    """``count`` whole trajectories, drawn uniformly from the curated entries."""
    entries = jnp.asarray(data.own.curated.entries)
    return Trajectories(entries[jax.random.randint(key, (count,), 0, data.own.curated.size)], data)


def update(log_prob: LogProb, recipe: Recipe, state: Any, batch: Trajectories) -> tuple[Any, dict[str, jax.Array]]:
    """One step on whole trajectories, packed end to end and visited in cache-sized chunks.

    Where it is weighted, a first pass gives the mean log-ratio of every trajectory, hence the weights; a second adds up
    the gradients. A trajectory that was drawn k times (256 draws from 20 episodes, on HalfCheetah) is visited once and
    counts k times: the same sum.

    Args:
        state: has ``policy``, ``lagged`` (q, where it is weighted) and ``optimiser``.
        batch: its data's ``own`` has ``curated`` and, where it is weighted, ``reference``: log pi_ref of all curated
            rows (R,).
    """
    curated, table, count = batch.data.own.curated, batch.data.shared, recipe.trajectories
    units, counts = jnp.unique(batch.units, size=count, fill_value=0, return_counts=True)  # past the last one 0 times
    lengths = curated.lengths[units]
    ends = jnp.cumsum(jnp.where(counts > 0, lengths, 0))
    offsets = (jnp.cumsum(curated.lengths) - curated.lengths)[units]  # of each unit in curated.rows
    chunks = -(-ends[-1] // CHUNK)

    def rows_of(chunk: jax.Array):
        """Places among the curated rows and the trajectory (``count`` past the end) of a chunk's rows."""
        place = chunk * CHUNK + jnp.arange(CHUNK)
        slot = jnp.searchsorted(ends, place, side="right")
        inside = jnp.minimum(slot, count - 1)
        return jnp.where(slot < count, place - (ends - lengths)[inside] + offsets[inside], 0), slot

    weights, lagged, report = jnp.ones(count), state.lagged, {}  # of a single draw
    if recipe.weighted:
        lagged = optax.incremental_update(state.policy, state.lagged, 1 - IMPORTANCE.lag)

        def add_ratios(chunk: jax.Array, sums: jax.Array) -> jax.Array:
            position, slot = rows_of(chunk)
            ratio = log_prob(lagged, table.rows(curated.rows[position])) - batch.data.own.reference[position]
            return sums + jax.ops.segment_sum(ratio, slot, count)

        means = jax.lax.fori_loop(0, chunks, add_ratios, jnp.zeros(count)) / lengths
        weights = objectives.normalised_weights(IMPORTANCE, means, counts)
        report = {
            "effective_sample_size": objectives.effective_sample_size(weights, counts),
            "mean_log_ratio": (counts * means).sum() / count,
            "max_weight": jnp.where(counts > 0, weights, 0.0).max(),
        }

    def add_gradient(chunk: jax.Array, carry: Any) -> Any:
        position, slot = rows_of(chunk)
        rows, each = table.rows(curated.rows[position]), objectives.row_weights(counts * weights, slot, lengths)
        value, grad = jax.value_and_grad(lambda p: objectives.sequence_loss(log_prob, p, rows, each))(state.policy)
        return carry[0] + value, jax.tree.map(jnp.add, carry[1], grad)

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.policy))
    value, grad = jax.lax.fori_loop(0, chunks, add_gradient, zero)
    change, optimiser_state = recipe.optimiser.update(grad, state.optimiser)
    policy = optax.apply_updates(state.policy, change)
    return state._replace(policy=policy, lagged=lagged, optimiser=optimiser_state), {"loss": value, **report}
