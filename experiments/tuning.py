"""The second round of tuning: what keeps iw-SFT(Q) from ending below BC, on tuning seeds.

    python experiments/tuning.py --seeds 100 101
    python experiments/tuning.py --seeds 102 104 --knobs "episodes 90/95/98" "transitions 75/85/95"

Every row is the first but for the knobs that its name tells; the rule that chooses stands in docs/difference.md. Kill
it and start it again: finished runs are kept. The table (results/tuning/knobs/knobs.md) is made of all seeds in the
folder: for every task the mean score and the mean difference from BC (the run's own start); over all tasks the mean
and, paired by seed, its difference from the first row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iwsft_control import sweep
from iwsft_control.base import console, files
from iwsft_control.base.errors import require
from iwsft_control.benchmark import results
from iwsft_control.benchmark.results import RunResult
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.importance import ImportanceConfig
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.envs import tasks
from iwsft_control.report import formats, statistics
from iwsft_control.report.tables import cell

DEFAULT = "episodes 90/95/98"
"""The default of the first round: what every row is but for the knobs that its name tells."""


def of(unit: Literal["transitions", "units"], *strata: float) -> CurationConfig:
    """Strata as percentiles of transitions, or of episodes."""
    return CurationConfig(strata=strata, strata_of=unit)


KNOBS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "steps 1,000": {"policy": PolicyConfig(fine_tune_steps=1_000)},
    "size 0.8": {"importance": ImportanceConfig(0.8)},
    "episodes 70/85/95": {"curation": of("units", 70, 85, 95)},
    "transitions 80/90/95": {"curation": of("transitions", 80, 90, 95)},
    "transitions 75/85/95": {"curation": of("transitions", 75, 85, 95)},
    "transitions 70/85/95": {"curation": of("transitions", 70, 85, 95)},
}
KNOBS = {name: {"curation": of("units", 90, 95, 98)} | groups for name, groups in KNOBS.items()}


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """What to run, and where."""

    tasks: tuple[str, ...] = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")
    seeds: tuple[int, ...] = (100, 101)
    """Tuning seeds: 100 and up."""
    knobs: tuple[str, ...] = ()
    """Names of rows of the table, by default all of them."""
    out: Path = Path("results/tuning/knobs")
    workers: int | None = None
    table_only: bool = False
    """Make the table of the results that are there; run nothing."""
    quick: bool = False
    """A trial of a few steps."""


def main(config: TuningConfig) -> None:
    """Run every row, then write the table."""
    unknown = sorted(set(config.knobs) - set(KNOBS))
    require(not unknown, f"no knob {', '.join(unknown)}; choose of {'; '.join(KNOBS)}.")
    for name in () if config.table_only else config.knobs or KNOBS:
        console.console.print(name)
        options = {"tasks": config.tasks, "methods": ("iw-sft-q",), "qualities": ("q",), "seeds": config.seeds}
        own = {"results": config.out / folder(name), "workers": config.workers, "quick": config.quick}
        sweep.main(sweep.Plan(**options, **own, **KNOBS[name]))
    header, rows = table(config.tasks, {name: read(config, name) for name in KNOBS})
    console.print_table(header, rows)
    files.write_text(config.out / "knobs.md", formats.markdown_table(header, rows) + "\n")


def folder(name: str) -> str:
    """Of a row's results."""
    return name.replace(" ", "-").replace(",", "").replace("/", "-")


def read(config: TuningConfig, name: str) -> dict[str, dict[int, RunResult]]:
    """The results of a row, by task and seed; of all seeds that are there."""
    found: dict[str, dict[int, RunResult]] = {}
    for path in sorted((config.out / folder(name)).rglob("*.json")):
        run = None if path.parent.name == "failures" else results.read(path)
        if run is not None and run.quick == config.quick:
            require(run.seed not in found.setdefault(run.task, {}), f"{path.parent} holds two runs of seed {run.seed}.")
            found[run.task][run.seed] = run
    return found


def table(
    task_names: Sequence[str], found: Mapping[str, Mapping[str, Mapping[int, RunResult]]]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of cells: every row of :data:`KNOBS` that has results."""
    names = [tasks.parse_task(t).name for t in task_names]
    means = {name: over_tasks([by_task.get(t, {}) for t in names]) for name, by_task in found.items() if by_task}
    rows = []
    for name, mean in means.items():
        cells = []
        for runs in (found[name].get(t, {}).values() for t in names):
            score, start = (
                np.mean(x) if x else np.nan for x in ([r.normalised_score for r in runs], [bc_start(r) for r in runs])
            )
            cells.append(f"{score:.1f} ({score - start:+.1f})" if runs else "-")
        whole = cell(statistics.mean_interval(np.array([*mean.values()]))) if mean else "-"
        apart = statistics.paired(mean, means.get(DEFAULT, {}))
        compared = name != DEFAULT and len(apart)
        cells += [whole, cell(statistics.mean_interval(apart), signed=True) if compared else "-"]
        rows.append([name, str(len(mean)), *cells])
    return ["knob", "seeds", *(f"{t} (minus BC)" for t in names), "mean of the tasks", f"minus {DEFAULT}"], rows


def bc_start(run: RunResult) -> float:
    """Normalised score of the BC policy from which a run was fine-tuned."""
    return float(run.diagnostics["bc_start"]["normalised_score"])


def over_tasks(by_task: Sequence[Mapping[int, RunResult]]) -> dict[int, float]:
    """The mean score over tasks of every seed that has all of them."""
    seeds = set.intersection(*(set(runs) for runs in by_task))
    return {seed: float(np.mean([runs[seed].normalised_score for runs in by_task])) for seed in sorted(seeds)}


if __name__ == "__main__":
    console.command(lambda: TuningConfig, main, "python experiments/tuning.py", __doc__)
