"""``python -m iwsft_control.run``: from data to a normalised score.

For every seed: behaviour cloning, the critic (where a method needs its scores), the methods asked for, and 100
evaluation episodes of each. One result file and one policy file per method and seed. Finished stages are kept: a run
that was stopped goes on where it was, and one that differs in fine-tuning alone starts from the same BC and critic.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax

from iwsft_control.base import console
from iwsft_control.base.errors import UserError, require
from iwsft_control.base.files import cache_home
from iwsft_control.benchmark import checks, jobs, processes, results, settings, stages
from iwsft_control.benchmark.jobs import DataSource, Failure, Job
from iwsft_control.benchmark.perform import perform
from iwsft_control.benchmark.settings import Settings
from iwsft_control.benchmark.store import Store
from iwsft_control.envs import tasks
from iwsft_control.methods import registry


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What to run; every method's own settings join these options."""

    env: str | None = None
    """Task, e.g. hopper-medium-replay. May be left out where --dataset is given."""
    method: tuple[str, ...] = ("iw-sft-q",)
    """One or more methods: bc, filtered-bc, sft, iw-sft, sft-q, iw-sft-q, iql, td3-bc, awac, cql, rebrac, ..."""
    seeds: tuple[int, ...] = (0,)
    """One run for each. Several are one program on an accelerator and one process per core on a CPU."""
    quality: Literal["q", "return"] = "q"
    """What scores the data for sft-q and iw-sft-q: a learned Q-function, or the return of the episode."""
    dataset: str | None = None
    """Id of a data set in the local Minari root; by default D4RL's if imported, else the embedded reconstruction."""
    ref_min_score: float | None = None
    """Return that scores 0, for a data set that declares none."""
    ref_max_score: float | None = None
    """Return that scores 100, for a data set that declares none."""
    trust_environment: bool = False
    """Import and call what the data set's environment names (an entry point, wrappers). Look at it first."""
    flatten_observations: bool = False
    """Lay dict observations (a goal beside the state) end to end, in the data and in the environment."""
    results: Path | None = None
    """Folder of result files and policies; by default results/runs, or results/quick with --quick."""
    stages: Path | None = None
    """Folder of finished stages, which are not done again; by default ~/.cache/iwsft_control/stages."""
    method_file: tuple[Path, ...] = ()
    """Python files with methods of your own (METHOD = Method(...)), which --method may then name."""
    quick: bool = False
    """A trial of a few steps and 5 episodes, marked as such in its result; within a minute."""
    whole_trajectory: bool = False
    """iw-sft and iw-sft-q (--quality return) exactly as in the paper's released code; slow, for comparison."""


if TYPE_CHECKING:
    RunConfig = Any
else:
    RunConfig = settings.with_options(RunOptions)


def validate(config: RunConfig) -> Settings:
    """The settings of a run.

    Raises:
        UserError: an option that is not what it must be; the sentence names it and says what it must be.
    """
    require(config.env is not None or config.dataset is not None, "say what to run: --env hopper-medium-replay.")
    checks.check_methods(config.method)
    checks.check_seeds(config.seeds)
    scores = (config.ref_min_score, config.ref_max_score)
    require((scores[0] is None) == (scores[1] is None), "give both --ref-min-score and --ref-max-score, or neither.")
    if scores[0] is not None and scores[1] is not None:
        finite = math.isfinite(scores[0]) and math.isfinite(scores[1])
        require(finite and scores[0] < scores[1], "--ref-min-score must be below --ref-max-score, both finite.")
    chosen = settings.of_options(config)
    checks.check_whole_trajectory(config.method, config.quality, chosen)
    return chosen


def main(config: RunConfig) -> None:
    """Check everything that can be checked, then train, evaluate, write and print."""
    for file in config.method_file:
        registry.load_file(file)
    chosen = validate(config)
    task = tasks.parse_task(config.env) if config.env else None
    scores = None
    if config.ref_min_score is not None and config.ref_max_score is not None:
        scores = (config.ref_min_score, config.ref_max_score)
    source = DataSource(config.env, config.dataset, scores, config.trust_environment, config.flatten_observations)
    data = source.load()
    checks.check_environment(task, data)
    folder = config.results or Path("results/quick" if config.quick else "results/runs")
    store = Store(config.stages or cache_home() / "stages")
    console.writable(folder)
    checks.check_store(store)
    checks.describe(data)
    if config.quick:
        console.console.print("quick: a few steps and 5 episodes; this is a trial, not a score.")
    wanted = [
        Job(source, stages.method_stage(method, config.quality, group, chosen, source.task))
        for group in jobs.groups(config.seeds)
        for method in config.method
    ]
    failures: list[Failure] = []
    processes_count = min(len(config.seeds), os.cpu_count() or 1)

    def finished(job: Job, failure: Failure | None) -> None:
        if failure is not None:
            failures.append(failure)
        elif job in wanted:
            _write(folder, store, job)

    with console.progress_bar() as bar:
        progress = _progress_on(bar, several=len(config.seeds) > 1)
        if jax.default_backend() == "cpu" and processes_count > 1:
            # One process per core and seed: on a CPU that beats a vmap over seeds and one seed on all cores.
            pool = processes.Processes(store, progress, processes_count)
            try:
                jobs.execute(wanted, pool, store, lambda job: None, finished)
            finally:
                pool.close()
        else:
            console.cache_compiled_programs()
            failed: set[Job] = set()
            for job in jobs.with_dependencies(wanted):
                if not failed.isdisjoint(job.dependencies()):
                    failed.add(job)
                    continue
                try:
                    perform(job.stage, data, store, jobs.reporter(lambda *event, job=job: progress(job, *event)))
                except Exception as error:  # a failed method stops only those that depend on it
                    failed.add(job)
                    finished(job, jobs.failure(error))
                else:
                    finished(job, None)
    checks.say_unkept(store)
    for failure in failures:
        if failure.mistake:
            raise UserError(failure.error)
    if failures:
        print(f"error: {failures[0].trace or failures[0].error}", file=sys.stderr)
        raise SystemExit(1)


def _progress_on(bar: Any, several: bool) -> jobs.Progress:
    """A line for every loop of every job."""
    lines: dict[tuple[Job, str], Any] = {}

    def progress(job: Job, what: str, steps: int, done: int) -> None:
        if (job, what) not in lines:
            seeds = f"seed {', '.join(map(str, job.stage.seeds))} " if several else ""
            lines[job, what] = bar.add_task(seeds + what, total=steps)
        bar.advance(lines[job, what], done)

    return progress


def _write(folder: Path, store: Store, job: Job) -> None:
    for path in jobs.write_results(folder, store, job):
        result = results.read(path)
        start = result.diagnostics.get("bc_start")
        if start:
            console.console.print(
                f"seed {result.seed}  bc (its start)  normalised score {start['normalised_score']:6.1f} "
                f"+- {start['standard_error']:.1f}"
            )
        console.console.print(
            f"seed {result.seed}  {result.method:<14}  normalised score {result.normalised_score:6.1f} "
            f"+- {result.standard_error:.1f} (standard error over {len(result.episode_returns)} episodes) -> {path}"
        )


def cli() -> None:
    """The command line."""
    console.command(lambda: settings.command_line(RunOptions), main, "python -m iwsft_control.run", __doc__)


if __name__ == "__main__":
    cli()
