"""Every bench in turn, each in a fresh process, and what it printed as a file that can be committed.

    python experiments/bench/all.py
    python experiments/bench/all.py --only command released --out ../elsewhere

Each file holds the command, the commit, the processor and the table; let nothing else run meanwhile. Not among them are
the benches that need what not everyone has (``accelerator.py``, ``checkouts.py``), which their help explains.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from iwsft_control.base import console, files
from iwsft_control.base.errors import require
from iwsft_control.benchmark import results

BENCH = Path(__file__).parent
BENCHES = (
    "startup",
    "loading",
    "released",
    "evaluation",
    "sequences",
    "breakdown",
    "training",
    "pool",
    "command",
    "online",
    "growth",
)


@dataclasses.dataclass(frozen=True)
class AllConfig:
    """What to measure, and where to write it."""

    only: tuple[str, ...] = BENCHES
    """Names of benches."""
    out: Path = BENCH.parents[1] / "results" / "bench"
    unifloral: Path | None = None
    """A clone of unifloral, to measure its loops beside ours."""


def arguments(name: str, config: AllConfig) -> list[str]:
    """What a bench is told beside its defaults."""
    return ["--unifloral", str(config.unifloral)] if name == "training" and config.unifloral else []


def main(config: AllConfig) -> None:
    """Run the benches, write one file for each.

    Raises:
        UserError: a name is not one of a bench, or a bench failed. What was measured before is kept.
    """
    unknown = sorted(set(config.only) - set(BENCHES))
    require(not unknown, f"no bench {', '.join(unknown)}; choose of {', '.join(BENCHES)}.")
    commit = results.git_commit() or "unknown"
    for name in config.only:
        console.console.print(f"{name} ...")
        own = arguments(name, config)
        done = subprocess.run(
            [sys.executable, BENCH / f"{name}.py", *own],
            env=os.environ | {"COLUMNS": "160", "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        require(done.returncode == 0, f"{name} failed; its message is above.")
        console.console.print(done.stdout, markup=False, highlight=False)
        words = " ".join([f"experiments/bench/{name}.py", *own[:1], *("../unifloral" for _ in own[1:])])
        files.write_text(config.out / f"{name}.txt", f"$ python {words}\n# commit {commit}\n{done.stdout}")


if __name__ == "__main__":
    console.command(lambda: AllConfig, main, "python experiments/bench/all.py", __doc__)
