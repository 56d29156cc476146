"""The sweep command's work: tasks x methods x seeds, on local processes or a Ray cluster."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from iwsft_control.base import children, console
from iwsft_control.base.errors import require
from iwsft_control.base.progress import duration
from iwsft_control.benchmark import checks, export, jobs, processes, ray_pool, results, stages
from iwsft_control.benchmark.board import Board, Seen, seconds_left
from iwsft_control.benchmark.jobs import Failure, InProcessPool, Job
from iwsft_control.benchmark.settings import Settings
from iwsft_control.methods import registry


def plan_jobs(plan: Any, chosen: Settings) -> list[Job]:
    """The runs of a plan, seed by seed, so that a sweep that is cut short has whole seeds."""
    sources = jobs.sources(
        plan.tasks,
        plan.datasets,
        checks.reference_scores(plan.ref_min_score, plan.ref_max_score),
        trust_environment=plan.trust_environment,
        flatten_observations=plan.flatten_observations,
    )
    return [
        Job(source, stages.method_stage(method, quality, group, chosen, source.task))
        for group in jobs.groups(plan.seeds, None if plan.ray is None else plan.gpus_per_stage > 0)
        for source in sources
        for method in plan.methods
        for quality in (plan.qualities if registry.card(method).by_quality else ("q",))
    ]


def record_failure(folder: Path, job: Job, failure: Failure | None) -> None:
    """Write why a job failed, or take back what an earlier try left."""
    stage = job.stage
    what = {"task": job.source.task, "method": stage.method, "quality": stage.quality, "seeds": stage.seeds}
    results.record_failure(folder, job.name, None if failure is None else what | dataclasses.asdict(failure))


def run(plan: Any, chosen: Settings) -> None:
    """Say what will be done, and do it.

    Args:
        plan: the sweep command's ``PlanOptions``, checked.
        chosen: the settings among them.

    Raises:
        UserError: the data cannot be used, no cluster answers, or something cannot be written.
        SystemExit: a run failed.
    """
    folder = plan.results or Path("results/quick" if plan.quick else "results/my-sweep")
    wanted = plan_jobs(plan, chosen)
    sources = list(dict.fromkeys(job.source for job in wanted))
    ids = [source.id for source in sources]
    twice = next((each for each in ids if ids.count(each) > 1), None)
    require(twice is None, f"{twice} is the data set of one of --tasks and named with --datasets; leave one out.")
    store = jobs.begin(sources, folder, plan.stages, plan.quiet)
    pool: jobs.Pool | None = None
    if plan.ray is not None and not plan.dry_run:
        # First of all, since artefacts are named after the kind of device that the cluster offers.
        pool = ray_pool.RayCluster(store, plan.ray, plan.cpus_per_stage, plan.gpus_per_stage)
    everything = jobs.with_dependencies(wanted)
    missing = jobs.unfinished(wanted, store)
    on_cpu = jax.default_backend() == "cpu"
    slots = (plan.workers or children.usable_cores()) if on_cpu else 1
    counts = Counter(job.stage.name for job in missing)
    console.console.print(
        f"{len(wanted)} runs in {len(everything)} stages, {len(everything) - len(missing)} of them finished before. "
        + (f"To do: {', '.join(f'{n} {name}' for name, n in counts.items())}." if counts else "Nothing is left to do.")
    )
    guess = seconds_left(missing, slots, Seen())
    if plan.ray is None:
        console.console.print(f"estimate: {duration(guess)} with {slots} at a time; results in {folder}")
    unlike = (export.with_other_settings(folder, job.stage, job.source.task) for job in wanted)
    others = [each for found in unlike for each in found.items()]
    if others:  # told before hours are spent: a sweep is there for a table
        path, apart = others[0]
        console.console.print(
            f"results of the same methods and seeds with other settings are there ({len(others)}, as {path}{apart}): "
            "no table takes both. Choose another --results, or remove them."
        )
    if plan.dry_run:
        return

    board: Board
    failures = 0

    def finished(job: Job, failure: Failure | None) -> None:
        nonlocal failures
        failures += failure is not None and job in everything
        record_failure(folder, job, failure)
        if failure is None and job in told:
            jobs.write_results(folder, store, job)
        if job not in before:
            board.finished(job, failure)

    told = jobs.with_seeds_alone(wanted)
    before = set(everything) - set(missing)
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
