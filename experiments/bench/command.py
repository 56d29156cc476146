"""The main command by stage, in fresh processes: what training costs, and what everything else does.

    python experiments/bench/command.py
    python experiments/bench/command.py --quick --methods bc iw-sft --arguments="--policy.hidden 64 64"

Three starts of ``python -m iwsft_control.run``, in turns over the rounds, medians of the rounds:

    first    an empty cache and no stages: data are read anew, every program is compiled
    second   the cache of the first, no stages: the same training, its programs from disk
    again    the second once more: everything is done already

Columns are the seconds of the stages as the result files tell them (training with its compilation), what the whole
takes beyond them (start-up, loading, writing; less than nothing where stages train side by side), and the whole; then
the programs that were compiled, the programs that were taken from the folder of compiled programs, the entries that it
has afterwards, the seconds of compiling and of reading what was kept, and the seconds until the first program of
training was there, which is when the first step begins.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import shared
from rich.table import Table

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.errors import require

ROOT = Path(__file__).parents[2]
STARTS = ("first", "second", "again")
# What JAX says with JAX_LOG_COMPILES=1. It calls taking a program from disk compilation too.
MADE = re.compile(r"Finished XLA compilation of (\S+) in ([0-9.]+) sec")
KEPT = "Persistent compilation cache hit"
TRAINING = "jit(_call)"  # of the training loop
OFF = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")  # what would lead the programs elsewhere


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    env: str = "hopper-medium-replay"
    """Task."""
    methods: tuple[str, ...] = ("iw-sft-q",)
    """Methods."""
    arguments: str = ""
    """Further arguments of the command in one word: --arguments="--critic.steps 1000"."""
    quick: bool = False
    """The command's --quick."""
    rounds: Annotated[int, POSITIVE] = 1
    """The command takes minutes; a quick one wants several."""


class Start(NamedTuple):
    """What one start of the command took."""

    stages: dict[str, float]  # seconds
    whole: float  # seconds
    compiled: int
    kept: int  # programs that were taken from disk
    entries: int  # in the folder of compiled programs, afterwards
    compiling: float  # seconds
    first_step: float | None  # seconds until then


def start(config: BenchConfig, cache: Path, folder: Path) -> Start:
    """Run the command in a fresh process.

    Args:
        cache: the user's cache: arrays of the data, compiled programs.
        folder: of results and stages.

    Raises:
        UserError: it fails.
    """
    command = [sys.executable, "-m", "iwsft_control.run", "--env", config.env, "--method", *config.methods]
    command += ["--results", str(folder / "results"), "--stages", str(folder / "stages")]
    command += [*(["--quick"] if config.quick else []), *shlex.split(config.arguments)]
    environment = {k: v for k, v in os.environ.items() if k not in OFF}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), "JAX_LOG_COMPILES": "1"}
    began, first_step, lines = time.perf_counter(), None, []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if first_step is None and (made := MADE.search(line)) is not None and made[1] == TRAINING:
                first_step = time.perf_counter() - began
    whole = time.perf_counter() - began
    require(process.returncode == 0, f"the command failed: {''.join(lines).strip()[-300:]}")
    stages: dict[str, float] = {}
    for path in sorted((folder / "results").rglob("*.json")):
        stages |= json.loads(path.read_text(encoding="utf-8"))["seconds"]
    programs = [made for made in map(MADE.search, lines) if made is not None]
    kept = sum(KEPT in line for line in lines)
    entries = sum(path.name.endswith("-cache") for path in cache.rglob("iwsft_control/compiled/*"))
    return Start(
        stages, whole, len(programs) - kept, kept, entries, sum(float(made[2]) for made in programs), first_step
    )


def main(config: BenchConfig) -> None:
    """Measure in turns, print a column for every start."""
    bounds.check(config, "")
    shared.head()
    taken: dict[str, list[Start]] = {name: [] for name in STARTS}
    for _ in range(config.rounds):
        with tempfile.TemporaryDirectory() as folder:
            cache, one, two = (Path(folder, name) for name in ("cache", "one", "two"))
            for name, where in zip(STARTS, (one, two, two), strict=True):
                found = start(config, cache, where)
                # A result file tells what its stages took when they were done, not that they were done before.
                taken[name].append(found._replace(stages={}) if name == "again" else found)
    table = Table("", *STARTS)
    for stage in taken["first"][0].stages:
        table.add_row(f"{stage}, s", *(_median([s.stages.get(stage, 0.0) for s in x]) for x in taken.values()))
    rest = [[s.whole - sum(s.stages.values()) for s in x] for x in taken.values()]
    table.add_row("the whole less these, s", *(_median(x) for x in rest))
    table.add_row("the whole, s", *(_median([s.whole for s in x]) for x in taken.values()), end_section=True)
    for title, field, digits in (
        ("programs compiled", "compiled", 0),
        ("programs taken from disk", "kept", 0),
        ("entries of the folder", "entries", 0),
        ("compiling and reading programs, s", "compiling", 1),
        ("until the first step, s", "first_step", 1),
    ):
        table.add_row(title, *(_median([getattr(s, field) for s in x], digits) for x in taken.values()))
    console.console.print(table)


def _median(values: Sequence[float | None], digits: int = 1) -> str:
    known = [v for v in values if v is not None]
    return f"{np.median(known):.{digits}f}" if known else "-"


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/command.py", __doc__)
