"""One GPU: every method on three tasks, ten seeds as one program each, and where the time goes.

    python experiments/bench/accelerator.py                       # trains and evaluates; then one seed alone
    python experiments/bench/accelerator.py --dry-run             # compiles alone: what the programs will need
    python experiments/bench/accelerator.py --steps 1000          # no method takes more: a trial

Seconds of every stage (training, its compilation, evaluation on the machine's cores), of all seeds and of one seed, and
their ratio in training. Stages are kept in a temporary folder: nothing that was finished before counts. A dry run
compiles every training program for this device with the data in place, and tells the memory that it will take:
its arguments (data, parameters, curated sets), temporary arrays, and the program itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.console import cache_compiled_programs
from iwsft_control.base.errors import require
from iwsft_control.benchmark import checks, jobs, settings, stages
from iwsft_control.benchmark.jobs import DataSource, Job
from iwsft_control.benchmark.perform import perform
from iwsft_control.benchmark.settings import Settings
from iwsft_control.benchmark.store import Store
from iwsft_control.configs.supervised import KINDS
from iwsft_control.learning import loop
from iwsft_control.learning.method import Inputs
from iwsft_control.methods import registry

COMPILING = "/jax/core/compile/backend_compile_duration"
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to run."""

    tasks: tuple[str, ...] = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")
    """Tasks."""
    methods: tuple[str, ...] = (*KINDS, "iql", "td3-bc", "awac", "one-step", "rebrac", "cql")
    """Methods; sft-q and iw-sft-q by the learned Q."""
    seeds: Annotated[int, POSITIVE] = 10
    """Seeds that are trained as one program."""
    steps: Annotated[int | None, POSITIVE] = None
    """No method takes more gradient steps than this."""
    one_seed: bool = True
    """Train seed 0 alone too, for the ratio."""
    dry_run: bool = False
    """Train nothing: compile, and tell the memory that the programs need."""


class Times(NamedTuple):
    """Seconds of a stage."""

    compiling: float
    training: float
    """Without compiling."""
    evaluation: float


class Memory(NamedTuple):
    """Bytes that a training program needs, and the seconds that it took to compile."""

    arguments: int
    temporary: int
    program: int
    compiling: float


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """Seconds of every compilation from now on, in a list that grows by them."""
    found: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILING:
            found.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def capped(chosen: Settings, steps: int) -> Settings:
    """Settings in which no method takes more gradient steps."""

    def cap(group: Any) -> Any:
        names = {"steps", "bc_steps", "fine_tune_steps"} & {f.name for f in dataclasses.fields(group)}
        return dataclasses.replace(group, **{name: min(steps, getattr(group, name)) for name in names})

    return chosen.replace(**{name: cap(group) for name, group in chosen.groups if dataclasses.is_dataclass(group)})


def plan(config: BenchConfig, seeds: Sequence[int]) -> list[Job]:
    """The stages of all methods and what they start from, of these seeds as one program each."""
    chosen = settings.make()
    if config.steps is not None:
        chosen = capped(chosen, config.steps)
    wanted = [
        Job(DataSource(task), stages.method_stage(method, "q", tuple(seeds), chosen, task))
        for task in config.tasks
        for method in config.methods
    ]
    return jobs.with_dependencies(wanted)


def timed(job: Job, store: Store, compiled: list[float]) -> Times:
    """Do a stage. ``compiled`` grows by the seconds of every compilation."""
    before = len(compiled)
    record = perform(job.stage, job.source.load(), store).record
    compiling = sum(compiled[before:])
    training = record["seconds"][job.stage.method]
    return Times(
        compiling, max(0.0, training - compiling), record["seconds"].get(f"{job.stage.method} evaluation", 0.0)
    )


