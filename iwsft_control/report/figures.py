"""Figures of a report, one for each question: who scores what, who beats whom, how runs spread, what evaluation buys.

Methods look the same in all of them (:mod:`.looks`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iwsft_control.base.files import atomic_path, write_text
from iwsft_control.benchmark.results import RunResult
from iwsft_control.report import statistics
from iwsft_control.report.looks import GROUPS, Look, look
from iwsft_control.report.runs import Report, Row, metric, overall, strata, titles
from iwsft_control.report.runs import differences as paired
from iwsft_control.report.statistics import Estimate

matplotlib.use("Agg")


COLOURS = ("#999999", "#000000", "#E69F00", "#D55E00", "#56B4E9", "#0072B2", "#CC79A7", "#009E73")
LINES = ("-", "--", "-.", ":")


plt.rcParams.update(
    {
        "svg.hashsalt": "iwsft_control",  # the same figure is the same file
        "svg.fonttype": "path",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
)


def _shown(text: str) -> str:
    """Text of a result file as a figure's: a dollar sign would begin mathematics."""
    return " ".join(text.split()).replace("$", "\\$")


def _looks(report: Report) -> dict[Row, Look]:
    labels = [row.label for row in report.scores]
    return {row: look(row.label, labels) for row in report.scores}


def _grouped(report: Report) -> list[tuple[str, list[Row]]]:
    """The rows of a report by group, in the order of the table."""
    looks = _looks(report)
    found = [(group, [row for row in report.scores if looks[row].group == group]) for group in GROUPS]
    return [(group, rows) for group, rows in found if rows]


def _forest(axis: Axes, report: Report, rows: Sequence[Row], estimates: Mapping[Row, Estimate | None]) -> list[float]:
    """A row for every method, from top to bottom, with a gap between groups; returns their heights."""
    looks, heights, height = _looks(report), [], 0.0
    for before, row in zip([*rows[:1], *rows], rows, strict=False):
        height -= 1.0 + 0.6 * (looks[before].group != looks[row].group)
        heights.append(height)
        estimate = estimates.get(row)
        if estimate is None:
            continue
        if not np.isnan(estimate.low):
            axis.plot([estimate.low, estimate.high], [height] * 2, color=looks[row].colour, linewidth=2.2, alpha=0.8)
        axis.plot(estimate.value, height, looks[row].marker, color=looks[row].colour, markersize=6.5)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    if heights:
        axis.set_ylim(heights[-1] - 0.8, heights[0] + 0.8)
    return heights


def _panels(report: Report, rows: Sequence[Row]) -> tuple[Figure, list[Axes]]:
    several = len(report.datasets) > 1
    panels = len(report.datasets) + several
    figure, axes = plt.subplots(
        1, panels, figsize=(1.7 + 2.5 * panels, 1.1 + 0.27 * (len(rows) + 3)), squeeze=False, sharey=True
    )
    for axis, title in zip(axes[0], [*titles(report), *(["mean of all"] * several)], strict=True):
        axis.set_title(_shown(title).replace(" ", "\n", 1), fontsize=9)
    return figure, list(axes[0])


def scores(report: Report) -> Figure:
    """Who scores what: mean over seeds, its 95% interval and every seed, a panel per data set and one of their mean."""
    rows = [row for _, group in _grouped(report) for row in group]
    figure, axes = _panels(report, rows)
    looks = _looks(report)
    each = {row: strata(report, row) for row in rows}
    for i, axis in enumerate(axes[: len(report.datasets)]):
        found = {row: statistics.mean_interval(each[row][i]) if len(each[row][i]) else None for row in rows}
        heights = _forest(axis, report, rows, found)
        for row, height in zip(rows, heights, strict=True):
            runs = each[row][i]
            beside = np.full(len(runs), height + 0.3)  # off the bar, which would hide them
            axis.scatter(runs, beside, 16, color=looks[row].colour, edgecolor="white", linewidth=0.5, zorder=3)
        axis.set_yticks(heights, [_shown(row.label) for row in rows])
    if len(axes) > len(report.datasets):
        means = {row: overall(report, row) for row in rows}
        _forest(axes[-1], report, rows, {row: mean[0] if mean else None for row, mean in means.items()})
    for axis in axes:
        axis.set_xlabel(_shown(metric(report)))
    return figure


def differences(report: Report) -> Figure:
    """Whom the focus beats: its score minus every other method's, paired by seed, intervals as in the table."""
    rows = [row for _, group in _grouped(report) for row in group if row != report.focus]
    figure, axes = _panels(report, rows)
    pairs = {row: paired(report, report.focus, row) for row in rows}
    count = len(rows)
    for axis, dataset in zip(axes, report.datasets, strict=False):
        found = {
            row: statistics.mean_interval(pairs[row][dataset], count) if dataset in pairs[row] else None for row in rows
        }
        heights = _forest(axis, report, rows, found)
        axis.set_yticks(heights, [_shown(row.label) for row in rows])
    if len(axes) > len(report.datasets):
        whole = {
            row: statistics.stratified_mean(list(pairs[row].values()), count)
            if len(pairs[row]) == len(report.datasets)
            else None
            for row in rows
        }
        _forest(axes[-1], report, rows, whole)
    for axis in axes:
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"{_shown(report.focus.label)} minus the method")
    return figure


