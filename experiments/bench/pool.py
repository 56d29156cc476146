"""Gradient steps a second of processes that fill all cores, as the workers of a sweep do.

    python experiments/bench/pool.py

One process a core trains on random data of Hopper's shape. Two ways: XLA has one thread in each, which is this
package's default, or as many as there are cores, which is XLA's. Sums over the processes, medians over rounds in which
the ways take turns; then the same for one process that has the machine for itself.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from typing import Any

import jax
import numpy as np
import shared
from rich.table import Table

from iwsft_control.base import children, console
from iwsft_control.benchmark import settings
from iwsft_control.learning import loop
from iwsft_control.learning.method import Inputs
from iwsft_control.methods import registry

CALL = 20  # steps of a compiled call


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """What to measure."""

    methods: tuple[str, ...] = ("bc", "critic", "iql", "td3-bc", "cql")
    """Methods."""
    seconds: float = 5.0
    """Of one measurement."""
    rounds: int = 3
    transitions: int = 200_000
    """Rows of the random data."""


def speed(config: PoolConfig, name: str, together: Any, answers: Any) -> None:
    """Put the steps per second of a method's loop into ``answers``.

    Args:
        together: a barrier, so that all processes train at the same time.
    """
    method = registry.get(name)
    own = settings.make().of(method)
    data = shared.random_data(config.transitions)
    inputs = Inputs(data, shared.stand_ins(method, own, data, 1), None, (0,))
    carry, packed, keys = loop.begin(method, own, method.prepare(own, inputs), (0,))

    def call(carry: Any) -> Any:
        return jax.block_until_ready(loop._call(method, own, CALL, carry, packed, keys)[0])

    carry = call(call(carry))
    together.wait()
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < config.seconds:
        carry, steps = call(carry), steps + CALL
    answers.put(steps / (time.perf_counter() - began))
    together.wait()  # nobody ends, and frees its core, while another still measures


def measure(config: PoolConfig, name: str, processes: int, threads: int) -> float:
    """Steps per second of all processes together."""
    context = multiprocessing.get_context("spawn")
    together, answers = context.Barrier(processes), context.Queue()
    os.environ["PJRT_NPROC"] = str(threads)  # inherited
    started = [context.Process(target=speed, args=(config, name, together, answers)) for _ in range(processes)]
    for process in started:
        process.start()
    total = sum(answers.get() for _ in started)
    for process in started:
        process.join()
    return total


def main(config: PoolConfig) -> None:
    """Measure in turns, print a row per method and number of processes."""
    shared.head()
    cores = children.usable_cores()
    table = Table("method", "processes", f"{cores} threads each", "one thread each", "ratio")
    for name in config.methods:
        for processes in (cores, 1):
            rounds = [
                [measure(config, name, processes, threads) for threads in (cores, 1)] for _ in range(config.rounds)
            ]
            several, one = np.array(rounds).T
            ratio = one / several
            cell = f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
            table.add_row(name, str(processes), f"{np.median(several):.0f}", f"{np.median(one):.0f}", cell)
    console.console.print(table)


if __name__ == "__main__":
    console.command(lambda: PoolConfig, main, "python experiments/bench/pool.py", __doc__)
