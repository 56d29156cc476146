"""How time and memory grow, as one thing grows at a time: rows, episodes, seeds, the width of the networks.

    python experiments/bench/growth.py
    python experiments/bench/growth.py --methods iw-sft-q --grow rows

Every case is a process of its own, on one core: seconds of preparation (curation, the reference policy's densities, the
table that steps sample from), milliseconds of a gradient step (of all seeds together; the median of compiled calls
after the first, which compiles), and the peak of the resident memory above what it was after the imports; on an
accelerator, of the device's memory instead. *Arrays* are the data set, what earlier stages made of it and the learned
parameters: what must be there. So "peak / arrays" also holds a constant part, the compiled programs; the second table
tells what a further byte of arrays costs.

Growth is the slope of log time or memory over log size by least squares: 1 is linear, 0 no growth at all.
Data: random transitions of Hopper's shape. A method that starts from BC and a critic gets fresh parameters and random
scores in their place, since what these are worth takes no time. Their steps are of a whole refresh of the weights.
"""

from __future__ import annotations

import dataclasses
import gc
import resource
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import shared
from rich.table import Table

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE, Bounds
from iwsft_control.base.errors import require
from iwsft_control.benchmark import settings
from iwsft_control.datasets.transitions import Table as PackedTable
from iwsft_control.learning.method import Inputs, Prepared
from iwsft_control.methods import registry

Dimension = Literal["rows", "episodes", "seeds", "width"]
MB = 1 << 20
LENGTH = 200  # rows of an episode
EPISODE = Bounds(LENGTH, sentence=f"must be at least {LENGTH}, the rows of an episode")
PEAK = "VmHWM:"  # Linux's name of the peak of the resident memory


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    methods: tuple[str, ...] = ("bc", "critic", "iw-sft-q")
    """Methods, or the critic."""
    grow: tuple[Dimension, ...] = ("rows", "episodes", "seeds", "width")
    """What grows, one at a time; the others are as below."""
    rows: Annotated[tuple[int, ...], EPISODE] = (100_000, 400_000, 1_000_000, 4_000_000)
    episodes: Annotated[tuple[int, ...], POSITIVE] = (100, 1_000, 10_000, 100_000)
    """In as many rows as the base has."""
    seeds: Annotated[tuple[int, ...], POSITIVE] = (1, 2, 4, 8, 16, 32)
    """In one program (vmap)."""
    width: Annotated[tuple[int, ...], POSITIVE] = (64, 128, 256, 512, 1024)
    """Units of every hidden layer."""
    base_rows: Annotated[int, EPISODE] = 400_000
    """Rows where something else grows; there are 200 to an episode, one seed and the method's own layers."""
    steps: Annotated[int, POSITIVE] = 100
    """Gradient steps of a compiled call; a method that refreshes its weights more often takes no more than that."""
    rounds: Annotated[int, POSITIVE] = 5
    """Compiled calls after the first."""


class Case(NamedTuple):
    """One measurement."""

    method: str
    rows: int
    episodes: int
    seeds: int
    width: int | None  # of every hidden layer; None for the method's own
    steps: int
    rounds: int


class Measured(NamedTuple):
    """What one measurement found."""

    arrays: int  # bytes
    preparation: float  # seconds
    step: float  # seconds
    memory: int  # bytes


