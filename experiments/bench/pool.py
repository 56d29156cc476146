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
from multiprocessing import connection
from typing import Annotated

import jax
import numpy as np
import shared
from rich.table import Table

from iwsft_control.base import bounds, children, console
from iwsft_control.base.bounds import POSITIVE
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
    seconds: Annotated[float, POSITIVE] = 2.0
    """Of one measurement."""
    rounds: Annotated[int, POSITIVE] = 3
    transitions: Annotated[int, POSITIVE] = 200_000
    """Rows of the random data."""


def serve(pipe: connection.Connection, config: PoolConfig) -> None:
    """For every (method, seconds) that comes through the pipe, answer with the steps per second of its loop."""
    data, made = shared.random_data(config.transitions), {}
    while asked := pipe.recv():
        name, seconds = asked
        method = registry.get(name)
        own = settings.make().of(method)
        if name not in made:
            stand_ins = shared.stand_ins(method, own, data, 1)
            inputs = Inputs(data, stand_ins, "q" if method.by_quality else None, (0,))
            made[name] = loop.begin(method, own, method.prepare(own, inputs), (0,))
        carry, packed, keys = made.pop(name)
        steps, began = 0, time.perf_counter()
        while steps == 0 or time.perf_counter() - began < seconds:
            carry = jax.block_until_ready(loop._call(method, own, CALL, carry, packed, keys)[0])
            steps += CALL
        made[name] = carry, packed, keys
        pipe.send(steps / (time.perf_counter() - began))


def start(config: PoolConfig, count: int, threads: int) -> list[connection.Connection]:
    """Processes with so many threads of XLA, and what one speaks to them through."""
    context = multiprocessing.get_context("spawn")
    os.environ["PJRT_NPROC"] = str(threads)  # inherited
    pipes = []
    for _ in range(count):
        mine, other = context.Pipe()
        context.Process(target=serve, args=(other, config), daemon=True).start()
        pipes.append(mine)
    return pipes


def measure(pipes: list[connection.Connection], name: str, seconds: float) -> float:
    """Steps per second of all these processes together."""
    for pipe in pipes:
        pipe.send((name, seconds))
    return sum(pipe.recv() for pipe in pipes)


def main(config: PoolConfig) -> None:
    """Measure in turns, print a row per method and number of processes."""
    bounds.check(config, "")
    shared.check_methods(config.methods)
    shared.head()
    cores = children.usable_cores()
    several, one = start(config, cores, cores), start(config, cores, 1)
    table = Table("method", "processes", f"{cores} threads each", "one thread each", "ratio")
    for name in config.methods:
        for pipes in (several, one):
            measure(pipes, name, 0)  # compiles
        for count in (cores, 1):
            ways = several[:count], one[:count]
            rounds = [[measure(pipes, name, config.seconds) for pipes in ways] for _ in range(config.rounds)]
            found = np.array(rounds).T
            ratio = found[1] / found[0]
            rates = [f"{np.median(x):.0f}" for x in found]
            table.add_row(name, str(count), *rates, f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})")
    for pipe in several + one:
        pipe.send(None)
    console.console.print(table)


if __name__ == "__main__":
    console.command(lambda: PoolConfig, main, "python experiments/bench/pool.py", __doc__)