def profiles(report: Report) -> Figure:
    """Share of runs above a score, mean over data sets, with a pointwise 95% bootstrap band: a panel per group."""
    complete = [row for row in report.scores if all(len(x) for x in strata(report, row))]
    everything = np.concatenate([np.zeros(1), *(s for row in complete for s in strata(report, row))])
    thresholds = np.linspace(min(0.0, everything.min()), everything.max() * 1.02, 300)
    found = {row: statistics.profile(strata(report, row), thresholds) for row in complete}
    groups, looks = _grouped(report), _looks(report)
    figure, axes = plt.subplots(
        1, len(groups), figsize=(0.6 + 2.9 * len(groups), 3.1), squeeze=False, sharey=True, sharex=True
    )
    for axis, (group, rows) in zip(axes[0], groups, strict=True):
        for row in complete:  # those of the other groups stand behind, in grey
            share, low, high = found[row]
            if row not in rows:
                axis.plot(thresholds, share, color="#dddddd", linewidth=0.8, zorder=0)
                continue
            style = looks[row]
            axis.plot(
                thresholds, share, linestyle=style.line, color=style.colour, label=_shown(row.label), linewidth=1.7
            )
            axis.fill_between(thresholds, low, high, color=style.colour, alpha=0.12, linewidth=0)
        axis.set(xlabel=f"{_shown(metric(report))} $\\tau$", title=group, ylim=(0, 1.02))
        if any(row in complete for row in rows):
            axis.legend(frameon=False, loc="lower left", fontsize=8)
    axes[0, 0].set_ylabel("share of runs with a score above $\\tau$")
    return figure


def budgets(report: Report) -> Figure:
    """Score of the policy chosen among a method's seeds by n evaluation episodes: a row per group of methods."""
    spent = [0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300]
    groups, looks = _grouped(report), _looks(report)
    figure, axes = plt.subplots(
        len(groups),
        len(report.datasets),
        figsize=(1.8 + 2.7 * len(report.datasets), 0.5 + 1.9 * len(groups)),
        squeeze=False,
        sharex=True,
        sharey="col",
    )
    for column, (dataset, title) in enumerate(zip(report.datasets, titles(report), strict=True)):
        values = {}
        for row in report.scores:
            runs = [r for r in report.runs.values() if r.dataset["id"] == dataset and Row(r.method, r.quality) == row]
            if runs:
                episodes = np.stack([_normalised(r) for r in sorted(runs, key=lambda r: r.seed)])
                values[row] = statistics.best_of(episodes, spent)
        for axis, (_, rows) in zip(axes[:, column], groups, strict=True):
            for row, found in values.items():
                style = looks[row]
                if row not in rows:
                    axis.plot(spent, found, color="#dddddd", linewidth=0.8, zorder=0)
                    continue
                axis.plot(
                    spent, found, linestyle=style.line, marker=style.marker, markersize=3, color=style.colour,
                    label=_shown(row.label), linewidth=1.4,
                )  # fmt: skip
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        axes[0, column].set_title(_shown(title), fontsize=9)
        axes[-1, column].set_xlabel("evaluation episodes spent")
    for axis, (group, _) in zip(axes[:, 0], groups, strict=True):
        axis.set_ylabel(f"{group}\nscore", fontsize=8)
    for line in axes:
        handles = {h.get_label(): h for axis in line for h in axis.get_lines() if not h.get_label().startswith("_")}
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 8}
        line[-1].legend(handles.values(), handles.keys(), frameon=False, **place)
    return figure


def _normalised(run: RunResult) -> np.ndarray:
    low, high = run.evaluation["ref_min_score"], run.evaluation["ref_max_score"]
    return 100 * (np.array(run.episode_returns) - low) / (high - low)


