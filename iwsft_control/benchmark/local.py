"""The run command's work: train, evaluate, write and print, on this machine."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from iwsft_control.base import children, console
from iwsft_control.base.errors import UserError
from iwsft_control.base.progress import Bars
from iwsft_control.benchmark import checks, jobs, processes, results, stages, track
from iwsft_control.benchmark.jobs import DataSource, Failure, InProcessPool, Job
from iwsft_control.benchmark.settings import Settings
from iwsft_control.benchmark.store import Store


def run(config: Any, chosen: Settings) -> None:
    """Do what the options of the run command say.

    Args:
        config: its ``RunOptions``.
        chosen: the settings among them, checked.

    Raises:
        UserError: the data cannot be used, or something cannot be written.
        SystemExit: a method failed.
    """
    scores = checks.reference_scores(config.ref_min_score, config.ref_max_score)
    source = DataSource(config.env, config.dataset, scores, config.trust_environment, config.flatten_observations)
    folder = config.results or Path("results/quick" if config.quick else "results/runs")
    store = jobs.begin([source], folder, config.stages, config.quiet)
    if config.quick and not config.quiet:
        console.console.print("quick: a few steps and 5 episodes; this is a trial, not a score.")
    wanted = [
        Job(source, stages.method_stage(method, config.quality, group, chosen, source.task))
        for group in jobs.groups(config.seeds)
        for method in config.method
    ]
    failures: list[Failure] = []
    told = jobs.with_seeds_alone(wanted)

    def finished(job: Job, failure: Failure | None) -> None:
        if failure is not None:
            failures.append(failure)
        elif job in told:
            for result in _write(folder, store, job):
                if tracker is not None:
                    run = f"{result.task}/{result.method}/seed{result.seed}"
                    last = result.diagnostics["training"]["step"][-1]
                    tracker.log(run, last, {"normalised_score": result.normalised_score})

    tracker = track.open_tracker(config.track, folder) if config.track else None
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(console.progress_bar(config.quiet))
        if tracker is not None:
            stack.callback(tracker.close)
        progress = _progress_on(bar, several=len(config.seeds) > 1, tracker=tracker)
        # On a CPU one process per core beats all cores on one stage, and a vmap over seeds.
        count = min(_ready(wanted, store), children.usable_cores()) if jax.default_backend() == "cpu" else 1
        if count == 1:
            console.cache_compiled_programs()
        pool = processes.Processes(store, progress, count) if count > 1 else InProcessPool(store, progress)
        try:
            jobs.execute(wanted, pool, store, lambda job: None, finished)
        finally:
            pool.close()
    checks.say_unkept(store)
    for failure in failures:
        if failure.mistake:
            raise UserError(failure.error)
    if failures:
        print(f"error: {failures[0].trace or failures[0].error}", file=sys.stderr)
        raise SystemExit(1)


def _ready(wanted: Sequence[Job], store: Store) -> int:
    """Jobs that can begin at once: one seed's BC and its critic, for instance."""
    missing = jobs.unfinished(wanted, store)
    return sum(all(d not in missing for d in job.dependencies()) for job in missing)


def _progress_on(bar: Bars, several: bool, tracker: track.Tracker | None) -> jobs.Progress:
    """A line for every loop of every job; what it logs goes to the tracker too."""

    def progress(job: Job, what: str, steps: int, done: int, values: Mapping[str, Any]) -> None:
        seeds = f"seed {', '.join(map(str, job.stage.seeds))}  " if several else ""
        bar.loop(f"{seeds}{what}", steps, done, values)
        if tracker is not None and values:
            for i, seed in enumerate(job.stage.seeds):
                tracker.log(f"{job.source.task}/{what}/seed{seed}", values["step"], track.scalars(values, i))

    return progress


def _write(folder: Path, store: Store, job: Job) -> list[results.RunResult]:
    """Write and print the results of a job."""
    found = []
    for path in jobs.write_results(folder, store, job):
        result = results.read(path)
        found.append(result)
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
    return found