def memory(job: Job, store: Store) -> Memory:
    """Compile a stage's training program; ``store`` has what it starts from, of one seed at least."""
    stage, data = job.stage, job.source.load()
    config, method = stage.config, registry.get(stage.method)
    method = method.variant(config) or method
    inputs = {}
    for name, each in stages.dependencies(dataclasses.replace(stage, seeds=stage.seeds[:1])).items():
        one = perform(each, data, store)  # of one seed: only its shapes count
        inputs[name] = one._replace(
            arrays=jax.tree.map(lambda x: np.repeat(np.asarray(x)[:1], len(stage.seeds), axis=0), one.arrays)
        )
    prepared = method.prepare(config, Inputs(data, inputs, stage.quality, stage.seeds))
    carry, placed, keys = loop.begin(method, config, prepared, stage.seeds)
    began = time.perf_counter()
    count = min(method.call_steps(config), config.steps)
    program = loop._call.lower(method, config, count, carry, placed, keys).compile()
    seconds = time.perf_counter() - began
    sizes: Any = program.memory_analysis()
    require(sizes is not None, f"this device ({jax.devices()[0].device_kind}) does not tell what its programs need.")
    return Memory(sizes.argument_size_in_bytes, sizes.temp_size_in_bytes, sizes.generated_code_size_in_bytes, seconds)


def main(config: BenchConfig) -> None:
    """Run or compile everything and print a row for every stage."""
    checks.check_methods(config.methods)
    bounds.check(config, "")
    checks.check_tasks(config.tasks)
    device = jax.devices()[0]
    console.console.print(f"{device.device_kind} ({device.platform}), {config.seeds} seeds as one program")
    cache_compiled_programs()
    with tempfile.TemporaryDirectory() as folder:
        (dry_run if config.dry_run else whole_run)(config, Path(folder))


def whole_run(config: BenchConfig, folder: Path) -> list[tuple[Job, Times, Times | None]]:
    """Train and evaluate everything; print where the time goes."""
    together = plan(config, range(config.seeds))
    with compilations() as compiled:
        began = time.perf_counter()
        many = [timed(job, Store(folder / "many"), compiled) for job in together]
        took = time.perf_counter() - began
        single = plan(config, range(1)) if config.one_seed else []
        alone = [timed(job, Store(folder / "one"), compiled) for job in single]
    singles: list[Times | None] = [*alone] or [None] * len(many)
    found = list(zip(together, many, singles, strict=True))
    table = Table("task", "stage", "compiling", "training", "one seed", "ratio", "evaluation", title="seconds")
    for job, of_all, of_one in found:
        table.add_row(job.source.task, job.stage.name, *_cells(of_all, of_one))
    table.add_row("all", "", *_cells(_total(many), _total(alone) if alone else None))
    console.console.print(table)
    console.console.print(f"everything, with loading and preparation: {took / 60:.1f} minutes")
    return found


def _total(times: Sequence[Times]) -> Times:
    return Times(*(sum(getattr(each, name) for each in times) for name in Times._fields))


def _cells(many: Times, one: Times | None) -> tuple[str, ...]:
    alone = "-" if one is None else f"{one.training:.1f}"
    ratio = f"{many.training / one.training:.2f}" if one is not None and one.training > 0 else "-"
    return f"{many.compiling:.1f}", f"{many.training:.1f}", alone, ratio, f"{many.evaluation:.1f}"


def dry_run(config: BenchConfig, folder: Path) -> list[tuple[Job, Memory]]:
    """Compile everything; print what it needs. What a stage starts from is made by a few steps of one seed."""
    store, short = Store(folder), dataclasses.replace(config, steps=min(config.steps or 100, 100))
    found = []
    table = Table("task", "stage", "arguments", "temporary", "program", "seconds to compile", title="MiB")
    for job in plan(short, range(config.seeds)):
        needs = memory(job, store)
        found.append((job, needs))
        sizes = [f"{x / 2**20:.1f}" for x in (needs.arguments, needs.temporary, needs.program)]
        table.add_row(job.source.task, job.stage.name, *sizes, f"{needs.compiling:.1f}")
    console.console.print(table)
    most = max(needs.arguments + needs.temporary + needs.program for _, needs in found)
    console.console.print(f"the largest needs {most / GIB:.2f} GiB; the programs run one after another.")
    return found


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/accelerator.py", __doc__)
