"""How far long work has come: bars on a terminal; elsewhere a line of the log for every loop and every minute of it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG = logging.getLogger("iwsft_control")
MINUTE = 60.0


class _Stderr(logging.Handler):
    """Lines to what stderr is when they are written: who replaces it (a test, a notebook) gets them."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def to_stderr(quiet: bool = False) -> None:
    """Send the log to stderr, each line with its time; warnings only where it is to be quiet."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    LOG.handlers, LOG.propagate = [handler], False
    LOG.setLevel(logging.WARNING if quiet else logging.INFO)


class Bars(Progress):
    """Rich's progress; where there is no terminal it draws nothing and logs instead.

    A task's field ``values`` may hold what its loop logs (see :func:`losses`); one whose field ``logged`` is false is
    only drawn.
    """

    def __init__(self, *columns: str | ProgressColumn, console: Any, quiet: bool = False):
        defaults = (
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        super().__init__(*(columns or defaults), console=console, disable=quiet or not console.is_terminal)
        self._logs = not quiet and not console.is_terminal
        self._first: dict[Any, tuple[float, float]] = {}  # when a task's first steps were done, and how many
        self._told: dict[Any, float] = {}
        self._loops: dict[Any, tuple[str, Any]] = {}  # of every owner: description and task of its line

    def loop(self, description: str, steps: int, done: int, values: Mapping[str, Any], owner: Any = None) -> None:
        """The loop of this description went on: of ``steps``, ``done`` more are over.

        At first ``done`` are over since before a kill, which do not count for the time left. Every description has a
        line of its own from then on; but those of one ``owner`` have one line between them, the latest's.
        """
        owner = description if owner is None else owner
        if owner not in self._loops or self._loops[owner][0] != description:
            self.end(owner)
            if self._logs and done:
                LOG.info("%s: goes on after %s of %s", description.strip(), f"{done:,}", f"{steps:,}")
            self._loops[owner] = description, self.add_task(description, total=steps, completed=done)
            self._line(self._loops[owner][1])
        else:
            self.update(self._loops[owner][1], advance=done, values=values)

    def end(self, owner: Any) -> None:
        """Remove the line of an owner, if it has one."""
        if owner in self._loops:
            self.remove_task(self._loops.pop(owner)[1])

    def advance(self, task_id: Any, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._line(task_id)

    def update(self, task_id: Any, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._line(task_id)

    def _line(self, task_id: Any) -> None:
        task = next((task for task in self.tasks if task.id == task_id), None)
        if not self._logs or task is None or not task.total or not task.fields.get("logged", True):
            return
        now = time.monotonic()
        began, before = self._first.setdefault(task_id, (now, task.completed))
        told = self._told.setdefault(task_id, now)
        shown = losses(task.fields.get("values", {}))
        if task.completed >= task.total:
            if told != float("inf"):
                LOG.info("%s: %s in %s%s", task.description, f"{task.total:,.0f}", duration(now - began), shown)
            self._told[task_id] = float("inf")
        elif now - told >= MINUTE:
            done = task.completed - before
            left = f", {duration((now - began) / done * (task.total - task.completed))} left" if done else ""
            LOG.info("%s: %s of %s%s%s", task.description, f"{task.completed:,.0f}", f"{task.total:,.0f}", shown, left)
            self._told[task_id] = now


def losses(values: Mapping[str, Any]) -> str:
    """The losses among logged values as the end of a line: ", critic loss 0.12"; of several seeds their mean."""
    found = []
    for name, value in values.items():
        if name.split("_")[-1] == "loss":
            seeds = value if isinstance(value, list) else [value]
            found.append(f"{name.replace('_', ' ')} {sum(seeds) / len(seeds):.4g}")
    return "".join(f", {each}" for each in found)


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
