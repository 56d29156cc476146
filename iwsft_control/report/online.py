"""Results of online fine-tuning: score and successes against simulator steps, in a table and a figure of their own.

Never beside offline scores: these runs query a reward in the simulator.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from iwsft_control.base.errors import UserError, is_finite, require
from iwsft_control.benchmark import results
from iwsft_control.benchmark.results import RunResult
from iwsft_control.online.methods import METHODS
from iwsft_control.report import figures, formats, statistics
from iwsft_control.report import runs as grouped
from iwsft_control.report.tables import cell

GRID = 41  # points of a curve at which seeds are averaged


class Panel(NamedTuple):
    """Runs that may be compared: one task, reward and budget of simulator steps."""

    task: str
    reward: str
    budget: int


Online = dict[Panel, dict[str, list[RunResult]]]  # panel -> method -> runs, seeds in order


def find(folder: Path, quick: bool = False) -> Online:
    """The online results in a folder, at any depth.

    Raises:
        UserError: there are none, one is damaged or of another kind, or two cannot stand in one table.
    """
    found: Online = {}
    for path in grouped.result_files(folder):
        run = results.read(path)
        _check(path, run)
        if run.quick == quick:
            panel = Panel(run.task, run.config["reward"], run.config["steps"])
            found.setdefault(panel, {}).setdefault(run.method, []).append(run)
    if not found:
        raise UserError(f"no online results in {folder}; make some with python -m iwsft_control.finetune.")
    for panel, methods in found.items():
        if differ := grouped.unlike((("", run) for runs in methods.values() for run in runs), _alike):
            which = f"runs of {panel.task} ({panel.reward}) in {folder}"
            raise UserError(f"{which} have {differ[2]}; part them.")
        for name, runs in methods.items():
            runs.sort(key=lambda run: run.seed)
            for one, other in itertools.pairwise(runs):
                same = f"two runs of {name} with seed {one.seed} ({panel.task}, {panel.reward})"
                require(one.seed != other.seed, f"{folder} holds {same}; remove one.")
    order = list(METHODS)
    return {panel: dict(sorted(found[panel].items(), key=lambda pair: order.index(pair[0]))) for panel in sorted(found)}


def _alike(run: RunResult) -> list[tuple[str, str, Any]]:
    return [("data sets", "", run.dataset), *grouped.circumstances(run, ""), ("configurations", "", run.config)]


def _check(path: Path, run: RunResult) -> None:
    """Refuse a file that holds no curve against simulator steps."""
    curve = run.diagnostics.get("curve")
    names = ("step", "normalised_score", "success")
    columns: list[Any] = [curve.get(name) for name in names] if isinstance(curve, dict) else []
    whole = bool(columns) and all(isinstance(c, list) and c and len(c) == len(columns[0]) for c in columns)
    numbers = whole and all(is_finite(x) for c in columns for x in c)
    numbers = numbers and all(one < other for one, other in itertools.pairwise(columns[0]))
    start = run.diagnostics.get(f"{run.config.get('start')}_start")
    of_start = start.get if isinstance(start, dict) else lambda name: None
    numbers = numbers and (start is None or all(is_finite(of_start(name)) for name in names[1:]))
    known = is_finite(run.evaluation.get("simulator_steps")) and is_finite(run.diagnostics.get("success"))
    budget = isinstance(run.config.get("steps"), int)
    budget &= all(isinstance(run.config.get(name), str) for name in ("reward", "start"))
    if not (numbers and known and budget and run.method in METHODS):
        raise UserError(f"{path} is no result of online training, or damaged; remove it or run it again.")


def starts(methods: Mapping[str, Sequence[RunResult]], what: str) -> dict[int, float]:
    """What the offline policies that the runs of a panel start from reach, without a simulator step, by seed."""
    found = {}
    for run in (run for runs in methods.values() for run in runs):
        start = run.diagnostics.get(f"{run.config['start']}_start")
        if isinstance(start, dict) and is_finite(start.get(what)):
            found[run.seed] = start[what]
    return dict(sorted(found.items()))


def rewards(online: Online) -> dict[Panel, str]:
    """The reward of every panel as tables and titles name it: with its budget where there are several."""
    budgets = {(panel.reward, panel.budget) for panel in online}
    several = {reward for reward, _ in budgets if sum(each == reward for each, _ in budgets) > 1}
    return {p: f"{p.reward}, {p.budget:,} steps" if p.reward in several else p.reward for p in online}


def to_markdown(online: Online) -> str:
    """The table: final score and share of successes of every method, mean over seeds with its 95% interval."""
    rows, reward = [], rewards(online)
    for panel, methods in online.items():
        first = next(run for runs in methods.values() for run in runs)
        offline, successes = (np.array([*starts(methods, x).values()]) for x in ("normalised_score", "success"))
        if len(offline):
            rows.append([panel.task, reward[panel], first.config["start"], *_cells(offline, successes, [0])])
        for method, runs in methods.items():
            scores = np.array([run.normalised_score for run in runs])
            successes = np.array([run.diagnostics["success"] for run in runs])
            steps = [run.evaluation["simulator_steps"] for run in runs]
            rows.append([panel.task, reward[panel], method, *_cells(scores, successes, steps)])
    header = ["task", "reward", "method", "seeds", "simulator steps", "normalised score", "successes, %"]
    return formats.markdown_table(header, rows)


START = "start"  # the offline policy of the same seed, as if it were a method
COMPARED = {  # what a difference tells, and between whom; BC stands for what they start from
    "PPO from BC, minus BC": ("bc-rl", START),
    "no BC at all, minus PPO from BC": ("rl", "bc-rl"),
    "uniform resets, minus PPO from BC": ("rl-uniform-resets", "bc-rl"),
    "UFT without the likelihood, minus PPO from BC": ("uft-no-likelihood", "bc-rl"),
    "UFT, minus PPO from BC": ("uft", "bc-rl"),
    "Prefix-RFT, minus PPO from BC": ("prefix-rft", "bc-rl"),
    "UFT, minus UFT without the likelihood": ("uft", "uft-no-likelihood"),
}


def compared(online: Online) -> dict[str, tuple[str, str]]:
    """The comparisons of :data:`COMPARED` that some panel has runs of, on both sides with one seed."""
    every = online.values()
    return {k: two for k, two in COMPARED.items() if any(len(_paired(methods, two)) for methods in every)}


def differences_markdown(online: Online) -> str:
    """Differences of scores paired by seed, for every panel and for the mean over the tasks of a reward and budget.

    Intervals are corrected for the comparisons of the table (Bonferroni).
    """
    named = rewards(online)
    columns: dict[str, list[Panel]] = {f"{panel.task}, {named[panel]}": [panel] for panel in online}
    for reward in dict.fromkeys(named.values()):
        group = [panel for panel in online if named[panel] == reward]
        if len(group) > 1:
            columns[f"mean over tasks, {reward}"] = group
    rows = []
    begun = {run.config["start"] for methods in online.values() for runs in methods.values() for run in runs}
    offline = "BC" if begun == {"bc"} else " or ".join(sorted(begun))
    comparisons = compared(online)
    for label, two in comparisons.items():
        cells = []
        for panels in columns.values():
            strata = [_paired(online[panel], two) for panel in panels]
            whole = all(len(stratum) for stratum in strata)
            cells.append(cell(statistics.stratified_mean(strata, len(comparisons)) if whole else None, signed=True))
        rows.append([label.replace("BC", offline), *cells])
    return formats.markdown_table(["difference of scores", *columns], rows)


def _paired(methods: Mapping[str, Sequence[RunResult]], two: tuple[str, str]) -> np.ndarray:
    return statistics.paired(*(_scores(methods, name) for name in two))


def _scores(methods: Mapping[str, Sequence[RunResult]], name: str) -> dict[int, float]:
    if name == START:
        return starts(methods, "normalised_score")
    return {run.seed: run.normalised_score for run in methods.get(name, ())}


def _cells(scores: np.ndarray, successes: np.ndarray, steps: Sequence[int]) -> list[str]:
    score, success = statistics.mean_interval(scores), statistics.mean_interval(100 * successes)
    return [str(len(scores)), f"{np.mean(steps):,.0f}", cell(score), cell(success)]


def draw(online: Online, what: str = "normalised_score") -> Figure:
    """Score (or ``success``) against simulator steps: mean over seeds and its standard error, a panel for each task and
    reward. Seeds are evaluated at different steps, so their curves are interpolated."""
    figure, axes = plt.subplots(1, len(online), figsize=(3.4 * len(online) + 1.6, 3.2), squeeze=False)
    order, reward = list(METHODS), rewards(online)
    for axis, (panel, methods) in zip(axes[0], online.items(), strict=True):
        grid = np.linspace(0, panel.budget, GRID)
        for method, runs in methods.items():
            curves = np.array([_curve(run, what, grid) for run in runs])
            mean, x = curves.mean(axis=0), order.index(method)
            colour = figures.COLOURS[1 + x]
            line = figures.LINES[x % len(figures.LINES)]
            axis.plot(grid / 1000, mean, line, color=colour, label=method, linewidth=1.4)
            if len(runs) > 1:
                error = curves.std(axis=0, ddof=1) / len(runs) ** 0.5
                axis.fill_between(grid / 1000, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
        offline = starts(methods, what)
        if offline:
            axis.axhline(np.mean([*offline.values()]), color="#bbbbbb", linewidth=0.9, zorder=0)
        axis.set(xlabel="thousand simulator steps", title=f"{panel.task}, {reward[panel]}")
    axes[0, 0].set_ylabel(what.replace("_", " "))
    handles = {label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[0, -1].legend(handles.values(), handles.keys(), frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _curve(run: RunResult, what: str, grid: np.ndarray) -> np.ndarray:
    """A run's evaluations at the steps ``grid``; it begins where its offline policy is, where it has one."""
    curve = run.diagnostics["curve"]
    steps, values = list(curve["step"]), list(curve[what])
    start = run.diagnostics.get(f"{run.config['start']}_start")
    if isinstance(start, dict):
        steps, values = [0, *steps], [start[what], *values]
    return np.interp(grid, steps, values)
