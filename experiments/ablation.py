"""What makes the difference: quality, granularity and weights, one factor at a time, on the same seeds.

    python experiments/ablation.py

Every variant is a sweep with other settings; BC and the critics are done once for all of them, and what the table's
sweep has done of them is used again. Kill it and start it again: finished runs are kept. The table
(results/ablation/ablation.md) gives for every variant the mean score over seeds with its 95% interval and, paired by
seed, its difference from the variant of its group that is not weighted (SFT(Q)) and, over all tasks, from the default
(iw-SFT(Q) by learned Q) and from iw-SFT(Q) by the recipe of the paper's released code (``--released``); intervals of
a column of differences are corrected for their number. The figure shows the score against the effective sample size
of the weights. Both are of all seeds and groups that are there, whichever were run, the released recipe's with
``--released``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt

from iwsft_control import sweep
from iwsft_control.base import console, files
from iwsft_control.base.errors import require
from iwsft_control.benchmark import checks
from iwsft_control.benchmark.results import RunResult
from iwsft_control.configs import released as released_recipe
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.envs import tasks
from iwsft_control.envs.tasks import MEDIUM_REPLAY
from iwsft_control.learning.objectives import ImportanceConfig
from iwsft_control.report import figures, formats, runs, statistics
from iwsft_control.report.tables import difference, interval

TARGETS = (0.5, 0.14)
RELEASED = "released recipe"
DEFAULT = {"curation": CurationConfig(), "importance": ImportanceConfig()}
EARLIER = ImportanceConfig(None, temperature=1.0, relative=False, low=0.2, high=1.8)  # the defaults up to 0.1


class Variant(NamedTuple):
    """One way to curate and to weigh."""

    group: str
    """What it shares with the variant that it is compared with."""
    weights: str
    method: str
    quality: str
    settings: tuple[tuple[str, Any], ...]
    """Groups of options that are not the defaults."""

    @property
    def folder(self) -> str:
        return re.sub(r"[],[']", "", f"{self.group}-{self.weights}".replace(" ", "-"))


def variants(targets: Sequence[float] = TARGETS, released: bool = False) -> list[Variant]:
    """Every variant, group by group; the first of a group has no weights.

    Every weighting is tried where the default stands (learned Q, episodes); by return those of ``targets``; elsewhere
    only the default: of parts of episodes no weights mend what the sets lack (docs/tuning.md, the first round).

    Args:
        targets: effective sample sizes.
        released: with the recipe of the paper's released code too.
    """
    sizes = {f"ess {t}": ImportanceConfig(t) for t in targets}
    fixed = {"temperature 10": ImportanceConfig(None, temperature=10.0), "clip [0.2, 1.8]": EARLIER}
    default = ImportanceConfig()
    usual = {f"ess {default.effective_sample_size}": default}
    found: list[Variant] = []
    for quality, curation, name, weighings in (
        ("q", CurationConfig(), "learned Q, episodes", sizes | fixed),
        ("return", CurationConfig(), "return, episodes", sizes),
        ("q", released_recipe.CURATION, "learned Q, episodes, the paper's strata", usual),
        ("q", CurationConfig(q_unit="segment"), "Q - V, segments", usual),
        ("q", CurationConfig(q_unit="transition"), "Q - V, transitions", usual),
    ):
        curated = (("curation", curation),)
        found.append(Variant(name, "none", "sft-q", quality, curated))
        found += [Variant(name, w, "iw-sft-q", quality, (*curated, ("importance", i))) for w, i in weighings.items()]
    if released:
        recipe = (("preset", "released"),)
        found.append(Variant(RELEASED, "none", "sft-q", "return", recipe))
        found.append(Variant(RELEASED, "temperature 10", "iw-sft-q", "return", recipe))
    return found


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """What to run, and where."""

    tasks: tuple[str, ...] = MEDIUM_REPLAY
    seeds: tuple[int, ...] = tuple(range(7, 17))
    """None on which anything was chosen: that was done on 100 and up, with 0 to 3 of the table known."""
    groups: tuple[str, ...] = ()
    """Names of groups to run ("return, episodes"), by default all of them."""
    targets: tuple[float, ...] = TARGETS
    """Effective sample sizes of the weights."""
    released: bool = False
    """The recipe of the paper's released code too: hours a run on one core."""
    out: Path | None = None
    """By default results/ablation, of trials results/quick/ablation."""
    workers: int | None = None
    table_only: bool = False
    """Make table and figure of the results that are there; run nothing."""
    quick: bool = False
    """A trial of a few steps."""


