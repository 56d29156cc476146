"""``python -m iwsft_control.run``: from data to a normalised score.

For every seed: behaviour cloning, the critic (where a method needs its scores), the methods asked for, and 100
evaluation episodes of each. One result file and one policy file per method and seed. Finished stages are kept: a run
that was stopped goes on where it was, and one that differs in fine-tuning alone starts from the same BC and critic.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, Literal

import jax

from iwsft_control.base import console, errors
from iwsft_control.base.errors import UserError, require
from iwsft_control.base.files import cache_home
from iwsft_control.benchmark import processes, results, settings, stages
from iwsft_control.benchmark.jobs import Failure, Here, Job, Pool, Progress, Source, execute, groups, write_results
from iwsft_control.benchmark.settings import Settings
from iwsft_control.benchmark.store import Store
from iwsft_control.datasets.types import Dataset, describe_origin
from iwsft_control.envs import tasks
from iwsft_control.methods.supervised import METHODS, Method


@dataclasses.dataclass(frozen=True)
class RunConfig(Settings):
    """What to run."""

    env: str | None = None
    """Task, e.g. hopper-medium-replay. May be left out where --dataset is given."""
    method: tuple[str, ...] = ("iw-sft-q",)
    """One or more of bc, filtered-bc, sft, iw-sft, sft-q, iw-sft-q; iql, td3-bc, awac, cql, rebrac, rebrac-tuned."""
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
    results: Path | None = None
    """Folder of result files and policies; by default results/runs, or results/quick with --quick."""
    stages: Path | None = None
    """Folder of finished stages, which are not done again; by default ~/.cache/iwsft_control/stages."""


def validate(config: RunConfig) -> Settings:
    """The settings of a run.

    Raises:
        UserError: a value that cannot be meant; the sentence names it and what would do.
    """
    require(config.env is not None or config.dataset is not None, "say what to run: --env hopper-medium-replay.")
    check_methods(config.method)
    check_seeds(config.seeds)
    scores = (config.ref_min_score, config.ref_max_score)
    require((scores[0] is None) == (scores[1] is None), "give both --ref-min-score and --ref-max-score, or neither.")
    if scores[0] is not None and scores[1] is not None:
        require(scores[0] < scores[1], "--ref-min-score must be below --ref-max-score.")
    if config.whole_trajectory:
        kinds = [METHODS.get(m, Method("everything")) for m in config.method]
        weighted = all(kind.importance_weighted for kind in kinds)
        episodic = config.quality == "return" or all(kind.curation == "binary" for kind in kinds)
        require(weighted and episodic, "--whole-trajectory is for --method iw-sft, or iw-sft-q with --quality return.")
    return settings.validate(config)


def check_methods(methods: tuple[str, ...]) -> None:
    """Refuse unknown, repeated and no methods.

    Raises:
        UserError: in these cases; unknown names list the near ones.
    """
    for method in methods:
        if method not in settings.NAMES:
            raise UserError(f"unknown method {method!r}: {errors.near(method, list(settings.NAMES))}")
    require(len(set(methods)) == len(methods) > 0, "name one or more different methods.")


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Refuse repeated, negative and no seeds.

    Raises:
        UserError: in these cases.
    """
    require(len(set(seeds)) == len(seeds) > 0, "name one or more different seeds.")
    require(all(0 <= s < 2**31 for s in seeds), "--seeds must lie between 0 and 2147483647.")


def main(config: RunConfig) -> None:
    """Check everything that can be checked, then train, evaluate, write and print."""
    settings = validate(config)
    task = tasks.parse_task(config.env) if config.env else None
    scores = None
    if config.ref_min_score is not None and config.ref_max_score is not None:
        scores = (config.ref_min_score, config.ref_max_score)
    source = Source(config.env, config.dataset, scores)
    data = source.load()
    check_environment(task, data)
    folder = config.results or Path("results/quick" if settings.quick else "results/runs")
    store = Store(config.stages or cache_home() / "stages")
    console.writable(folder)
    console.writable(store.folder)
    describe(data)
    if settings.quick:
        console.console.print("quick: a few steps and 5 episodes; this is a trial, not a score.")
    jobs = [
        Job(source, stages.method_stage(method, config.quality, group, settings, source.task))
        for group in groups(config.seeds)
        for method in config.method
    ]
    failures: list[Failure] = []
    count = min(len(config.seeds), os.cpu_count() or 1)
    with console.progress_bar() as bar:
        progress = _progress_on(bar, several=len(config.seeds) > 1)
        pool: Pool
        if jax.default_backend() == "cpu" and count > 1:
            # One process per core and seed: on a CPU that beats a vmap over seeds and one seed on all cores.
            pool = processes.Processes(store, progress, count)
        else:
            console.cache_compiled_programs()
            pool = Here(store, progress)

        def finished(job: Job, failure: Failure | None) -> None:
            if failure is not None:
                failures.append(failure)
            elif job in jobs:
                _write(folder, store, job)

        try:
            execute(jobs, pool, store, lambda job: None, finished)
        finally:
            pool.close()
    for failure in failures:
        if failure.mistake:
            raise UserError(failure.error)
    if failures:
        print(f"error: {failures[0].trace or failures[0].error}", file=sys.stderr)
        raise SystemExit(1)


def describe(data: Dataset) -> None:
    """Print which data set is used and what it is."""
    console.console.print(
        f"data: {data.id} ({describe_origin(data.origin)}), {len(data.rewards):,} transitions, "
        f"{len(data.starts) - 1:,} episodes, sha256 {data.sha256[:12]}; evaluated in {data.env_id}"
    )


def check_environment(task: tasks.Task | None, data: Dataset) -> None:
    """Make sure that a data set can be evaluated before anything is trained on it.

    Raises:
        UserError: it is another environment's than the task's, or its environment cannot be made or does not fit.
    """
    if task is not None and data.origin != "Minari":
        require(
            data.env_id == task.environment.env_id,
            f"--dataset {data.id} is of {data.env_id}, --env {task.name} of {task.environment.env_id}; leave one out.",
        )
    try:
        from iwsft_control.envs.batch import make_batch

        batch = make_batch(data.environment, 1)
    except Exception as error:  # whatever Gymnasium or an environment's package raises
        raise UserError(
            f"the environment {data.env_id} of {data.id} cannot be made ({error}); install the package it comes from."
        ) from error
    require(
        (batch.observation_dim, batch.action_dim) == (data.observations.shape[1], data.actions.shape[1]),
        f"{data.id} does not have the observations and actions of {data.env_id}; choose another data set.",
    )


def _progress_on(bar: Any, several: bool) -> Progress:
    """A line for every loop of every job."""
    lines: dict[tuple[Job, str], Any] = {}

    def progress(job: Job, what: str, steps: int, done: int) -> None:
        if (job, what) not in lines:
            seeds = f"seed {', '.join(map(str, job.stage.seeds))} " if several else ""
            lines[job, what] = bar.add_task(seeds + what, total=steps)
        bar.advance(lines[job, what], done)

    return progress


def _write(folder: Path, store: Store, job: Job) -> None:
    for path in write_results(folder, store, job):
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


if __name__ == "__main__":
    console.command(RunConfig, main, "python -m iwsft_control.run", __doc__)
