"""``python -m iwsft_control.sweep``: tasks x methods x seeds, every run of a benchmark.

    python -m iwsft_control.sweep                                   # three tasks, six methods, ten seeds
    python -m iwsft_control.sweep --tasks hopper-medium-replay --seeds 0 1 2 --methods bc sft-q
    python -m iwsft_control.sweep --ray auto --gpus-per-stage 0.25  # on a Ray cluster

Kill it at any moment and start it again: finished stages are kept, a training goes on from its last minute,
results are the same bit for bit. A run that fails is recorded in FOLDER/failures and does not stop the others; the exit
code is then 1.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from iwsft_control.base import console, files
from iwsft_control.base.errors import require
from iwsft_control.base.files import cache_home
from iwsft_control.base.progress import Bars, duration
from iwsft_control.benchmark import checks, jobs, processes, ray_pool, settings, stages
from iwsft_control.benchmark.jobs import DataSource, Failure, InProcessPool, Job
from iwsft_control.benchmark.settings import Settings
from iwsft_control.benchmark.store import Store
from iwsft_control.configs.supervised import KINDS
from iwsft_control.envs import tasks
from iwsft_control.methods import registry

EVALUATION_SECONDS = 6.0  # rough, on one core: only for the estimate before any stage was timed


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What to run, and where; every method's own settings join these options."""

    tasks: tuple[str, ...] = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")
    """Tasks, each with its default data set (D4RL's if imported, else the embedded reconstruction)."""
    methods: tuple[str, ...] = tuple(KINDS)
    """Methods."""
    qualities: tuple[Literal["q", "return"], ...] = ("q", "return")
    """What scores the data for sft-q and iw-sft-q; each is a row of the table."""
    seeds: tuple[int, ...] = tuple(range(10))
    """Seeds. Tune on others (100 and up) than those that are reported."""
    trust_environment: bool = False
    """Import and call what the data sets' environments name (an entry point, wrappers). Look at it first."""
    flatten_observations: bool = False
    """Lay dict observations (a goal beside the state) end to end, in the data and in the environments."""
    results: Path | None = None
    """Folder of result files; by default results/sweep, or results/quick with --quick."""
    stages: Path | None = None
    """Folder of finished stages; by default ~/.cache/iwsft_control/stages, which python -m iwsft_control.run shares."""
    workers: int | None = None
    """Local processes that share the cores; by default one per core. On an accelerator: this process alone."""
    ray: str | None = None
    """Address of a Ray cluster ("auto" for the one that this machine is part of), or "local" to start one here."""
    cpus_per_stage: int = 1
    """Cores that a stage asks Ray for."""
    gpus_per_stage: float = 0.0
    """GPUs, or a share of one, that a stage asks Ray for."""
    dry_run: bool = False
    """Print what would be done, and an estimate; do nothing."""
    method_file: tuple[Path, ...] = ()
    """Python files with methods of your own (METHOD = Method(...)), which --methods may then name."""
    quiet: bool = False
    """No bars and no log of progress: results and errors alone."""
    quick: bool = False
    """A trial of a few steps and 5 episodes of each run, marked as such in its result."""


if TYPE_CHECKING:
    Plan = Any
else:
    Plan = settings.with_options(PlanOptions)


def plan_jobs(plan: Plan, chosen: Settings) -> list[Job]:
    """The runs of a plan, seed by seed, so that a sweep that is cut short has whole seeds."""
    return [
        Job(
            DataSource(task, trust_environment=plan.trust_environment, flatten_observations=plan.flatten_observations),
            stages.method_stage(method, quality, group, chosen, task),
        )
        for group in jobs.groups(plan.seeds)
        for task in (tasks.parse_task(name).name for name in plan.tasks)
        for method in plan.methods
        for quality in (plan.qualities if registry.card(method).by_quality else ("q",))
    ]


def seconds_of(job: Job, seen: dict[tuple[str, str], list[float]]) -> float:
    """Expected seconds of a job: the mean of those seen of its kind, else a guess from its steps."""
    known = seen.get((job.source.task, job.stage.name))
    if known:
        return sum(known) / len(known)
    method, stage = registry.card(job.stage.method), job.stage
    evaluating = 0.0 if not method.has_policy else EVALUATION_SECONDS * (0.05 if stage.settings.quick else 1)
    return len(stage.seeds) * (method.seconds * stage.config.steps / 1000 + evaluating)


