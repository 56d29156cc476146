"""The second round of tuning: what keeps iw-SFT(Q) from ending below BC, on tuning seeds.

    python experiments/tuning.py --seeds 100 101
    python experiments/tuning.py --seeds 102 103 104 --knobs "default" "steps 1,000"

Every row is the default but for the knobs that its name tells; the rule that chooses stands in docs/difference.md. Kill
it and start it again: finished runs are kept. The table (results/tuning/knobs/knobs.md) is made of all seeds in the
folder: for every task the mean score, the mean difference from BC (the run's own start) and, over all tasks, the mean
and, paired by seed, its difference from the default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ablation import bc_start, difference, interval, with_mean
from iwsft_control import sweep
from iwsft_control.base import console, files
from iwsft_control.base.errors import require
from iwsft_control.benchmark import results
from iwsft_control.benchmark.results import RunResult
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.importance import ImportanceConfig
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.envs import tasks
from iwsft_control.report import formats

DEFAULT = "default"
KNOBS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "steps 1,000": {"policy": PolicyConfig(fine_tune_steps=1_000)},
    "steps 2,000": {"policy": PolicyConfig(fine_tune_steps=2_000)},
    "steps 10,000": {"policy": PolicyConfig(fine_tune_steps=10_000)},
    "learning rate 1e-3": {"policy": PolicyConfig(fine_tune_learning_rate=1e-3)},
    "learning rate 1e-4": {"policy": PolicyConfig(fine_tune_learning_rate=1e-4)},
    "size 0.65": {"importance": ImportanceConfig(0.65)},
    "size 0.8": {"importance": ImportanceConfig(0.8)},
    "strata 90": {"curation": CurationConfig(episode_strata=(90,))},
    "strata 80/90/95": {"curation": CurationConfig(episode_strata=(80, 90, 95))},
    "strata 70/85/95": {"curation": CurationConfig(episode_strata=(70, 85, 95))},
}
KNOBS |= {
    f"transitions {'/'.join(map(str, strata))}": {
        "curation": CurationConfig(episode_strata=strata, strata_of="transitions")
    }
    for strata in ((80, 90, 95), (75, 85, 95), (70, 85, 95))
}


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
    quick: bool = False
    """A trial of a few steps."""


def main(config: TuningConfig) -> None:
    """Run every row, then write the table."""
    unknown = sorted(set(config.knobs) - set(KNOBS))
    require(not unknown, f"no knob {', '.join(unknown)}; choose of {'; '.join(KNOBS)}.")
    for name in config.knobs or KNOBS:
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
            found.setdefault(run.task, {})[run.seed] = run
    return found


def table(
    task_names: Sequence[str], found: Mapping[str, Mapping[str, Mapping[int, RunResult]]]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of cells: every row of :data:`KNOBS` that has results."""
    names = [tasks.parse_task(t).name for t in task_names]
    scores = {
        name: with_mean([{s: r.normalised_score for s, r in by_task.get(t, {}).items()} for t in names])
        for name, by_task in found.items()
        if by_task
    }
    rows = []
    for name, own in scores.items():
        above = [{s: r.normalised_score - bc_start(r) for s, r in found[name].get(t, {}).items()} for t in names]
        by_task = [f"{mean(mine)} ({mean(apart, '+')})" for mine, apart in zip(own, above, strict=False)]
        apart = "-" if name == DEFAULT or DEFAULT not in scores else difference(own[-1], scores[DEFAULT][-1])
        rows.append([name, str(len(own[-1])), *by_task, interval(own[-1]), apart])
    return ["knob", "seeds", *(f"{t} (minus BC)" for t in names), "mean of the tasks", "minus the default"], rows


def mean(scores: Mapping[int, float], sign: str = "") -> str:
    """Mean over seeds."""
    return f"{np.mean([*scores.values()]):{sign}.1f}" if scores else "-"


if __name__ == "__main__":
    console.command(lambda: TuningConfig, main, "python experiments/tuning.py", __doc__)
