"""The later rounds of tuning, on tuning seeds: one knob at a time.

    python experiments/tuning.py --seeds 100 101
    python experiments/tuning.py --seeds 102 104 --knobs "episodes 90/95/98" "transitions 75/85/95"
    python experiments/tuning.py --round spread --seeds 100 101 102 103 104 105
    python experiments/tuning.py --round anchor --seeds 100 101
    python experiments/tuning.py --round parts --seeds 100 101
    python experiments/tuning.py --round advantage --seeds 100 101

The second asks what keeps iw-SFT(Q) from ending below BC, the third what lowers the spread between seeds, the fourth
whether it gains by staying near BC, the fifth whether parts of episodes do better by their Q than whole ones, the sixth
whether better actions inside of episodes should count for more. Every row is the round's first but for the knobs that
its name tells; the rule that chooses stands in docs/tuning.md. Kill it and start it again: finished runs are kept. The
table (knobs.md in the round's folder) is made of all seeds in the folder: for every task the mean score and the mean
difference from BC (the run's own start); over all tasks the mean, its standard deviation between seeds, and, paired by
seed, its difference from the first row.
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
from iwsft_control.benchmark import checks
from iwsft_control.benchmark.results import RunResult
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.importance import ImportanceConfig
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.envs import tasks
from iwsft_control.report import formats, runs, statistics
from iwsft_control.report.tables import cell, difference, interval


def of(unit: Literal["transitions", "units"], *strata: float) -> CurationConfig:
    """Strata as percentiles of transitions, or of episodes."""
    return CurationConfig(strata=strata, strata_of=unit)


ANCHORED, PARTS, ADVANTAGE = (Path(__file__).with_name(f"{name}.py") for name in ("anchored", "parts", "advantage"))
EARLIER = {"curation": of("units", 90, 95, 98)}
"""The default of the first round."""

Knobs = dict[str, dict[str, Any]]  # name of a row: the options of a sweep that are not its defaults

STRATA: Knobs = {
    "episodes 90/95/98": {},
    "steps 1,000": {"policy": PolicyConfig(fine_tune_steps=1_000)},
    "size 0.8": {"importance": ImportanceConfig(0.8)},
    "episodes 70/85/95": {"curation": of("units", 70, 85, 95)},
    "transitions 80/90/95": {"curation": of("transitions", 80, 90, 95)},
    "transitions 75/85/95": {"curation": of("transitions", 75, 85, 95)},
    "transitions 70/85/95": {"curation": of("transitions", 70, 85, 95)},
}
SPREAD: Knobs = {
    "default": {},
    "learning rate 0.001": {"policy": PolicyConfig(fine_tune_learning_rate=1e-3)},
    "steps 10,000": {"policy": PolicyConfig(fine_tune_steps=10_000)},
    "bc steps 60,000": {"policy": PolicyConfig(bc_steps=60_000)},
    "bc steps 10,000": {"policy": PolicyConfig(bc_steps=10_000)},
    "bc steps 5,000": {"policy": PolicyConfig(bc_steps=5_000)},
    "steps 20,000": {"policy": PolicyConfig(fine_tune_steps=20_000)},
}
ANCHOR: Knobs = {
    "default": {},
    "KL 0.1": {"methods": ("iw-sft-q-kl-0-1",), "method_file": (ANCHORED,)},
    "KL 1": {"methods": ("iw-sft-q-kl-1",), "method_file": (ANCHORED,)},
}
BY_Q: dict[str, Any] = {"methods": ("iw-sft-q-of-parts",), "method_file": (PARTS,)}
IN_PARTS: Knobs = {
    "default": {},
    "segments of 50": BY_Q | {"curation": CurationConfig(q_unit="segment")},
    "segments of 200": BY_Q | {"curation": CurationConfig(q_unit="segment", segment_steps=200)},
    "transitions": BY_Q | {"curation": CurationConfig(q_unit="transition")},
    "segments of 50, no weights": BY_Q | {"methods": ("sft-q-of-parts",), "curation": CurationConfig(q_unit="segment")},
}
BY_ADVANTAGE: Knobs = {
    "default": {},
    "beta 3": {"methods": ("iw-sft-q-advantage-3",), "method_file": (ADVANTAGE,)},
    "beta 1": {"methods": ("iw-sft-q-advantage-1",), "method_file": (ADVANTAGE,)},
    "beta 3, no importance weights": {"methods": ("sft-q-advantage-3",), "method_file": (ADVANTAGE,)},
}
ROUNDS: dict[str, Knobs] = {
    "knobs": {name: EARLIER | groups for name, groups in STRATA.items()},  # second: what keeps it from ending below BC
    "spread": SPREAD,  # third: what lowers the spread between seeds
    "anchor": ANCHOR,  # fourth: whether it gains by staying near BC
    "parts": IN_PARTS,  # fifth: whether parts of episodes do better by their Q
    "advantage": BY_ADVANTAGE,  # sixth: whether better actions inside of episodes should count for more
}
TASKS = dict.fromkeys(("spread", "parts", "advantage"), tasks.MEDIUM_REPLAY[:1])
"""Of the rounds that are not of all tasks: the third has its own reason, the last two were stopped there."""


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """What to run, and where."""

    round: Literal["knobs", "spread", "anchor", "parts", "advantage"] = "knobs"
    """The second to the sixth."""
    tasks: tuple[str, ...] | None = None
    """By default those of the round's table in docs/tuning.md."""
    seeds: tuple[int, ...] = (100, 101)
    """Tuning seeds: 100 and up."""
    knobs: tuple[str, ...] = ()
    """Names of rows of the table, by default all of the round."""
    out: Path | None = None
    """By default results/tuning/ROUND, of trials results/quick/tuning/ROUND."""
    workers: int | None = None
    table_only: bool = False
    """Make the table of the results that are there; run nothing."""
    quick: bool = False
    """A trial of a few steps."""


