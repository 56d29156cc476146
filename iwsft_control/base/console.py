"""What the commands share: argument parsing, one-sentence errors with exit code 2, progress bars."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from iwsft_control.base.errors import UserError
from iwsft_control.base.files import cache_home

PROBE = 1 << 16  # bytes: more than a result and its policy's file system overhead, less than anyone misses
# Wide enough for the tables where there is no terminal to ask.
console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def command(options: Callable[[], Any], main: Callable[[Any], None], program: str, description: str | None) -> None:
    """Parse the command line and run ``main``; a user's mistake ends with exit code 2.

    Args:
        options: gives the type of what ``main`` takes.
    """
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show ends no run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main(tyro.cli(options(), prog=program, description=description))
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept.", file=sys.stderr)
        sys.exit(130)


def printable(text: str) -> str:
    """Text of a file as one line that a terminal shows and does not obey."""
    return "".join(c if c.isprintable() else " " for c in text)


def writable(folder: Path) -> None:
    """Make sure that results can be written before hours are spent on them.

    Raises:
        UserError: the folder cannot be made or written, or its disk is full.
    """
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(PROBE))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        remedy = "choose a folder that you may write, with space left"
        raise UserError(f"cannot write into {folder}: {error.strerror}; {remedy}.") from error


def progress_bar() -> Progress:
    """One line per stage: name, bar, steps done, elapsed and remaining time."""
    return Progress(
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def cache_compiled_programs() -> None:
    """Keep compiled programs on disk, so that a second run starts faster (JAX's own variable for the folder counts)."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_home() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
