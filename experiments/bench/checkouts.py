"""Two checkouts of this repository against each other: did a change make training slower?

    python experiments/bench/checkouts.py --other ../before

In turns, each in a process of its own pinned to one core: the run command of both, with a fresh folder of stages; a
method's seconds are those of its result file (training alone; programs are compiled before and kept on disk). Printed
are the medians and, round by round, how many times as many steps a second this checkout makes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import shared
from rich.table import Table

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.errors import require

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    other: Path
    """Folder of the other checkout."""
    methods: tuple[str, ...] = ("bc", "iql", "td3-bc", "rebrac")
    """Methods."""
    steps: Annotated[int, POSITIVE] = 3000
    """Gradient steps of a measurement; a multiple of 500."""
    rounds: Annotated[int, POSITIVE] = 7
    env: str = "hopper-medium-replay"


def seconds(checkout: Path, method: str, config: BenchConfig, cache: Path) -> float:
    """Seconds that a checkout trains a method for."""
    steps = "--policy.bc-steps" if method == "bc" else f"--{method}.steps"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "iwsft_control.run", "--env", config.env, "--method", method]
        command += [steps, str(config.steps), "--results", folder, "--stages", f"{folder}/stages"]
        environment = os.environ | {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(cache)}
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        require(done.returncode == 0, f"{checkout} does not run {method}: {done.stderr.strip()[-300:]}")
        (path,) = Path(folder, config.env).glob("*.json")
        return json.loads(path.read_text(encoding="utf-8"))["seconds"][method]


def main(config: BenchConfig) -> None:
    """Measure in turns, print a row per method."""
    bounds.check(config, "")
    require((config.other / "iwsft_control").is_dir(), f"{config.other} is not a checkout of this repository.")
    shared.pin()  # inherited by the processes that measure
    shared.head()
    checkouts = {"this": ROOT, "other": config.other.resolve()}
    table = Table("method", "steps/s", "other", "ratio, median", "least", "most")
    with tempfile.TemporaryDirectory() as cache:
        for method in config.methods:
            taken: dict[str, list[float]] = {name: [] for name in checkouts}
            for name, checkout in checkouts.items():  # compiles
                seconds(checkout, method, config, Path(cache, name))
            for _ in range(config.rounds):
                for name, checkout in checkouts.items():
                    taken[name].append(seconds(checkout, method, config, Path(cache, name)))
            this, other = np.array(taken["this"]), np.array(taken["other"])
            ratios = other / this
            cells = [f"{config.steps / np.median(x):.0f}" for x in (this, other)]
            table.add_row(method, *cells, *(f"{f(ratios):.2f}" for f in (np.median, np.min, np.max)))
    console.console.print(table)


if __name__ == "__main__":
    console.command(lambda: BenchConfig, main, "python experiments/bench/checkouts.py", __doc__)
