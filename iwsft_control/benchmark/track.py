"""Trackers: what the training loop logs, sent on as it comes. Nothing leaves this machine unless the user says so.

One stream for all: name and value of every scalar, by task, method, seed and step; and the score of every finished run.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from iwsft_control.base.errors import UserError

Kind = Literal["csv", "tensorboard", "wandb"]
COLUMNS = ("time", "run", "step", "name", "value")


class Tracker(Protocol):
    """Where the stream goes."""

    def log(self, run: str, step: int, values: Mapping[str, float]) -> None:
        """Scalars of a run, such as "hopper-medium-replay/iql/seed0", at a step of its training."""

    def close(self) -> None:
        """All is logged."""


class CSV:
    """One file, track.csv: a line for every value, appended to what is there."""

    def __init__(self, folder: Path):
        path = folder / "track.csv"
        new = not path.exists()
        self._file = path.open("a", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file)
        if new:
            self._rows.writerow(COLUMNS)

    def log(self, run: str, step: int, values: Mapping[str, float]) -> None:
        now = f"{time.time():.0f}"
        self._rows.writerows([now, run, step, name, value] for name, value in values.items())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files in the folder tensorboard, one folder for every run."""

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError("tensorboardX is not installed; pip install tensorboardX.") from error
        self._make: Callable[[str], Any] = lambda run: SummaryWriter(str(folder / "tensorboard" / run))
        self._writers: dict[str, Any] = {}

    def log(self, run: str, step: int, values: Mapping[str, float]) -> None:
        writer = self._writers[run] = self._writers.get(run) or self._make(run)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WandB:
    """Weights & Biases, one run each; offline (in the folder wandb) unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path):
        try:
            import wandb
        except ImportError as error:
            raise UserError("wandb is not installed; pip install wandb.") from error
        os.environ.setdefault("WANDB_MODE", "offline")
        self._start = lambda run: wandb.init(
            project="iwsft_control", name=run, dir=str(folder), reinit="create_new", settings={"silent": True}
        )
        self._runs: dict[str, Any] = {}

    def log(self, run: str, step: int, values: Mapping[str, float]) -> None:
        started = self._runs[run] = self._runs.get(run) or self._start(run)
        started.log(dict(values), step=step)

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()


def open_tracker(kind: Kind, folder: Path) -> Tracker:
    """A tracker that writes below a folder.

    Raises:
        UserError: its package is missing, or the folder cannot be written.
    """
    made: dict[str, Callable[[Path], Tracker]] = {"csv": CSV, "tensorboard": TensorBoard, "wandb": WandB}
    try:
        return made[kind](folder)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another --results.") from error


def scalars(values: Mapping[str, Any], seed: int) -> dict[str, float]:
    """The scalars of one of several seeds in an entry of the loop's log (which holds a list over seeds)."""
    found = {k: v[seed] if isinstance(v, list) else v for k, v in values.items() if k != "step"}
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float)}
