"""``python -m iwsft_control.table``: result files to tables and figures.

    python -m iwsft_control.table                                  # results/sweep -> results/
    python -m iwsft_control.table my/runs --out my/table --baseline sft-q --focus iw-sft-q

Writes table.md, short.md, table.tex, table.csv, scores.json (rliable's layout), report.html and figures/; learning
curves from the folder curves beside them join the page. From the same files it writes the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from iwsft_control.base import console
from iwsft_control.base.errors import require
from iwsft_control.benchmark import results
from iwsft_control.methods import registry
from iwsft_control.report import runs as grouped

PUBLISHED = (Path("results/sweep"),)


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """Which results, and what to compare them with."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = PUBLISHED
    """Folders (or single files) of results, ours or yours."""
    out: Path | None = None
    """Folder of the tables and figures; by default results/ for results/sweep, else beside the first folder:
    my/runs -> my/runs-table."""
    baseline: str = "bc"
    """Every method is compared with this one: a method, or "sft-q by return"."""
    focus: str = "iw-sft-q"
    """This method is compared with every other."""
    run: Path | None = None
    """Result file of the run whose training is drawn; by default the first of --focus."""
    method_file: tuple[Path, ...] = ()
    """Python files with methods of your own, whose runs are among the results."""
    filmstrip: Path | None = None
    """Policy file (.safetensors beside a result): pictures of its first evaluation episode join the page."""
    quick: bool = False
    """Make a table of trial runs (--quick), marked as such."""


def main(config: TableConfig) -> None:
    """Read, check, compare and write."""
    for file in config.method_file:
        registry.load_file(file)
    for name in {row.split(" by ")[0] for row in (config.baseline, config.focus)} - set(registry.names()):
        there = all(f.exists() for f in config.folders) and name in {
            run.method for run in grouped.find(config.folders, config.quick).values()
        }
        require(not there, f"there are runs of {name}, a method of your own; name its file too: --method-file FILE.")
    baseline, focus = grouped.parse_row(config.baseline), grouped.parse_row(config.focus)
    runs = grouped.find(config.folders, config.quick)
    report = grouped.collect(runs, baseline, focus, grouped.find_failures(config.folders, runs.values()))
    shown = results.read(config.run) if config.run else None
    out = config.out or beside(config.folders)
    console.writable(out)
    from iwsft_control.report import write  # here: help and a mistake in an option need none of Matplotlib

    written = write.everything(report, out, shown, config.filmstrip)
    console.console.print(f"{len(runs)} runs -> {', '.join(written)} and figures in {out}")


def beside(folders: Sequence[Path]) -> Path:
    """Where the tables of folders go that name no place: the published ones are made of the published runs alone."""
    if len(folders) == 1 and folders[0].resolve() == PUBLISHED[0].resolve():
        return Path("results")
    first = folders[0].resolve()
    return first.parent / f"{first.stem if first.is_file() else first.name}-table"


def cli() -> None:
    """The command line."""
    console.command(lambda: TableConfig, main, "python -m iwsft_control.table", __doc__)


if __name__ == "__main__":
    cli()
