"""Where jobs run: on local processes that share the cores."""

from __future__ import annotations

import dataclasses
import multiprocessing
import threading
from collections.abc import Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

from iwsft_control.base import children, console
from iwsft_control.base.errors import require
from iwsft_control.benchmark.jobs import Failure, Job, Progress, failure, reporter
from iwsft_control.benchmark.perform import perform
from iwsft_control.benchmark.store import Store
from iwsft_control.benchmark.store import key as key_of
from iwsft_control.learning.method import Artefact
from iwsft_control.methods import registry

RETRIES = 2  # of a stage whose worker died


class Processes:
    """Local processes, each with its share of the cores. One that dies is replaced and its job tried again."""

    def __init__(self, store: Store, progress: Progress, workers: int):
        self.store, self.progress, self.slots = store, progress, workers
        self.threads = max(1, children.usable_cores() // workers)
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
                data = job.source.load()
                memory = self.store.in_memory(job.stage, data) if self.store.memory else {}
                worker.pipe.send((job, key_of(job.stage, data), memory))
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
            self.store.memory |= message.memory
            self.store.problem = message.problem or self.store.problem
            finished.append((job, message.failure))
        return finished

    def close(self) -> None:
        for worker in [*self.idle, *(w for w, _, _ in self.busy.values())]:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


@dataclasses.dataclass(frozen=True)
class _End:
    """A job is over."""

    failure: Failure | None
    memory: dict[str, Artefact]
    """What it could not write (:attr:`Store.memory`), and why."""
    problem: str | None


class _Worker:
    def __init__(self, context: Any, folder: Path, threads: int):
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, folder, threads, registry.files()), daemon=True)
        self.process.start()
        other.close()


def _serve(pipe: connection.Connection, folder: Path, threads: int, method_files: Sequence[Path]) -> None:
    """Jobs from the pipe until it closes; ends in the middle of one when the process at the other end has ended."""
    children.end_with_parent()
    console.cache_compiled_programs()
    for file in method_files:
        registry.load_file(file)
    store, one_at_a_time = Store(folder), threading.Lock()

    def tell(*message: Any) -> None:  # an evaluation tells from several threads
        with one_at_a_time:
            pipe.send(message)

    try:
        while True:
            job, key, store.memory = pipe.recv()
            given, outcome = set(store.memory), None
            try:
                data = job.source.load()
                require(
                    key_of(job.stage, data) == key,
                    f"{job.stage.name} is another stage in the process that is to do it: a file of its code was edited "
                    "since the command began, or begins JAX when it is imported (jnp outside of functions); mend that, "
                    "and start again.",
                )
                perform(job.stage, data, store, reporter(tell), threads)
            except (BrokenPipeError, ConnectionError, KeyboardInterrupt):
                return
            except Exception as error:
                outcome = failure(error)
            made = {name: each for name, each in store.memory.items() if name not in given}
            pipe.send(_End(outcome, made, store.problem))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return
