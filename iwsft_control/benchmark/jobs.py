"""Jobs, stages on data sets, and the order in which they are done."""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from iwsft_control.base import children, console, files
from iwsft_control.base.errors import RunError, UserError
from iwsft_control.benchmark import checks, export, stages
from iwsft_control.benchmark.perform import Report, perform
from iwsft_control.benchmark.stages import Stage
from iwsft_control.benchmark.store import Store
from iwsft_control.datasets import load, minari_files
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import tasks
from iwsft_control.envs.tasks import MEDIUM_REPLAY

children.one_thread()  # on import, since the first question to JAX begins its threads

# Job, what, its steps, steps just done and what they logged.
Progress = Callable[["Job", str, int, int, Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class DataSource:
    """Which data set: what ``--env``, ``--dataset`` and the reference scores say."""

    env: str | None
    dataset: str | None = None
    reference_scores: tuple[float, float] | None = None
    trust_environment: bool = False
    """Whether what the data set's environment names may be imported and called."""
    flatten_observations: bool = False
    """Whether dict observations are laid end to end."""

    def load(self) -> Dataset:
        """The data set, from memory where it was the last one or one before."""
        return _load(self, minari_files.minari_path(""))

    @property
    def id(self) -> str:
        """The data set's."""
        return load.resolve(tasks.parse_task(self.env) if self.env else None, self.dataset)

    @property
    def task(self) -> str:
        """Name of the task in results."""
        return tasks.parse_task(self.env).name if self.env else str(self.dataset)


@functools.lru_cache(maxsize=3)
def _load(source: DataSource, minari_root: Path) -> Dataset:
    task = tasks.parse_task(source.env) if source.env else None
    return load.load(
        task,
        source.dataset,
        source.reference_scores,
        trust_environment=source.trust_environment,
        flatten_observations=source.flatten_observations,
    )


def sources(
    names: Sequence[str] | None,
    datasets: Sequence[str] | None,
    reference_scores: tuple[float, float] | None = None,
    trust_environment: bool = False,
    flatten_observations: bool = False,
) -> list[DataSource]:
    """What ``--tasks`` and ``--datasets`` name: the benchmark's three tasks where there is neither.

    Args:
        reference_scores: of the data sets; the others are :class:`DataSource`'s, of all of them.
    """
    chosen = names if names is not None else () if datasets else MEDIUM_REPLAY
    named = [(tasks.parse_task(name).name, None, None) for name in chosen]
    local = [(None, dataset, reference_scores) for dataset in datasets or ()]
    return [DataSource(*each, trust_environment, flatten_observations) for each in [*named, *local]]


def begin(sources: Iterable[DataSource], results: Path, kept: Path | None, quiet: bool = False) -> Store:
    """What every command does before it trains: load, check and name its data, and make sure that it can write.

    Args:
        results: folder of result files.
        kept: folder of finished stages; by default the one in the user's cache.
        quiet: whether the data are not named.

    Returns:
        The finished stages.

    Raises:
        UserError: the data cannot be used, or results cannot be written.
    """
    for source in dict.fromkeys(sources):
        data = source.load()
        checks.check_environment(data)
        if not quiet:
            checks.describe(data)
    store = Store(kept or files.cache_home() / "stages")
    console.writable(results)
    checks.check_store(store)
    return store


@dataclasses.dataclass(frozen=True)
class Job:
    """A stage on a data set."""

    source: DataSource
    stage: Stage

    @property
    def name(self) -> str:
        seeds = ", ".join(map(str, self.stage.seeds))
        return f"{self.source.task} {self.stage.name} seed {seeds}"

    def dependencies(self) -> list[Job]:
        """The jobs that come first."""
        return [Job(self.source, stage) for stage in stages.dependencies(self.stage).values()]


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a job gave no artefact: one sentence, and the traceback where that sentence does not say it all."""

    error: str
    trace: str = ""
    mistake: bool = False
    """Whether it is the user's to mend (a disk that is full, data that are not there)."""


def failure(error: BaseException) -> Failure:
    """An exception as a :class:`Failure`."""
    if isinstance(error, UserError):
        return Failure(str(error), mistake=not isinstance(error, RunError))
    return Failure(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


class Pool(Protocol):
    """Runs jobs; when one is finished without a failure, its artefact is in the store."""

    slots: int
    """Jobs that run at a time."""

    def submit(self, job: Job) -> None:
        """Begin a job whose dependencies are in the store; at most ``slots`` are under way."""

    def wait(self) -> list[tuple[Job, Failure | None]]:
        """What has finished since; waits a moment, or until something has."""

    def close(self) -> None:
        """Stop everything that is under way."""


class InProcessPool:
    """One job at a time in this process, on all of its cores or its accelerator."""

    slots = 1

    def __init__(self, store: Store, progress: Progress):
        self.store, self.progress = store, progress
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def wait(self) -> list[tuple[Job, Failure | None]]:
        job = self.jobs.pop()
        try:
            perform(job.stage, job.source.load(), self.store, reporter(functools.partial(self.progress, job)))
        except Exception as error:  # a failed stage does not stop the others
            return [(job, failure(error))]
        return [(job, None)]

    def close(self) -> None:
        pass


def reporter(tell: Callable[[str, int, int, Mapping[str, Any]], None]) -> Report:
    """A :data:`Report` that tells of a loop, its steps, the steps just done and what they logged."""
    return lambda what, steps: functools.partial(tell, what, steps)


def groups(seeds: Sequence[int], accelerator: bool | None = None) -> list[tuple[int, ...]]:
    """Seeds that are trained as one program: all of them on an accelerator, each alone on a CPU.

    Args:
        accelerator: whether one trains them; by default whether this process has one.
    """
    together = jax.default_backend() != "cpu" if accelerator is None else accelerator
    return [tuple(seeds)] if together else [(s,) for s in seeds]


def with_dependencies(wanted: Sequence[Job]) -> list[Job]:
    """Jobs and all that they depend on, directly or not, each once, dependencies first."""
    found: dict[Job, None] = {}
    for job in wanted:
        found |= dict.fromkeys([*with_dependencies(job.dependencies()), job])
    return list(found)


def unfinished(wanted: Sequence[Job], store: Store) -> list[Job]:
    """Jobs and all that they depend on, as far as they have something to do: what they make is not in the store, or
    something that they depend on is gone from there (results need both)."""
    found: dict[Job, None] = {}
    for job in with_dependencies(wanted):
        if any(each in found for each in job.dependencies()) or not store.has(job.stage, job.source.load()):
            found[job] = None
    return list(found)


def seed_by_seed(job: Job) -> list[Job]:
    """A job of several seeds as one for each of them; nothing for a job of one seed."""
    seeds = job.stage.seeds if len(job.stage.seeds) > 1 else ()
    return [dataclasses.replace(job, stage=dataclasses.replace(job.stage, seeds=(s,))) for s in seeds]


def with_seeds_alone(wanted: Sequence[Job]) -> set[Job]:
    """The jobs whose results are written: these, and :func:`seed_by_seed` where they failed together."""
    return {*wanted, *(each for job in wanted for each in seed_by_seed(job))}


def execute(
    jobs: Sequence[Job],
    pool: Pool,
    store: Store,
    started: Callable[[Job], None],
    finished: Callable[[Job, Failure | None], None],
) -> None:
    """Run jobs and what they depend on, in their order as far as that allows.

    Several seeds that fail as one program are tried again one by one: a seed that diverges costs the others nothing.

    Args:
        started: told of every job that begins.
        finished: told of every job of ``jobs`` and every dependency that is over: made now, found in the store, or
            failed; also of those by :func:`seed_by_seed`.
    """
    waiting = {job: job.dependencies() for job in unfinished(jobs, store)}
    over: dict[Job, Failure | None] = {}

    def end(job: Job, outcome: Failure | None) -> None:
        over[job] = outcome
        finished(job, outcome)

    for job in with_dependencies(jobs):
        if job not in waiting:
            end(job, None)
    running: set[Job] = set()
    while waiting or running:
        for job, dependencies in list(waiting.items()):
            failed = next((d for d in dependencies if over.get(d)), None)
            if failed is not None:
                del waiting[job]
                end(job, Failure(f"not run, since {failed.name} failed"))
            elif len(running) < pool.slots and all(d in over for d in dependencies):
                del waiting[job]
                running.add(job)
                started(job)
                pool.submit(job)
        if running:
            for job, outcome in pool.wait():
                running.remove(job)
                end(job, outcome)
    failed_together = [job for job in jobs if (why := over[job]) is not None and not why.mistake]
    alone = [each for job in failed_together for each in seed_by_seed(job)]
    if alone:
        execute(alone, pool, store, started, finished)


def write_results(folder: Path, store: Store, job: Job) -> list[Path]:
    """Result files and policies of a finished job, where they are not there yet.

    Raises:
        UserError: what the job made is no longer in the store, or the folder cannot be written.
    """
    data = job.source.load()
    artefact, inputs = store.read(job.stage, data), store.inputs(job.stage, data)
    if artefact is None or inputs is None:
        raise UserError(f"what {job.name} made is gone from {store.folder}; start again.")
    return export.write_results(folder, job.stage, data, job.source.task, inputs, artefact)
