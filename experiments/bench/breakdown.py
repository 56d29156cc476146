"""What a gradient step of the critic is made of, and so what keeps it from the limit of the matrix products.

    python experiments/bench/breakdown.py

The limit and three compiled loops are timed in turns on one core, medians over rounds; a row of the table is what one
of them takes beyond the one before:

    products at the limit   the step's floating-point operations at the rate of 256 x 256 products (``training.py``)
    narrow, and between     the gradients of both losses and the target's average, without an optimiser: narrow first
                            and last layers, ReLU and its mask, biases, losses
    Adam                    the update as it is, on one batch
    the loop                the step of the training loop: drawing a batch, means for the log
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import training  # first: it keeps this process on one core before JAX starts its threads

# isort: split
import jax
import numpy as np
import optax
import shared
from rich.table import Table

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.benchmark import settings
from iwsft_control.learning import loop
from iwsft_control.learning.method import Inputs
from iwsft_control.methods import critic


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    steps: Annotated[int, POSITIVE] = 200
    """Gradient steps of one measurement."""
    rounds: Annotated[int, POSITIVE] = 9
    transitions: Annotated[int, POSITIVE] = 400_000
    """Rows of the random data."""


def gradients(config: critic.CriticConfig, state: critic.CriticState, batch: Any) -> critic.CriticState:
    """An update without Adam: all parameters move by a hair, or compilers would leave out what is always the same."""
    value_gradient = jax.grad(partial(critic.value_loss, config))(state.value, state.target, batch)
    value = jax.tree.map(lambda p, g: p - 1e-9 * g, state.value, value_gradient)
    critic_gradient = jax.grad(partial(critic.critic_loss, config))(state.critic, value, batch)
    moved = jax.tree.map(lambda p, g: p - 1e-9 * g, state.critic, critic_gradient)
    target = optax.incremental_update(moved, state.target, config.target_rate)
    return state._replace(value=value, critic=moved, target=target)


def main(config: BenchConfig) -> None:
    """Measure in turns, print a row for every part."""
    bounds.check(config, "")
    shared.head()
    method, own, data = critic.METHOD, settings.make()["critic"], shared.random_data(config.transitions)
    prepared = method.prepare(own, Inputs(data, {}, None, (0,)))
    carry, table, keys = loop.begin(method, own, prepared, (0,))
    state = jax.tree.map(lambda x: x[0], carry[0])
    batch = method.sample(own, table._replace(own=jax.tree.map(lambda x: x[0], table.own)), keys[0])
    step_of_loop, flops = training.method_case(method, own, data)
    repeat = jax.jit(
        lambda which, state, batch: jax.lax.fori_loop(0, config.steps, lambda i, s: which(s, batch), state),
        static_argnums=0,
    )
    only_gradients = partial(gradients, own)

    def whole_update(s: Any, b: Any) -> Any:
        return critic.update(own, s, b)[0]

    def milliseconds(run: Callable[[int], Any]) -> float:
        return 1e3 / training.measure(run, config.steps)

    parts: dict[str, Callable[[], float]] = {
        "products at the limit": lambda: 1e3 * flops / training.limit_rate(),
        "narrow, and between": lambda: milliseconds(lambda steps: repeat(only_gradients, state, batch)),
        "Adam": lambda: milliseconds(lambda steps: repeat(whole_update, state, batch)),
        "the loop": lambda: milliseconds(step_of_loop),
    }
    for part in parts.values():
        part()  # compiles
    found = np.array([[part() for part in parts.values()] for _ in range(config.rounds)])
    medians = np.median(found, axis=0)
    printed = Table("a step of the critic", "ms more", "ms so far", "share of the step")
    for name, before, until in zip(parts, [0.0, *medians], medians, strict=False):
        printed.add_row(name, f"{until - before:.3f}", f"{until:.3f}", f"{(until - before) / medians[-1]:.2f}")
    console.console.print(printed)


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/breakdown.py", __doc__)
