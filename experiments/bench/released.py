"""iw-SFT's step: the suite's default, its released recipe, and a plain rendering of the released loss.

    python experiments/bench/released.py

The released recipe is 256 whole trajectories a step (``methods/released.py``). The plain rendering is the same loss as
the paper's authors wrote it: trajectories padded to the longest of them, a mask, and the densities of policy, q and
pi_ref of all rows in every step; compiled as a whole, in JAX like the rest. Ours packs trajectories end to end, visits
them in chunks that stay in cache, each once however often it was drawn, and computes pi_ref's densities once. The
suite's default takes 256 transitions a step instead, and all weights anew every 100 steps, which its time holds.

One core, in turns, medians of rounds; a fine-tune is that times the steps of the recipe. The last line tells how far
the two renderings of the released loss lie apart after a step from the same parameters on the same trajectories.
BC's parameters are fresh ones, since what they are worth takes no time.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import shared
from rich.table import Table

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.benchmark import settings
from iwsft_control.benchmark.jobs import DataSource
from iwsft_control.configs.supervised import PolicyConfig, as_released
from iwsft_control.datasets.transitions import Demonstrations
from iwsft_control.datasets.transitions import Table as PackedTable
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning.curation import Curated
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.methods import registry, released, supervised


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    env: str | None = "hopper-medium-replay"
    """Task."""
    dataset: str | None = None
    """Id of a data set in the local Minari root instead."""
    hidden: Annotated[tuple[int, ...], POSITIVE] = (256, 256, 256)
    """Layers of the policy."""
    steps: Annotated[int, POSITIVE] = 3
    """Steps of whole trajectories in a round; the default recipe takes as many calls of 100."""
    rounds: Annotated[int, POSITIVE] = 3


class Padded(NamedTuple):
    """Trajectories of up to T rows: (U, T, O), (U, T, A), and (U, T) 1.0 where there is a row."""

    observations: Any
    actions: Any
    mask: Any


class State(NamedTuple):
    """What a step changes, as of our own."""

    policy: Any
    lagged: Any
    optimiser: Any


def pad(data: Dataset, curated: Curated) -> Padded:
    """The units of a curated set (of one seed), padded to the longest."""
    real = np.asarray(curated.unit_of_row) < len(curated.starts)
    used = np.unique(np.asarray(curated.unit_of_row)[real])
    starts, lengths = (np.asarray(x)[: used.max() + 1, None] for x in (curated.starts, curated.lengths))
    step = np.arange(lengths.max())
    mask = step < lengths
    rows = np.where(mask, starts + step, 0)
    return Padded(data.observations[rows], data.actions[rows], mask.astype(np.float32))


def plain_update(
    config: Any, optimiser: optax.GradientTransformation, reference: Any, state: State, padded: Padded, units: jax.Array
) -> State:
    """One step of the released loss on the trajectories ``units`` (B,).

    q <- 0.9 q + 0.1 theta;  w_i = clamp(exp(10 mean_t[log q - log pi_ref]), 0, 1000) / sum_j clamp(...)
    L = -(1/B) sum_i w_i (1/T_i) sum_t log pi(a_t|s_t)
    """
    batch = Padded(*(x[units] for x in padded))

    def means(params: Any) -> jax.Array:
        each = supervised.log_prob(config, params, Demonstrations(batch.observations, batch.actions))
        return (each * batch.mask).sum(axis=1) / batch.mask.sum(axis=1)

    lagged = optax.incremental_update(state.policy, state.lagged, 0.1)
    weights = jnp.clip(jnp.exp(10.0 * (means(lagged) - means(reference))), 0.0, 1000.0)
    weights = weights / weights.sum()
    gradient = jax.grad(lambda params: -(weights * means(params)).mean())(state.policy)
    change, opt = optimiser.update(gradient, state.optimiser)
    return State(optax.apply_updates(state.policy, change), lagged, opt)


class Ours(NamedTuple):
    """A recipe of the suite, ready to train."""

    method: Method
    config: Any
    prepared: Prepared
    steps: int  # of a whole fine-tune


def ready(data: Dataset, groups: dict[str, Any], calls: int) -> Ours:
    """iw-sft with some groups of settings, to be trained for as many compiled calls."""
    method = registry.get("iw-sft")
    config = settings.make(**groups).of(method)
    whole = config.steps
    method = method.variant(config) or method
    config = shared.resized(config, calls * method.call_steps(config))
    inputs = Inputs(data, shared.stand_ins(method, config, data, 1), None, (0,))
    return Ours(method, config, method.prepare(config, inputs), whole)


def both_step(ours: Ours, padded: Padded, optimiser: optax.GradientTransformation, count: int) -> float:
    """The largest difference between the parameters that both renderings come to, relative to the largest change.

    From a q that differs from the policy, so that weights differ, and at the full learning rate.
    """
    own = jax.tree.map(lambda x: x[0], ours.prepared.own)
    units = own.curated.entries[jax.random.randint(jax.random.key(1), (count,), 0, own.curated.size)]
    nearby = jax.tree.map(lambda x: 1.05 * x, own.start)
    state = State(own.start, nearby, optimiser.init(own.start))
    log_prob = partial(supervised.log_prob, ours.config)
    recipe = released.Recipe(optimiser, count, True)
    packed = Prepared(PackedTable.of(ours.prepared.shared), own)
    packs = jax.jit(partial(released.update, log_prob, recipe))(state, released.Trajectories(units, packed))[0]
    plain = jax.jit(partial(plain_update, ours.config, optimiser))(own.start, state, padded, units)
    trees = (own.start, packs.policy, plain.policy)
    start, one, two = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in trees)
    return float(np.abs(one - two).max() / np.abs(two - start).max())


def main(config: BenchConfig) -> None:
    """Measure in turns, print a row for every recipe."""
    bounds.check(config, "")
    shared.pin()
    shared.head()
    data = DataSource(None if config.dataset else config.env, config.dataset).load()
    policy = PolicyConfig(hidden=config.hidden)
    default = ready(data, {"policy": policy}, config.steps + 1)
    recipe = ready(data, as_released(policy), config.steps + 1)
    curated = jax.tree.map(lambda x: x[0], recipe.prepared.own.curated)
    padded = Padded(*map(jnp.asarray, pad(data, curated)))
    count, reference = released.TRAJECTORIES, jax.tree.map(lambda x: x[0], recipe.prepared.own.start)
    optimiser = released.recipe(True, True, recipe.steps).optimiser
    step = jax.jit(partial(plain_update, recipe.config, optimiser), donate_argnums=1)

    def plain() -> list[float]:
        state = jax.tree.map(jnp.copy, State(reference, reference, optimiser.init(reference)))
        taken = []
        for i in range(config.steps + 1):
            began = time.perf_counter()
            units = curated.entries[jax.random.randint(jax.random.key(i), (count,), 0, curated.size)]
            state = jax.block_until_ready(step(reference, state, padded, units))
            taken.append(time.perf_counter() - began)
        return taken[1:]  # the first compiles

    ways = {
        "the suite's default": lambda: shared.train(*default[:3])[1],
        "the released recipe": lambda: shared.train(*recipe[:3])[1],
        "plain rendering of it": plain,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(config.rounds):
        for name, way in ways.items():
            found[name].append(float(np.median(way())))
    times = np.bincount(np.asarray(curated.entries[: int(curated.size)]), minlength=len(curated.lengths))
    drawn = 1 - (1 - times / times.sum()) ** count  # probability that a trajectory is in a batch
    rows = float((np.asarray(curated.lengths) * drawn).sum())
    transitions = default.config.policy.batch_size, rows, count * padded.mask.shape[1]
    table = Table("iw-SFT", "rows a step", "step, ms", "plain / this", "steps of a fine-tune", "fine-tune, s")
    steps = default.steps, recipe.steps, recipe.steps
    for (name, values), n, whole in zip(found.items(), transitions, steps, strict=True):
        ratios = np.array(found["plain rendering of it"]) / np.array(values)
        taken = np.median(values)
        table.add_row(
            name, f"{n:,.0f}", f"{1000 * taken:.2f}", f"{np.median(ratios):.1f}", f"{whole:,}", f"{whole * taken:.0f}"
        )
    console.console.print(table)
    apart = both_step(recipe, padded, optax.adam(released.LEARNING_RATE), count)
    console.console.print(f"the two renderings of the released loss after a step: {apart:.1e} of its change apart")


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/released.py", __doc__)