def main(config: TuningConfig) -> None:
    """Run every row, then write the table."""
    chosen = TASKS.get(config.round, tasks.MEDIUM_REPLAY) if config.tasks is None else config.tasks
    checks.check_tasks(chosen)
    checks.check_seeds(config.seeds)
    knobs = ROUNDS[config.round]
    unknown = sorted(set(config.knobs) - set(knobs))
    require(not unknown, f"no knob {', '.join(unknown)}; choose of {'; '.join(knobs)}.")
    out = config.out or Path("results/quick" if config.quick else "results") / "tuning" / config.round

    def run(name: str) -> None:
        console.console.print(name)
        options = {"tasks": chosen, "methods": ("iw-sft-q",), "qualities": ("q",), "seeds": config.seeds}
        own = {"results": out / folder(name), "workers": config.workers, "quick": config.quick}
        sweep.main(sweep.Plan(**options | own | knobs[name]))

    failed = console.each(run, () if config.table_only else config.knobs or knobs)
    found = {name: runs.by_seed(out / folder(name), config.quick) for name in knobs}
    require(any(found.values()), f"no results in {out}: run them without --table-only.")
    runs.require_alike(found.values())
    header, rows = table(chosen, found)
    console.print_table(header, rows)
    files.write_text(out / "knobs.md", formats.markdown_table(header, rows) + "\n")
    if failed:
        raise SystemExit(1)


def folder(name: str) -> str:
    """Of a row's results."""
    return name.replace(" ", "-").replace(",", "").replace("/", "-")


def table(
    task_names: Sequence[str], found: Mapping[str, Mapping[str, Mapping[int, RunResult]]]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of cells: every row that has results; the others are compared with the first of ``found``."""
    names, first = [tasks.parse_task(t).name for t in task_names], next(iter(found))
    by_task = {name: [of_task.get(t, {}) for t in names] for name, of_task in found.items() if of_task}
    means = {
        name: statistics.over_tasks([{s: r.normalised_score for s, r in of_task.items()} for of_task in each])
        for name, each in by_task.items()
    }
    rows = []
    for name, each in by_task.items():
        apart = difference(means[name], means.get(first, {}), len(by_task) - 1) if name != first else "-"
        scores = np.array(list(means[name].values()))
        spread = cell(statistics.deviation(scores)) if len(scores) > 1 else "-"
        rows.append([name, str(len(scores)), *map(with_start, each), interval(means[name]), spread, apart])
    starts = (f"{t} (minus BC)" for t in names)
    return ["knob", "seeds", *starts, "mean of the tasks", "standard deviation", f"minus {first}"], rows


def with_start(by_seed: Mapping[int, RunResult]) -> str:
    """The mean score of runs, and in brackets how far that is from where they started."""
    if not by_seed:
        return "-"
    score, start = np.mean([(run.normalised_score, runs.bc_start(run)) for run in by_seed.values()], axis=0)
    return f"{score:.1f} ({score - start:+.1f})"


if __name__ == "__main__":
    console.command(lambda: TuningConfig, main, "python experiments/tuning.py", __doc__)