def main(config: AblationConfig) -> None:
    """Run every variant, then write the table and the figure."""
    checks.check_tasks(config.tasks)
    checks.check_seeds(config.seeds)
    every = variants(config.targets, config.released)
    known = list(dict.fromkeys(v.group for v in every))
    unknown = sorted(set(config.groups) - set(known))
    require(not unknown, f"no group {', '.join(unknown)}; choose of {'; '.join(known)}.")
    chosen = [v for v in every if not config.groups or v.group in config.groups]
    out = config.out or Path("results/quick" if config.quick else "results") / "ablation"

    def run(variant: Variant) -> None:
        console.console.print(f"{variant.group}: weights {variant.weights}")
        options = {
            "tasks": config.tasks,
            "methods": (variant.method,),
            "qualities": (variant.quality,),
            "seeds": config.seeds,
            "results": out / variant.folder,
            "workers": config.workers,
            "quick": config.quick,
        }
        sweep.main(sweep.Plan(**options, **dict(variant.settings)))

    failed = console.each(run, () if config.table_only else chosen)
    found = {v: runs.by_seed(out / v.folder, config.quick) for v in every}
    require(any(found.values()), f"no results in {out}: run them without --table-only.")
    runs.require_alike(found.values())
    there = {v.group for v, by_task in found.items() if by_task}
    found = {v: by_task for v, by_task in found.items() if v.group in there}
    header, rows = table(config, found)
    console.print_table(header, rows)
    files.write_text(out / "ablation.md", formats.markdown_table(header, rows) + "\n")
    figures.save(figure(config, found), out, "effective-sample-size")
    if failed:
        raise SystemExit(1)


Found = Mapping[Variant, Mapping[str, Mapping[int, RunResult]]]  # variant -> task -> seed -> result


def scores(found: Mapping[int, RunResult], seeds: Sequence[int]) -> np.ndarray:
    """Normalised scores of seeds, (S,)."""
    return np.array([found[s].normalised_score for s in seeds])


def with_mean(by_task: Sequence[Mapping[int, float]]) -> list[Mapping[int, float]]:
    """Scores by task and seed, and last their mean over tasks, of the seeds that have all of them."""
    return [*by_task, statistics.over_tasks(by_task)]


def table(config: AblationConfig, found: Found) -> tuple[list[str], list[list[str]]]:
    """Header and rows of cells: BC, then every variant; every task, then the mean over tasks.

    "seeds" counts those that have all tasks, which the mean is of; a difference is of the seeds that both sides have.
    """
    names = [tasks.parse_task(t).name for t in config.tasks]
    columns = {
        variant: with_mean([{s: r.normalised_score for s, r in by_task.get(name, {}).items()} for name in names])
        for variant, by_task in found.items()
    }
    first = found[next(iter(found))]
    starts = with_mean([{s: runs.bc_start(r) for s, r in first.get(name, {}).items()} for name in names])
    base = {v.group: v for v in found if v.weights == "none"}
    weighted = [v for v in found if v.weights != "none"]
    others = [(v, "minus the default") for v in weighted if v.quality == "q" and dict(v.settings) == DEFAULT]
    others += [(v, "minus the released iw-SFT(Q)") for v in weighted if v.group == RELEASED]
    header = [
        "quality, unit",
        "weights",
        "seeds",
        *(c for n in (*names, "mean of the tasks") for c in (n, "minus no weights")),
    ]
    count = str(len(starts[-1]))
    rows = [
        ["BC, where they start", "-", count, *(c for mine in starts for c in (interval(mine), "-"))]
        + ["-"] * len(others)
    ]
    for variant, own in columns.items():
        cells = [variant.group, variant.weights, str(len(own[-1]))]
        for mine, other in zip(own, columns[base[variant.group]], strict=True):
            cells.append(interval(mine))
            cells.append("-" if variant is base[variant.group] else difference(mine, other, len(weighted)))
        cells += ["-" if variant is v else difference(own[-1], columns[v][-1], len(found) - 1) for v, _ in others]
        rows.append(cells)
    return [*header, *(title for _, title in others)], rows


def figure(config: AblationConfig, found: Found) -> Any:
    """Score against the effective sample size over training (its mean), a panel per task, a line per group."""
    names = [tasks.parse_task(t).name for t in config.tasks]
    drawn, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names) + 1.2, 3.2), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for i, group in enumerate(dict.fromkeys(v.group for v in found)):
            points = []
            for variant in (v for v in found if v.group == group and v.weights != "clip [0.2, 1.8]"):
                runs = found[variant].get(name, {})
                if runs:
                    score = statistics.mean_interval(scores(runs, sorted(runs)))
                    points.append((_mean_size(runs), score.value, score.low, score.high))
            if points:
                size, value, low, high = np.array(sorted(points)).T
                style = {"color": figures.COLOURS[i + 1], "label": group}
                axis.errorbar(size, value, [value - low, high - value], marker="o", markersize=3, capsize=2, **style)
        axis.set(xlabel="effective sample size", xlim=(0, 1.03), title=name)
    axes[0, 0].set_ylabel("normalised score")
    axes[0, -1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


def _mean_size(runs: Mapping[int, RunResult]) -> float:
    """Mean effective sample size after the first refresh, where q is still pi_ref; one without weights."""
    logs = [r.diagnostics["training"].get("effective_sample_size", [1.0, 1.0]) for r in runs.values()]
    return float(np.mean([np.mean(log[1:]) for log in logs]))


if __name__ == "__main__":
    console.command(lambda: AblationConfig, main, "python experiments/ablation.py", __doc__)
