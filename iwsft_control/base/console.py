"""What the commands share: argument parsing, one-sentence errors with exit code 2, progress bars."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro
from rich.console import Console
from rich.table import Table

from iwsft_control.base.errors import UserError, require
from iwsft_control.base.files import cache_home
from iwsft_control.base.progress import Bars, to_stderr

T = TypeVar("T")
PROBE = 1 << 16  # bytes: more than a result and its policy's file system overhead, less than anyone misses
MAX_RANGE = 10_000  # seeds of a range such as 0-9
HELP_ALL = "--help-all"  # of commands that show the chosen methods' options alone
# Wide enough for the tables where there is no terminal to ask.
console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def command(
    options: Callable[[], Any],
    main: Callable[[Any], None],
    program: str,
    description: str | None,
    positional: str | None = None,
) -> None:
    """Parse the command line and run ``main``; a user's mistake ends with exit code 2.

    Args:
        options: gives the type of what ``main`` takes.
        positional: the option that words without a name are of, in front or after a flag:
            ``iwsft run hopper-medium-replay --quick``, ``iwsft run --quick hopper-medium-replay``.
    """
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show ends no run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.argv[1:] = with_ranges(sys.argv[1:])
        kind = options()
        if positional is not None:
            sys.argv[1:] = named(sys.argv[1:], positional, flags(kind))
        check_repeated(sys.argv[1:])
        arguments = ["--help" if a == HELP_ALL else a for a in sys.argv[1:]]
        chosen = tyro.cli(kind, args=arguments, prog=program, description=description)
        to_stderr(quiet=getattr(chosen, "quiet", False))
        main(chosen)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept.", file=sys.stderr)
        sys.exit(130)


def each(work: Callable[[T], object], items: Iterable[T]) -> bool:
    """Do the work for every item, whether or not one exits: a run that failed would fail again, and what is left comes
    first. Returns whether one did."""
    failed = False
    for item in items:
        try:
            work(item)
        except SystemExit:
            failed = True
    return failed


def check_repeated(arguments: Sequence[str]) -> None:
    """Refuse an option that is given twice, of which only the last would count.

    Raises:
        UserError: naming it.
    """
    names = [a.partition("=")[0].replace("_", "-") for a in arguments if a.startswith("--") and a != "--"]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"{twice} is given twice; give it once (with all its values, where it takes several).")


def with_ranges(arguments: Sequence[str]) -> list[str]:
    """A command line on which ``--seeds 0-9 20`` has every seed.

    Raises:
        UserError: a range that ends before it begins, or is too long.
    """
    found: list[str] = []
    option = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        option = name if argument.startswith("--") else option
        ends = re.fullmatch(r"(\d{1,9})-(\d{1,9})", value if equals else argument) if option == "--seeds" else None
        if ends is None:
            found.append(argument)
        else:
            count = int(ends[2]) - int(ends[1]) + 1
            require(count > 0, f"--seeds {ends[0]} ends before it begins; give the lower seed first.")
            require(count <= MAX_RANGE, f"--seeds {ends[0]} are {count:,} seeds; give {MAX_RANGE:,} at most.")
            found += [*([name] if equals else []), *map(str, range(int(ends[1]), int(ends[2]) + 1))]
    return found


def flags(kind: Any, prefix: str = "--") -> set[str]:
    """The options of a configuration that take no value: "--quick", "--no-quick", "--policy.length-weighted", ..."""
    found: set[str] = set()
    for name, hint in get_type_hints(kind).items():
        option = name.replace("_", "-")
        if hint is bool:
            found |= {f"{prefix}{option}", f"{prefix}no-{option}"}
        elif dataclasses.is_dataclass(hint):
            found |= flags(hint, f"{prefix}{option}.")
    return found


def named(arguments: Sequence[str], option: str, without_value: Collection[str]) -> list[str]:
    """A command line on which the words that no option takes are those of ``option``."""
    words: list[str] = []
    rest: list[str] = []
    takes = False  # whether the option before may have values
    for argument in arguments:
        if argument.startswith("-"):
            takes = argument.replace("_", "-") not in without_value
        (rest if takes or argument.startswith("-") else words).append(argument)
    return [f"--{option}", *words, *rest] if words else rest


def given(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The options on a command line and their values: {"td3_bc.alpha": ["1"]} for --td3-bc.alpha 1."""
    found: dict[str, list[str]] = {}
    values: list[str] = []  # of what comes before the first option
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            values = found.setdefault(name.replace("-", "_"), [])
            argument = value if equals else ""
        if argument:
            values.append(argument)
    return found


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells below a header."""
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)


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
        why = "it is a file" if folder.is_file() else error.strerror
        raise UserError(f"cannot write into {folder}: {why}; {remedy}.") from error


def progress_bar(quiet: bool = False) -> Bars:
    """One line per stage: name, bar, steps done, elapsed and remaining time; off a terminal lines of the log."""
    return Bars(console=console, quiet=quiet)


def cache_compiled_programs() -> None:
    """Keep compiled programs on disk, so that a second run starts faster (JAX's own variable for the folder counts)."""
    import jax  # here: help and a mistake in an option need none of it

    # A process that was killed may have left half an entry: JAX then compiles anew, and nobody has to know.
    warnings.filterwarnings("ignore", message="Error reading persistent compilation cache entry")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_home() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small ones add up to seconds
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