def training(run: RunResult) -> Figure:
    """One run over its training: losses; for a weighted method effective sample size, weights, bound and gap."""
    log = run.diagnostics["training"]
    if "loss" not in log:
        return _baseline_training(run)
    weighted = {"effective_sample_size", "weight_quantiles", "bound", "gap"} <= set(log)
    critic = run.diagnostics.get("critic")
    if critic is not None and not {"critic_loss", "value_loss"} <= set(critic):
        critic = None
    judged = {"log_likelihood", "held_out_log_likelihood"} <= set(log)
    panels = 1 + 3 * weighted + judged + (critic is not None)
    figure, axes = plt.subplots(1, panels, figsize=(3.0 * panels, 2.8), squeeze=False)
    rest = list(axes[0])
    if critic is not None:
        axis = rest.pop(0)
        axis.plot(critic["step"], critic["critic_loss"], color=COLOURS[5], label="Q")
        axis.plot(critic["step"], critic["value_loss"], "--", color=COLOURS[3], label="V")
        axis.set(yscale="log", xlabel="step", title="critic: loss")
        axis.legend(frameon=False)
    axis = rest.pop(0)
    axis.plot(log["step"], log["loss"], color=COLOURS[5])
    axis.set(xlabel="step", title="policy: $-$mean log-likelihood")
    if weighted:
        axis = rest.pop(0)
        axis.plot(log["step"], log["effective_sample_size"], color=COLOURS[5])
        axis.set(xlabel="step", title="effective sample size", ylim=(0, 1.05))
        axis = rest.pop(0)
        quantiles = np.maximum(np.array(log["weight_quantiles"], float).T, 1e-6)
        pairs = len(quantiles) // 2
        for k in range(pairs):  # least and most, then the quantiles between
            axis.fill_between(log["step"], quantiles[k], quantiles[-1 - k], color=COLOURS[5], alpha=0.2, linewidth=0)
        axis.plot(log["step"], quantiles[pairs], color=COLOURS[5])
        axis.set(xlabel="step", yscale="log", title="importance weights: quantiles")
        axis = rest.pop(0)
        bound, gap = np.array(log["bound"], float), np.array(log["gap"], float)
        axis.plot(log["step"], bound, color=COLOURS[5], label="bound")
        axis.plot(log["step"], bound + gap, "--", color=COLOURS[3], label="bound + gap")
        axis.set(xlabel="step", title=r"$\log\,E_{D^+}[p/\pi_\mathrm{ref}]$")
        axis.legend(frameon=False)
    if judged:
        axis = rest.pop(0)
        axis.plot(log["step"], log["log_likelihood"], color=COLOURS[5], label="curated")
        axis.plot(log["step"], log["held_out_log_likelihood"], "--", color=COLOURS[3], label="held out")
        axis.set(xlabel="step", title="log-likelihood of a row")
        axis.legend(frameon=False)
    for axis in axes[0]:
        axis.locator_params(axis="x", nbins=4)
    figure.suptitle(_shown(f"{run.task}, {Row(run.method, run.quality).label}, seed {run.seed}"), fontsize=9)
    return figure


def _baseline_training(run: RunResult) -> Figure:
    """What a baseline logs (losses, CQL's temperature), a panel each."""
    log = run.diagnostics["training"]
    names = [name for name in log if name != "step"]
    figure, axes = plt.subplots(1, len(names), figsize=(3.0 * len(names), 2.8), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot(log["step"], np.array(log[name], float), color=COLOURS[5])
        axis.set(xlabel="step", title=_shown(name.replace("_", " ")))
    figure.suptitle(_shown(f"{run.task}, {run.method}, seed {run.seed}"), fontsize=9)
    return figure


def curves(groups: Sequence[Sequence[Mapping[str, Any]]]) -> Figure:
    """Learning curves of experiments/learning_curve.py: score against updates, a panel per task.

    Curves of a group differ in their seed only: their mean with its standard error over seeds; of a single seed the one
    over episodes.
    """
    names = sorted({group[0]["task"] for group in groups})
    methods = sorted({group[0]["method"] for group in groups})
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names) + 1.2, 3.2), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for group in groups:
            first = group[0]
            if first["task"] != name:
                continue
            scores = np.array([r["normalised_score"] for r in group])
            score, error, steps = scores.mean(axis=0), np.array(first["standard_error"]), np.array(first["step"]) / 1000
            if len(group) > 1:
                error = scores.std(axis=0, ddof=1) / len(group) ** 0.5
            style = look(first["method"], methods)
            axis.plot(
                steps, score, linestyle=style.line, marker=style.marker, markersize=3, color=style.colour,
                label=_shown(first["method"]), linewidth=1.4,
            )  # fmt: skip
            axis.fill_between(steps, score - error, score + error, color=style.colour, alpha=0.12, linewidth=0)
        axis.set(xlabel="thousand updates", title=_shown(name))
    axes[0, 0].set_ylabel("normalised score")
    handles = {label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[0, -1].legend(handles.values(), handles.keys(), frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def filmstrip(frames: Sequence[np.ndarray], seconds: float, count: int = 8) -> Figure:
    """``count`` frames (H, W, 3) of an episode, evenly from the first to the last, ``seconds`` from one to the next."""
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    figure, axes = plt.subplots(1, len(chosen), figsize=(1.5 * len(chosen), 1.8), squeeze=False, layout="constrained")
    for axis, i in zip(axes[0], chosen, strict=True):
        axis.imshow(frames[i])
        axis.set_axis_off()
        axis.set_title(f"{i * seconds:.1f} s", fontsize=9)
    return figure


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write a figure as SVG and PNG; returns the SVG.

    Raises:
        UserError: the folder cannot be written.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    write_text(folder / f"{name}.svg", out.getvalue())
    figure.set_layout_engine("none")  # it is laid out now; to do it again takes as long as to draw
    with atomic_path(folder / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=150)
    plt.close(figure)
    return out.getvalue()


def pick(report: Report, row: Row) -> RunResult:
    """The run whose training is shown: the lowest seed of ``row`` on the first data set that has one."""
    runs = [r for r in report.runs.values() if Row(r.method, r.quality) == row]
    return min(runs, key=lambda r: (report.datasets.index(r.dataset["id"]), r.seed))