class Board:
    """Live progress: what is done, running and failed, the time left, and the loops of every running stage."""

    def __init__(self, jobs: Sequence[Job], slots: int, done: int, console: Any = console.console, quiet: bool = False):
        self.left, self.slots = set(jobs), slots
        self.seen: dict[tuple[str, str], list[float]] = {}
        self.began: dict[Job, float] = {}
        self.failed = 0
        self.lines: dict[tuple[Job, str], Any] = {}
        columns = TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn()
        self.bar = Bars(*columns, TimeElapsedColumn(), console=console, quiet=quiet)
        self.total = self.bar.add_task("", total=len(jobs) + done, completed=done, logged=False)  # it has its own lines
        self._describe()

    def _describe(self) -> None:
        left = sum(seconds_of(job, self.seen) for job in self.left) / self.slots
        text = f"running {len(self.began)}, failed {self.failed}, about {duration(left)} left"
        self.bar.update(self.total, description=text)

    def progress(self, job: Job, what: str, steps: int, done: int, values: Mapping[str, Any]) -> None:
        """A loop of a running job went on."""
        if (job, what) not in self.lines:
            self._clear(job)
            description = f"  {job.name}" + ("" if what == job.stage.method else f": {what}")
            self.lines[job, what] = self.bar.add_task(description, total=steps)
        self.bar.update(self.lines[job, what], advance=done, values=values)

    def started(self, job: Job) -> None:
        """A job began."""
        self.began[job] = time.monotonic()
        self._describe()

    def finished(self, job: Job, failure: Failure | None) -> None:
        """A job is over."""
        self._clear(job)
        self.left.discard(job)
        began = self.began.pop(job, None)
        if failure is not None:
            self.failed += 1
            self.bar.console.print(f"failed: {job.name}: {failure.error}")
        elif began is not None:
            seconds = time.monotonic() - began
            self.seen.setdefault((job.source.task, job.stage.name), []).append(seconds)
        self.bar.advance(self.total)
        self._describe()
        if not self.bar.console.is_terminal and began is not None:  # a log has lines, not a live display
            task = self.bar.tasks[0]
            self.bar.console.print(f"{task.completed:.0f}/{task.total:.0f} {job.name}; {task.description}")

    def _clear(self, job: Job) -> None:
        for line in [line for line in self.lines if line[0] == job]:
            self.bar.remove_task(self.lines.pop(line))


def record_failure(folder: Path, job: Job, failure: Failure | None) -> None:
    """Write why a job failed, or take back what an earlier try left."""
    path = folder / "failures" / f"{job.name.replace(' ', '-').replace(',', '').replace('/', '-')}.json"
    if failure is None:
        path.unlink(missing_ok=True)
        return
    stage = job.stage
    what = {"task": job.source.task, "method": stage.method, "quality": stage.quality, "seeds": stage.seeds}
    files.write_json(path, what | dataclasses.asdict(failure))


def main(plan: Plan) -> None:
    """Check the plan, say what will be done, do it."""
    for file in plan.method_file:
        registry.load_file(file)
    checks.check_methods(plan.methods)
    checks.check_seeds(plan.seeds)
    require(len(set(plan.tasks)) == len(plan.tasks) > 0, "--tasks must name one or more different tasks.")
    require(len(set(plan.qualities)) == len(plan.qualities) > 0, "--qualities must be q, return or both.")
    require(plan.workers is None or plan.workers > 0, "--workers must be positive.")
    require(
        plan.cpus_per_stage > 0 and plan.gpus_per_stage >= 0,
        "--cpus-per-stage must be positive and --gpus-per-stage not negative.",
    )
    chosen = settings.of_options(plan)
    for quality in plan.qualities:
        checks.check_preset(plan.methods, quality, chosen)
    folder = plan.results or Path("results/quick" if plan.quick else "results/sweep")
    store = Store(plan.stages or cache_home() / "stages")
    wanted = plan_jobs(plan, chosen)
    for source in dict.fromkeys(job.source for job in wanted):
        data = source.load()
        checks.check_environment(tasks.parse_task(source.task), data)
        checks.describe(data)
    console.writable(folder)
    checks.check_store(store)

    pool: jobs.Pool | None = None
    if plan.ray is not None and not plan.dry_run:
        # First of all, since artefacts are named after the kind of device that the cluster offers.
        pool = ray_pool.RayCluster(store, plan.ray, plan.cpus_per_stage, plan.gpus_per_stage)
    everything = jobs.with_dependencies(wanted)
    missing = [job for job in everything if not store.has(job.stage, job.source.load())]
    on_cpu = jax.default_backend() == "cpu"
    slots = (plan.workers or os.cpu_count() or 1) if on_cpu else 1
    counts = Counter(job.stage.name for job in missing)
    console.console.print(
        f"{len(wanted)} runs in {len(everything)} stages, {len(everything) - len(missing)} of them finished before. "
        + (f"To do: {', '.join(f'{n} {name}' for name, n in counts.items())}." if counts else "Nothing is left to do.")
    )
    guess = sum(seconds_of(job, {}) for job in missing) / slots
    if plan.ray is None:
        console.console.print(f"estimate: {duration(guess)} with {slots} at a time; results in {folder}")
    if plan.dry_run:
        return

    board: Board
    failures = 0

    def finished(job: Job, failure: Failure | None) -> None:
        nonlocal failures
        failures += failure is not None
        record_failure(folder, job, failure)
        if failure is None and job in wanted:
            jobs.write_results(folder, store, job)
        if job in pending:
            board.finished(job, failure)

    pending = set(missing)
    if pool is None and on_cpu:
        pool = processes.Processes(store, lambda *event: board.progress(*event), min(slots, max(1, len(missing))))
    elif pool is None:
        console.cache_compiled_programs()
        pool = InProcessPool(store, lambda *event: board.progress(*event))
    board = Board(missing, pool.slots, len(everything) - len(missing), quiet=plan.quiet)
    try:
        with board.bar:
            jobs.execute(wanted, pool, store, lambda job: board.started(job), finished)
    finally:
        pool.close()
    checks.say_unkept(store)
    console.console.print(f"{len(everything) - failures} of {len(everything)} stages are done; results in {folder}")
    if failures:
        console.console.print(f"{failures} failed: see {folder / 'failures'}; start the sweep again to try them again.")
        raise SystemExit(1)


def cli() -> None:
    """The command line."""
    options = functools.partial(settings.command_line, PlanOptions, "methods", "qualities")
    console.command(options, main, "python -m iwsft_control.sweep", __doc__, positional="tasks")


if __name__ == "__main__":
    cli()
