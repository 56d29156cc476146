"""Where stages run: in this process, on local processes that share the cores, or on a Ray cluster.

A pool takes jobs whose needs are met and tells when they are finished; :func:`execute` does the rest: needs before
what needs them, shared stages once, failures recorded without stopping what does not depend on them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
import os
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

import jax

from iwsft_control import cli, dataset, evaluation, export, stages, tasks
from iwsft_control.dataset import Dataset
from iwsft_control.files import UserError
from iwsft_control.stages import Artefact, Stage
from iwsft_control.store import Store, device_kind
from iwsft_control.store import key as key_of

Progress = Callable[["Job", str, int, int], None]  # job, what, its steps, steps just done
RETRIES = 2  # of a stage whose worker died


@dataclasses.dataclass(frozen=True)
class Source:
    """Which data set: what ``--env``, ``--dataset`` and the reference scores say."""

    env: str | None
    dataset: str | None = None
    reference_scores: tuple[float, float] | None = None

    def load(self) -> Dataset:
        """The data set, from memory where it was the last one or one before."""
        return _load(self, dataset.minari_path(""))

    @property
    def task(self) -> str:
        """Name of the task in results."""
        return tasks.parse_task(self.env).name if self.env else str(self.dataset)


@functools.lru_cache(maxsize=3)
def _load(source: Source, minari_root: Path) -> Dataset:
    return dataset.load(tasks.parse_task(source.env) if source.env else None, source.dataset, source.reference_scores)


@dataclasses.dataclass(frozen=True)
class Job:
    """A stage on a data set."""

    source: Source
    stage: Stage

    @property
    def name(self) -> str:
        seeds = ", ".join(map(str, self.stage.seeds))
        return f"{self.source.task} {self.stage.name} seed {seeds}"

    def needs(self) -> list[Job]:
        """The jobs that come first."""
        return [Job(self.source, stage) for stage in stages.needs(self.stage).values()]


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
        return Failure(str(error), mistake=not isinstance(error, evaluation.PolicyError))
    return Failure(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


class Pool(Protocol):
    """Runs jobs; when one is finished without a failure, its artefact is in the store."""

    slots: int
    """Jobs that run at a time."""

    def submit(self, job: Job) -> None:
        """Begin a job whose needs are in the store; at most ``slots`` are under way."""

    def wait(self) -> list[tuple[Job, Failure | None]]:
        """What has finished since; waits a moment, or until something has."""

    def close(self) -> None:
        """Stop everything that is under way."""


class Here:
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
            self.store.perform(job.stage, job.source.load(), _start(functools.partial(self.progress, job)))
        except Exception as error:  # a failed stage does not stop the others
            return [(job, failure(error))]
        return [(job, None)]

    def close(self) -> None:
        pass


def _start(tell: Callable[[str, int, int], None]) -> stages.Start:
    def start(what: str, steps: int) -> Callable[[int], None]:
        tell(what, steps, 0)
        return lambda done: tell(what, steps, done)

    return start


class Processes:
    """Local processes, each with its share of the cores. One that dies is replaced and its job tried again."""

    def __init__(self, store: Store, progress: Progress, workers: int):
        self.store, self.progress, self.slots = store, progress, workers
        self.threads = max(1, (os.cpu_count() or 1) // workers)
        self.context = multiprocessing.get_context("spawn")
        self.idle: list[_Worker] = []
        self.busy: dict[connection.Connection, tuple[_Worker, Job, int]] = {}

    def submit(self, job: Job) -> None:
        self._give(job, 0)

    def _give(self, job: Job, deaths: int) -> None:
        worker = None
        while worker is None:
            worker = self.idle.pop() if self.idle else _Worker(self.context, self.store.folder, self.threads)
            try:
                worker.pipe.send(job)
            except OSError:  # it was killed while it had nothing to do
                worker = None
        self.busy[worker.pipe] = (worker, job, deaths)

    def wait(self) -> list[tuple[Job, Failure | None]]:
        finished: list[tuple[Job, Failure | None]] = []
        for pipe in connection.wait(list(self.busy), timeout=0.5):
            worker, job, deaths = self.busy[pipe]  # type: ignore[index]
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                del self.busy[worker.pipe]
                worker.process.join()
                if deaths < RETRIES:
                    self._give(job, deaths + 1)
                else:
                    code = worker.process.exitcode
                    finished.append((job, Failure(f"its process died {deaths + 1} times (exit code {code})")))
                continue
            if isinstance(message, tuple):
                self.progress(job, *message)
                continue
            del self.busy[worker.pipe]
            self.idle.append(worker)
            finished.append((job, message))
        return finished

    def close(self) -> None:
        for worker in [*self.idle, *(w for w, _, _ in self.busy.values())]:
            worker.process.kill()


class _Worker:
    def __init__(self, context: Any, folder: Path, threads: int):
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, folder, threads), daemon=True)
        self.process.start()
        other.close()


def _serve(pipe: connection.Connection, folder: Path, threads: int) -> None:
    """Jobs from the pipe until it closes, which it also does when the process at its other end is killed."""
    single_threaded(threads)
    cli.cache_compiled_programs()
    store, one_at_a_time = Store(folder), threading.Lock()

    def tell(*message: Any) -> None:  # an evaluation tells from several threads
        with one_at_a_time:
            pipe.send(message)

    try:
        while True:
            job: Job = pipe.recv()
            outcome: Failure | None = None
            try:
                start = _start(tell)
                store.perform(job.stage, job.source.load(), start, threads)
            except (BrokenPipeError, ConnectionError, KeyboardInterrupt):
                return
            except Exception as error:
                outcome = failure(error)
            pipe.send(outcome)
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return


def begin(threads: int) -> None:
    """Prepare a process of a pool: :func:`single_threaded`, and an end when the process that started it has ended."""
    single_threaded(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def single_threaded(threads: int) -> None:
    """Keep XLA's products on one thread; must come before the process's first computation."""
    if threads == 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"


class RayCluster:
    """A Ray cluster. Artefacts travel through Ray's object store, so nodes need no common file system.

    Every node needs this package and the data set (the embedded ones come with the package). A task whose node dies is
    run again by Ray, up to ``retries`` times.

    Args:
        address: of a running cluster, or "local" to start one on this machine.
        cpus: cores that a stage asks for.
        gpus: GPUs (or a share of one) that a stage asks for.
    """

    def __init__(self, store: Store, address: str, cpus: int = 1, gpus: float = 0.0, retries: int = 3):
        try:
            import ray
        except ImportError as error:
            raise UserError("Ray is not installed; pip install 'iwsft_control[ray]'.") from error
        self.ray, self.store = ray, store
        if not ray.is_initialized():
            try:
                host, _, port = address.rpartition(":")
                if host and port.isdigit():  # ray.init would wait for minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(address=address, log_to_driver=False)
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(f"no Ray cluster answers at {address} ({error}); start one, or --ray local.") from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.slots = sum(
            int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) / gpus if gpus else math.inf)) for node in nodes
        )
        if self.slots < 1:
            raise UserError(f"no node of the Ray cluster offers {cpus} CPUs and {gpus} GPUs; ask for less.")
        variables = {"IWSFT_THREADS": str(cpus)}
        if not gpus:
            variables["JAX_PLATFORMS"] = "cpu"  # Ray does not hide a GPU from who did not ask for one
        elif gpus < 1:
            variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share its memory
        self.options = {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": variables}}
        self.remote = ray.remote(_ray_stage).options(max_retries=retries, **self.options)
        self.running: dict[Any, Job] = {}
        # What the stages run on, which need not be what this process would: artefacts are named after it.
        store.device = ray.get(ray.remote(device_kind).options(**self.options).remote())

    def submit(self, job: Job) -> None:
        data = job.source.load()
        inputs = self.store.inputs(job.stage, data, stages.silent)
        key = key_of(job.stage, data, self.store.device)
        self.running[self.remote.remote(job.source, key, job.stage, inputs)] = job

    def wait(self) -> list[tuple[Job, Failure | None]]:
        ready, _ = self.ray.wait(list(self.running), timeout=0.5)
        finished: list[tuple[Job, Failure | None]] = []
        for reference in ready:
            job = self.running.pop(reference)
            try:
                outcome: Artefact | Failure = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:  # its nodes died more often than it is tried again
                outcome = failure(error)
            if isinstance(outcome, Failure):
                finished.append((job, outcome))
            else:
                self._keep(job, outcome)
                finished.append((job, None))
        return finished

    def _keep(self, job: Job, artefact: Artefact) -> None:
        data = job.source.load()
        with self.store.alone(job.stage, data):
            if not self.store.has(job.stage, data):  # another sweep may have been faster
                self.store.write(job.stage, data, artefact)

    def close(self) -> None:
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        self.ray.shutdown()


def _ray_stage(source: Source, key: str, stage: Stage, inputs: dict[str, Artefact]) -> Artefact | Failure:
    threads = int(os.environ["IWSFT_THREADS"])
    single_threaded(threads)
    cli.cache_compiled_programs()
    try:
        data = source.load()
        if key_of(stage, data) != key:
            raise UserError(
                f"{data.id}, this package, a version of another or the kind of device ({device_kind()} here) is not "
                "the same on all nodes; make them the same."
            )
        return stages.compute(stage, data, inputs, stages.silent, threads)
    except Exception as error:
        return failure(error)


def groups(seeds: Sequence[int]) -> list[tuple[int, ...]]:
    """Seeds that are trained as one program: all of them on an accelerator, each alone on a CPU."""
    return [(s,) for s in seeds] if jax.default_backend() == "cpu" else [tuple(seeds)]


def execute(
    jobs: Sequence[Job],
    pool: Pool,
    store: Store,
    started: Callable[[Job], None],
    finished: Callable[[Job, Failure | None], None],
) -> None:
    """Run jobs and what they need, in their order as far as their needs allow.

    Args:
        started: told of every job that begins.
        finished: told of every job of ``jobs`` and every need that is over: made now, found in the store, or failed.
    """
    waiting: dict[Job, list[Job]] = {}
    for job in jobs:
        for need in [*job.needs(), job]:
            waiting.setdefault(need, need.needs())
    over: dict[Job, Failure | None] = {}

    def end(job: Job, outcome: Failure | None) -> None:
        over[job] = outcome
        finished(job, outcome)

    for job in list(waiting):
        if store.has(job.stage, job.source.load()):
            del waiting[job]
            end(job, None)
    running: set[Job] = set()
    while waiting or running:
        for job, needs in list(waiting.items()):
            failed = next((n for n in needs if over.get(n)), None)
            if failed is not None:
                del waiting[job]
                end(job, Failure(f"not run, since {failed.name} failed"))
            elif len(running) < pool.slots and all(n in over for n in needs):
                del waiting[job]
                running.add(job)
                started(job)
                pool.submit(job)
        if running:
            for job, outcome in pool.wait():
                running.remove(job)
                end(job, outcome)


def write_results(folder: Path, store: Store, job: Job) -> list[Path]:
    """Result files and policies of a finished job, where they are not there yet.

    Raises:
        UserError: what the job made is no longer in the store, or the folder cannot be written.
    """
    data = job.source.load()
    artefact = store.read(job.stage, data)
    if artefact is None:
        raise UserError(f"what {job.name} made is gone from {store.folder}; start again.")
    inputs = store.inputs(job.stage, data, stages.silent)
    return export.write_results(folder, job.stage, data, job.source.task, inputs, artefact)
