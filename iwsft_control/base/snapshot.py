"""How far a long training has come, kept in a file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iwsft_control.base.errors import UserError
from iwsft_control.base.files import load_pytree, save_pytree

SNAPSHOT_SECONDS = 60.0  # of training, at most, that a kill loses


class Snapshot:
    """How far a long training has come, kept in a file so that it goes on there after a kill, bit for bit the same.

    Args:
        path: of the file, which must be of this training alone; None keeps nothing.
    """

    def __init__(self, path: Path | None = None):
        self.path, self.before = path, 0.0
        self.began = self.saved = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a kill included."""
        return self.before + time.perf_counter() - self.began

    def load(self, start: Any) -> tuple[Any, dict[str, Any]]:
        """The pytree and the record that were saved last; ``start`` and {} where there are none or they are damaged."""
        if self.path is None:
            return start, {}
        try:
            state, record = load_pytree(self.path, start)
        except UserError:
            return start, {}
        self.before = record.pop("seconds")
        return state, record

    def save(self, state: Any, record: Mapping[str, Any]) -> None:
        """Keep a pytree of arrays and a record that JSON can hold, once a minute, where there is room for it."""
        if self.path is not None and time.perf_counter() - self.saved >= SNAPSHOT_SECONDS:
            with contextlib.suppress(UserError):  # a full disk costs what a kill would lose, not the training
                save_pytree(self.path, state, {**record, "seconds": self.seconds})
            self.saved = time.perf_counter()

    def remove(self) -> None:
        """Delete the file: the training is over."""
        if self.path is not None:
            with contextlib.suppress(OSError):  # of a folder that can only be read: the next one to finish finds it
                self.path.unlink(missing_ok=True)
