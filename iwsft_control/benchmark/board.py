"""The live display of a sweep: what is done, running and failed, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from iwsft_control.base import console
from iwsft_control.base.progress import Bars, duration
from iwsft_control.benchmark.jobs import Failure, Job
from iwsft_control.methods import registry

EVALUATION_SECONDS = 6.0  # rough, on one core: only for the estimate before any stage was timed


def seconds_of(job: Job, seen: dict[tuple[str, str], list[float]]) -> float:
    """Expected seconds of a job: the mean of those seen of its kind, else a guess from its steps."""
    known = seen.get((job.source.task, job.stage.name))
    if known:
        return sum(known) / len(known)
    method, stage = registry.card(job.stage.method), job.stage
    evaluating = 0.0 if not method.has_policy else EVALUATION_SECONDS * (0.05 if stage.settings.quick else 1)
    return len(stage.seeds) * (method.seconds * stage.config.steps / 1000 + evaluating)


def seconds_left(left: Collection[Job], slots: int, seen: dict[tuple[str, str], list[float]]) -> float:
    """Expected seconds until jobs are done, ``slots`` at a time: no less than the longest chain of those that wait for
    one another."""
    chains: dict[Job, float] = {}

    def chain(job: Job) -> float:
        if job not in chains:
            before = [chain(each) for each in job.dependencies() if each in left]
            chains[job] = seconds_of(job, seen) + max(before, default=0.0)
        return chains[job]

    return max(sum(seconds_of(job, seen) for job in left) / slots, max(map(chain, left), default=0.0))


class Board:
    """Live progress: what is done, running and failed, the time left, and the loops of every running stage."""

    def __init__(self, jobs: Sequence[Job], slots: int, done: int, console: Any = console.console, quiet: bool = False):
        self.left, self.slots = set(jobs), slots
        self.seen: dict[tuple[str, str], list[float]] = {}
        self.began: dict[Job, float] = {}
        self.failed = 0
        columns = TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn()
        self.bar = Bars(*columns, TimeElapsedColumn(), console=console, quiet=quiet)
        self.total = self.bar.add_task("", total=len(jobs) + done, completed=done, logged=False)  # it has its own lines
        self._describe()

    def _describe(self) -> None:
        left = seconds_left(self.left, self.slots, self.seen)
        text = f"running {len(self.began)}, failed {self.failed}, about {duration(left)} left"
        self.bar.update(self.total, description=text)

    def progress(self, job: Job, what: str, steps: int, done: int, values: Mapping[str, Any]) -> None:
        """A loop of a running job went on, or began with what was ``done`` before."""
        description = f"  {job.name}" + ("" if what == job.stage.method else f": {what}")
        self.bar.loop(description, steps, done, values, owner=job)

    def started(self, job: Job) -> None:
        """A job began."""
        self.began[job] = time.monotonic()
        self._describe()

    def finished(self, job: Job, failure: Failure | None) -> None:
        """A job is over."""
        self.bar.end(job)
        began = self.began.pop(job, None)
        if failure is not None:
            self.failed += 1
            self.bar.console.print(f"failed: {job.name}: {failure.error}")
        elif began is not None:
            seconds = time.monotonic() - began
            self.seen.setdefault((job.source.task, job.stage.name), []).append(seconds)
        if job in self.left:  # not one of a group's seeds, tried alone
            self.left.remove(job)
            self.bar.advance(self.total)
        self._describe()
        if not self.bar.console.is_terminal and began is not None:  # a log has lines, not a live display
            task = self.bar.tasks[0]
            self.bar.console.print(f"{task.completed:.0f}/{task.total:.0f} {job.name}; {task.description}")
