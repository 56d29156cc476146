"""The live display of a sweep: what is done, running and failed, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from iwsft_control.base import console
from iwsft_control.base.progress import Bars, duration
from iwsft_control.benchmark.jobs import Failure, Job
from iwsft_control.methods import registry

EVALUATION_SECONDS = 6.0  # rough, on one core: only for the estimate before any stage was timed


@dataclass
class Seen:
    """What is known of the jobs' time: of each kind (task and stage), and how far the running ones have come."""

    whole: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """Seconds of the finished jobs of a kind."""
    pace: dict[tuple[str, str], float] = field(default_factory=dict)
    """Seconds of a step, in the latest training of a kind."""
    done: dict[Job, int] = field(default_factory=dict)
    """The steps of its training that a running job has behind it."""


def kind(job: Job) -> tuple[str, str]:
    """What decides how long a job takes: its task and its stage."""
    return job.source.task, job.stage.name


def seconds_of(job: Job, seen: Seen) -> float:
    """Expected seconds that a job still takes: by those of its kind that are finished or under way, else a guess."""
    whole, stage, method = seen.whole.get(kind(job)), job.stage, registry.card(job.stage.method)
    evaluating = EVALUATION_SECONDS * (0.05 if stage.settings.quick else 1) if method.has_policy else 0.0
    if whole:
        training, evaluating = sum(whole) / len(whole), 0.0
    elif kind(job) in seen.pace:
        training = seen.pace[kind(job)] * stage.config.steps
    else:
        training, evaluating = (len(stage.seeds) * each for each in (method.seconds_of(stage.config), evaluating))
    return training * (1 - seen.done.get(job, 0) / stage.config.steps) + evaluating


def seconds_left(left: Collection[Job], slots: int, seen: Seen) -> float:
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
        self.seen = Seen()
        self.trained: dict[Job, tuple[float, int]] = {}  # since when it trains, and steps before that
        self.began: dict[Job, float] = {}
        self.failed = 0
        columns = TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn()
        self.bar = Bars(*columns, TimeElapsedColumn(), console=console, quiet=quiet)
        self.total = self.bar.add_task("", total=len(jobs) + done, completed=done, logged=False)  # it has its own lines
        self._describe()

    def _describe(self) -> None:
        self.described = time.monotonic()
        left = seconds_left(self.left, self.slots, self.seen)
        text = f"running {len(self.began)}, failed {self.failed}, about {duration(left)} left"
        self.bar.update(self.total, description=text)

    def progress(self, job: Job, what: str, steps: int, done: int, values: Mapping[str, Any]) -> None:
        """A loop of a running job went on, or began with what was ``done`` before."""
        description = f"  {job.name}" + ("" if what == job.stage.method else f": {what}")
        self.bar.loop(description, steps, done, values, owner=job)
        if what != job.stage.method:
            return
        now = time.monotonic()
        began, before = self.trained.setdefault(job, (now, done))
        over = self.seen.done[job] = self.seen.done.get(job, 0) + done
        if over > before:
            self.seen.pace[kind(job)] = (now - began) / (over - before)
        if now - self.described > 1:  # a step may take less than to ask what all the others will
            self._describe()

    def started(self, job: Job) -> None:
        """A job began."""
        self.began[job] = time.monotonic()
        self._describe()

    def finished(self, job: Job, failure: Failure | None) -> None:
        """A job is over."""
        self.bar.end(job)
        began, resumed = self.began.pop(job, None), self.trained.pop(job, (0.0, 0))[1] > 0
        self.seen.done.pop(job, None)
        if failure is not None:
            self.failed += 1
            self.bar.console.print(f"failed: {job.name}: {failure.error}")
        elif began is not None and not resumed:
            self.seen.whole.setdefault(kind(job), []).append(time.monotonic() - began)
        if job in self.left:  # not one of a group's seeds, tried alone
            self.left.remove(job)
            self.bar.advance(self.total)
        self._describe()
        if not self.bar.console.is_terminal and began is not None:  # a log has lines, not a live display
            task = self.bar.tasks[0]
            self.bar.console.print(f"{task.completed:.0f}/{task.total:.0f} {job.name}; {task.description}")
