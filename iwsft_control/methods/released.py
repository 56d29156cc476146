"""iw-SFT exactly as in the paper's released control code: whole trajectories, for comparison (``--whole-trajectory``).

256 whole trajectories a step, drawn from the curated entries; temperature 10, weights clamped to [0, 1000] and divided
by their sum over the batch; q lags by 0.9; each trajectory counts by its mean over t; learning rate 4e-5 with a warm-up
of 300 steps and cosine decay. The released code takes 2,000 steps. The units must be episodes.

    L = -(1/B) sum_i w_i (1/T_i) sum_t log pi(a_t|s_t)
    w_i = clamp(exp(10 mean_t[log q - log pi_ref]), 0, 1000) / sum_j clamp(...)

This is one preset of the general sequence form in :mod:`iwsft_control.learning.objectives`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from iwsft_control.learning import objectives
from iwsft_control.learning.method import Prepared
from iwsft_control.learning.objectives import ImportanceConfig, LogProb

IMPORTANCE = ImportanceConfig(temperature=10.0, low=0.0, high=1000.0, lag=0.9, refresh_every=1)
TRAJECTORIES = 256  # per step
LEARNING_RATE = 4e-5
WARM_UP = 300  # steps
CHUNK = 4096  # rows of one pass that stay in cache


def optimiser(steps: int) -> optax.GradientTransformation:
    """Adam with the released schedule over ``steps``."""
    warm_up = min(WARM_UP, steps // 2)
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, warm_up, steps))


class Trajectories(NamedTuple):
    """A batch: indices of curated units (B,), and the data that they lie in."""

    units: jax.Array
    data: Prepared


def sample(config: Any, data: Prepared, key: jax.Array) -> Trajectories:
    """Whole trajectories, drawn uniformly from the curated entries."""
    entries = jnp.asarray(data.own.curated.entries)
    return Trajectories(entries[jax.random.randint(key, (TRAJECTORIES,), 0, data.own.curated.size)], data)


def update(log_prob: LogProb, steps: int, state: Any, batch: Trajectories) -> tuple[Any, dict[str, jax.Array]]:
    """One step on whole trajectories, packed end to end and visited in cache-sized chunks.

    A first pass gives the mean log-ratio of every trajectory, hence the weights; a second adds up the gradients.

    Args:
        steps: of the whole training, for the learning rate.
        state: has ``policy``, ``lagged`` (q) and ``optimiser``.
        batch: its data's ``own`` has ``curated`` and ``reference``, log pi_ref of all curated rows (R,).
    """
    curated, reference, table = batch.data.own.curated, batch.data.own.reference, batch.data.shared
    lengths = curated.lengths[batch.units]
    ends = jnp.cumsum(lengths)
    offsets = (jnp.cumsum(curated.lengths) - curated.lengths)[batch.units]  # of each unit in curated.rows
    chunks = -(-ends[-1] // CHUNK)

    def rows_of(chunk: jax.Array):
        """Rows of the data, log pi_ref, and the trajectory (``TRAJECTORIES`` past the end) of a chunk's places."""
        place = chunk * CHUNK + jnp.arange(CHUNK)
        slot = jnp.searchsorted(ends, place, side="right")
        inside = jnp.minimum(slot, TRAJECTORIES - 1)
        position = jnp.where(slot < TRAJECTORIES, place - (ends - lengths)[inside] + offsets[inside], 0)
        return table.rows(curated.rows[position]), reference[position], slot

    lagged = optax.incremental_update(state.policy, state.lagged, 1 - IMPORTANCE.lag)

    def add_ratios(chunk: jax.Array, sums: jax.Array) -> jax.Array:
        rows, log_reference, slot = rows_of(chunk)
        return sums + jax.ops.segment_sum(log_prob(lagged, rows) - log_reference, slot, TRAJECTORIES)

    means = jax.lax.fori_loop(0, chunks, add_ratios, jnp.zeros(TRAJECTORIES)) / lengths
    weights = objectives.normalised_weights(IMPORTANCE, means)

    def add_gradient(chunk: jax.Array, carry: Any) -> Any:
        rows, _, slot = rows_of(chunk)
        each = objectives.row_weights(weights, slot, lengths)
        value, grad = jax.value_and_grad(lambda p: objectives.sequence_loss(log_prob, p, rows, each))(state.policy)
        return carry[0] + value, jax.tree.map(jnp.add, carry[1], grad)

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.policy))
    value, grad = jax.lax.fori_loop(0, chunks, add_gradient, zero)
    change, optimiser_state = optimiser(steps).update(grad, state.optimiser)
    policy = optax.apply_updates(state.policy, change)
    return state._replace(policy=policy, lagged=lagged, optimiser=optimiser_state), {
        "loss": value,
        "effective_sample_size": objectives.effective_sample_size(weights),
        "mean_log_ratio": means.mean(),
        "max_weight": weights.max(),
    }