def cases(config: BenchConfig, method: str, grows: Dimension) -> dict[int, Case]:
    """The measurements of a method in which one thing grows, by its size."""
    base = Case(method, config.base_rows, config.base_rows // LENGTH, 1, None, config.steps, config.rounds)
    sizes = getattr(config, grows)
    if grows == "rows":  # episodes as long as ever
        return {n: base._replace(rows=n, episodes=n // LENGTH) for n in sizes}
    return {n: base._replace(**{grows: n}) for n in sizes}


def peak_memory(reset: bool = False) -> int:
    """Peak of this process's resident memory in bytes, counted from now on where it is reset (Linux)."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(PEAK))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def device_memory() -> int:
    """Peak of the accelerator's memory in bytes; 0 on a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def size_of(tree: Any) -> int:
    """Bytes of the arrays in a pytree."""
    return sum(x.nbytes for x in jax.tree.leaves(tree) if hasattr(x, "nbytes"))


def measure(case: Case) -> Measured:
    """Train a few steps; in a process of its own, or the memory is that of all before it."""
    jnp.zeros(1).block_until_ready()  # the backend is part of the imports
    before = peak_memory(reset=True)
    method = registry.get(case.method)
    config = settings.make().of(method)
    hidden = None if case.width is None else (case.width,) * len(getattr(config, "policy", config).hidden)
    count = min(case.steps, method.call_steps(config))
    steps = count * (1 + case.rounds)
    config = shared.resized(config, steps, **({} if hidden is None else {"hidden": hidden}))
    method = dataclasses.replace(method, call_steps=lambda config: count)
    data = shared.random_data(case.rows, case.rows // case.episodes)
    artefacts, seeds = shared.stand_ins(method, config, data, case.seeds), tuple(range(case.seeds))

    def prepare() -> Prepared:
        made = method.prepare(config, Inputs(data, artefacts, "q" if method.by_quality else None, seeds))
        jax.block_until_ready((PackedTable.of(made.shared).packed, made.own))  # as the loop packs them
        return made

    prepare()  # compiles
    began = time.perf_counter()
    prepared = prepare()
    preparation = time.perf_counter() - began
    gc.collect()  # with it JAX lets go of the arrays it borrowed; a run packs its table once
    trained, taken = shared.train(method, config, prepared, seeds)
    of_data = [v for f in dataclasses.fields(data) if isinstance(v := getattr(data, f.name), np.ndarray)]
    arrays = size_of((of_data, [a.arrays for a in artefacts.values()], trained.state, trained.policy))
    return Measured(arrays, preparation, float(np.median(taken)), device_memory() or peak_memory() - before)


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of log value over log size."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def growth(found: dict[int, Measured]) -> list[str]:
    """Cells of the exponents of preparation, step and memory, and of the memory that a further byte of arrays takes."""
    if len(found) < 2:
        return ["-"] * 4
    sizes, columns = list(found), Measured(*map(list, zip(*found.values(), strict=True)))  # type: ignore[arg-type]
    slopes = [exponent(sizes, values) for values in (columns.preparation, columns.step, columns.memory)]  # type: ignore[arg-type]
    arrays, memory = (np.array(x, float) for x in (columns.arrays, columns.memory))
    grew = arrays.max() > 1.5 * arrays.min()
    return [f"{x:.2f}" for x in slopes] + [f"{np.polyfit(arrays, memory, 1)[0]:.2f}" if grew else "-"]


def main(config: BenchConfig) -> None:
    """Measure every case, print them and how they grow."""
    bounds.check(config, "")
    shared.check_methods(config.methods)
    for name in config.methods if "width" in config.grow else ():
        own = registry.get(name).config()
        sized = hasattr(getattr(own, "policy", own), "hidden")  # a transformer has other sizes
        require(sized, f"{name} has no hidden layers that --grow width could change; leave width out.")
    fit = "episodes" not in config.grow or all(n <= config.base_rows for n in config.episodes)
    require(fit, "--episodes must not be more than --base-rows: every episode has a row.")
    shared.pin()
    shared.head()
    table = Table("method", "grows", "size", "arrays, MB", "preparation, s", "step, ms", "peak, MB", "peak / arrays")
    summary = Table("method", "grows", "preparation", "step", "peak", "bytes per further byte of arrays")
    for name in config.methods:
        for grows in config.grow:
            found: dict[int, Measured] = {}
            for size, case in cases(config, name, grows).items():
                try:
                    found[size] = m = shared.alone(measure, case)
                except MemoryError as error:
                    table.add_row(name, grows, f"{size:,}", str(error))
                    continue
                cells = f"{m.arrays / MB:.0f}", f"{m.preparation:.2f}", f"{1000 * m.step:.2f}", f"{m.memory / MB:.0f}"
                table.add_row(name, grows, f"{size:,}", *cells, f"{m.memory / m.arrays:.2f}")
            summary.add_row(name, grows, *growth(found))
    console.console.print(table)
    console.console.print(summary)


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/growth.py", __doc__)
