"""Figures of a report: bars, performance profile, evaluation budget, and one run's training.

Colours are Okabe and Ito's, which people with any colour vision tell apart; lines differ in style as well.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from iwsft_control.base.files import atomic_path
from iwsft_control.benchmark.results import RunResult
from iwsft_control.report import statistics
from iwsft_control.report.runs import Report, Row, metric, strata, titles

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


def _line(x: int) -> str:
    """Line style of the x-th row: two rows of one colour differ in it."""
    return LINES[(x + x // len(COLOURS)) % len(LINES)]


def _shown(text: str) -> str:
    """Text of a result file as a figure's: a dollar sign would begin mathematics."""
    return " ".join(text.split()).replace("$", "\\$")


def bars(report: Report) -> Figure:
    """Mean score with its 95% interval and a point for every seed, a panel per data set."""
    rows = list(report.scores)
    figure, axes = plt.subplots(
        1, len(report.datasets), figsize=(3.4 * len(report.datasets), 3.6), squeeze=False, sharey=False
    )
    rng = np.random.default_rng(0)
    for i, (axis, title) in enumerate(zip(axes[0], titles(report), strict=True)):
        for x, row in enumerate(rows):
            scores = strata(report, row)[i]
            if not len(scores):
                continue
            estimate = statistics.mean_interval(scores)
            axis.bar(x, estimate.value, 0.75, color=COLOURS[x % len(COLOURS)], alpha=0.45)
            if not np.isnan(estimate.low):
                ends = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
                axis.errorbar(x, estimate.value, ends, color="black", capsize=3, linewidth=1.2)
            jitter = x + rng.uniform(-0.22, 0.22, len(scores))
            axis.scatter(jitter, scores, 9, color=COLOURS[x % len(COLOURS)], edgecolor="white", linewidth=0.4, zorder=3)
        axis.set_xticks(range(len(rows)), [_shown(row.label) for row in rows], rotation=50, ha="right")
        axis.set_title(_shown(title))
    axes[0, 0].set_ylabel(_shown(metric(report)))
    return figure


def profiles(report: Report) -> Figure:
    """Share of runs above a score, mean over data sets, with a pointwise 95% bootstrap band."""
    figure, axis = plt.subplots(figsize=(6.4, 3.8))
    complete = [row for row in report.scores if all(len(x) for x in strata(report, row))]
    everything = np.concatenate([np.zeros(1), *(s for row in complete for s in strata(report, row))])
    thresholds = np.linspace(min(0.0, everything.min()), everything.max() * 1.02, 300)
    for x, row in enumerate(report.scores):
        if row not in complete:
            continue
        share, low, high = statistics.profile(strata(report, row), thresholds)
        axis.plot(thresholds, share, _line(x), color=COLOURS[x % len(COLOURS)], label=_shown(row.label), linewidth=1.6)
        axis.fill_between(thresholds, low, high, color=COLOURS[x % len(COLOURS)], alpha=0.08, linewidth=0)
    what = f"{_shown(metric(report))} $\\tau$"
    axis.set(xlabel=what, ylabel="share of runs with a score above $\\tau$", ylim=(0, 1.02))
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def budgets(report: Report) -> Figure:
    """Score of the policy chosen among a method's seeds by n evaluation episodes, a panel per data set."""
    spent = [0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300]
    figure, axes = plt.subplots(1, len(report.datasets), figsize=(3.2 * len(report.datasets) + 1.6, 3.4), squeeze=False)
    for axis, dataset, title in zip(axes[0], report.datasets, titles(report), strict=True):
        for x, row in enumerate(report.scores):
            runs = [r for r in report.runs.values() if r.dataset["id"] == dataset and Row(r.method, r.quality) == row]
            if not runs:
                continue
            episodes = np.stack([_normalised(r) for r in sorted(runs, key=lambda r: r.seed)])
            values = statistics.best_of(episodes, spent)
            axis.plot(spent, values, _line(x), color=COLOURS[x % len(COLOURS)], label=_shown(row.label), linewidth=1.4)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        axis.set(xlabel="evaluation episodes spent", title=_shown(title))
    axes[0, 0].set_ylabel("score of the chosen policy")
    axes[0, -1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
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
    panels = 1 + 3 * weighted + (critic is not None)
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
            x = methods.index(first["method"])
            colour = COLOURS[1 + x % (len(COLOURS) - 1)]
            axis.plot(steps, score, _line(x), color=colour, label=_shown(first["method"]), linewidth=1.4)
            axis.fill_between(steps, score - error, score + error, color=colour, alpha=0.15, linewidth=0)
        axis.set(xlabel="thousand updates", title=_shown(name))
    axes[0, 0].set_ylabel("normalised score")
    handles = {label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[0, -1].legend(handles.values(), handles.keys(), frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write a figure as SVG and PNG; returns the SVG.

    Raises:
        UserError: the folder cannot be written.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    with atomic_path(folder / f"{name}.svg") as path:
        path.write_text(out.getvalue(), encoding="utf-8")
    with atomic_path(folder / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=150)
    plt.close(figure)
    return out.getvalue()


def pick(report: Report, row: Row) -> RunResult:
    """The run whose training is shown: the lowest seed of ``row`` on the first data set that has one."""
    runs = [r for r in report.runs.values() if Row(r.method, r.quality) == row]
    return min(runs, key=lambda r: (report.datasets.index(r.dataset["id"]), r.seed))
