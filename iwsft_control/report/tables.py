"""From result files to tables: who scores what, with what certainty, and who beats whom.

A row is a method with what it takes its quality from, a column a data set. Nothing is averaged over what does not
belong together: results of one data set that differ in its content, in physics or in how they were evaluated, and
runs of one method on one data set that differ in configuration, are an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from iwsft_control.benchmark.results import NO_PHYSICS, RunResult
from iwsft_control.envs.specs import NO_MUJOCO
from iwsft_control.report import statistics
from iwsft_control.report.published import PUBLISHED_TASKS, published, published_as
from iwsft_control.report.runs import (
    NORMALISED,
    Report,
    Row,
    _tasks_of,
    differences,
    metric,
    overall,
    short,
    strata,
    titles,
)
from iwsft_control.report.statistics import Estimate

TOO_FEW = "too few seeds"


def verdict(difference: Estimate) -> str:
    """Whether an interval of differences excludes zero."""
    if np.isnan(difference.low):
        return TOO_FEW
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no difference shown"


def cell(estimate: Estimate | None, signed: bool = False, digits: int = 1) -> str:
    """An estimate with its interval, as tables show it, with ``digits`` after the point."""
    if estimate is None:
        return "-"
    form = f"{'+' if signed else ''}.{digits}f"
    if np.isnan(estimate.low):
        interval = ""
    elif estimate.low == estimate.high:  # no spread to go by: [0.0, 0.0] would say that no run can be another
        interval = " [all equal]"
    else:
        interval = f" [{estimate.low:{form}}, {estimate.high:{form}}]"
    return f"{estimate.value:{form}}{interval}"


def interval(scores: Mapping[int, float]) -> str:
    """The mean over seeds of scores by seed, with its interval; "-" where there are none."""
    return cell(statistics.mean_interval(np.array([*scores.values()])) if scores else None)


def difference(mine: Mapping[int, float], other: Mapping[int, float], comparisons: int = 1) -> str:
    """The mean of scores minus others, paired by seed, with its interval; "-" where they share no seed.

    ``comparisons`` as in :func:`~iwsft_control.report.statistics.stratified_mean`.
    """
    apart = statistics.paired(mine, other)
    return cell(statistics.mean_interval(apart, comparisons) if len(apart) else None, signed=True)


class Section(NamedTuple):
    """One table of the report: what it says, its header and its rows of cells."""

    title: str
    text: str
    header: list[str]
    rows: list[list[str]]


def sections(report: Report) -> list[Section]:
    """The tables of a report, as text."""
    baseline, focus = report.baseline, report.focus
    others = [row for row in report.scores if row != baseline]
    rivals = [row for row in report.scores if row != focus]
    compared = (
        (f"Every method minus {baseline.label}", "the method", {row.label: (row, baseline) for row in others}),
        (f"{focus.label} minus every other method", focus.label, {row.label: (focus, row) for row in rivals}),
    )
    found = [_scores(report), *(_differences(report, *each) for each in compared if each[-1])]
    if any(len(x) > 1 for row in rivals for x in differences(report, focus, row).values()):
        found.append(_power(report, rivals))
    published = _published(report)
    return [*found, published] if published else found


def messages(report: Report) -> list[str]:
    """What a reader should take away: who scores highest, whom the focus beats and by how much, what is not shown."""
    trial = "Trial runs, not scores: " if any(run.quick for run in report.runs.values()) else ""
    totals = {row: overall(report, row) for row in report.scores}
    known = {row: total[0] for row, total in totals.items() if total is not None}
    if not known:
        return [f"{trial}no method has runs on every data set", caveat(report)]
    best = max(known, key=lambda row: known[row].value)
    several = f"over {len(report.datasets)} data sets" if len(report.datasets) > 1 else f"on {titles(report)[0]}"
    lines = [f"{trial}{best.label} scores highest {several}: {cell(known[best])}"]
    rivals = [row for row in report.scores if row != report.focus]
    found: dict[str, list[str]] = {}
    for row in rivals:
        pairs = differences(report, report.focus, row)
        if len(pairs) == len(report.datasets):
            difference = statistics.stratified_mean(list(pairs.values()), len(rivals))
            found.setdefault(verdict(difference), []).append(f"{row.label} ({cell(difference, True)})")
    subject = f"By the interval of paired differences, {report.focus.label}"
    for outcome, words in (
        ("better", "is shown to beat"),
        ("worse", "is shown to be worse than"),
        ("no difference shown", "is not shown to differ from"),
    ):
        if outcome in found:
            lines.append(f"{subject} {words} {', '.join(found[outcome])}.")
    if few := found.get(TOO_FEW):
        lines.append(f"Too few seeds on some data set to compare {report.focus.label} with {', '.join(few)}.")
    return [*lines, *without_mean(report), caveat(report)]


def without_mean(report: Report) -> list[str]:
    """A sentence on the methods that lack runs on some data set, if there are any."""
    partial = {
        row.label: [title for title, runs in zip(titles(report), strata(report, row), strict=True) if len(runs)]
        for row in report.scores
        if overall(report, row) is None
    }
    if not partial:
        return []
    told = "; ".join(f"{label} (only {', '.join(there)})" for label, there in partial.items())
    return [f"Without runs on every data set, and so without a mean over them: {told}."]


def caveat(report: Report) -> str:
    """What the scores are of, in one line."""
    origins = {run.dataset["origin"] for run in report.runs.values()}
    versions = {run.physics["mujoco"] for run in report.runs.values()}
    data = {
        "D4RL": "D4RL's own data",
        "reconstruction": "reconstructions of D4RL's data, not D4RL's own: these scores have no place in a column of "
        "D4RL scores",
        "Minari": "Minari data sets",
        "generated": "data that this suite generates",
        "arrays": "arrays that were given in Python",
    }
    used = versions - {NO_PHYSICS, NO_MUJOCO}  # one at most
    physics = f"MuJoCo {used.pop()}" if used else "no physics" if NO_PHYSICS in versions else "without MuJoCo"
    return f"{metric(report).capitalize()} on {' and '.join(data.get(o, o) for o in sorted(origins))}; {physics}."


def _scores(report: Report) -> Section:
    several = len(report.datasets) > 1
    tasks_of = _tasks_of(report)
    beside = metric(report) == NORMALISED and not set(PUBLISHED_TASKS).isdisjoint(tasks_of.values())
    rows = []
    for row in report.scores:
        each = strata(report, row)
        counts = sorted({len(x) for x in each if len(x)})
        seeds = "-".join(map(str, (counts[0], counts[-1])[: len(counts)]))
        cells = [cell(statistics.mean_interval(x) if len(x) else None) for x in each]
        total = overall(report, row) if several else None
        extra = [cell(total[0]), cell(total[1])] if total else ["-", "-"]
        steps = " or ".join(sorted({updates(r) for r in report.runs.values() if Row(r.method, r.quality) == row}))
        published_as = [_published_as(row, report.datasets, tasks_of)] * beside
        rows.append([row.label, seeds, steps, *cells, *(extra * several), *published_as])
    averages = ["mean", "IQM"] * several
    origins = {run.dataset["origin"] for run in report.runs.values()}
    published = _published_title(origins)
    episodes = len(next(iter(report.runs.values())).episode_returns)
    text = (
        "Mean over seeds [95% interval: Student's t, Welch's over data sets, for the interquartile mean (IQM) t times "
        f"a stratified bootstrap's error]. The run (seed) is the unit; every run is the mean of {episodes} episodes of "
        "its last checkpoint. Updates are the gradient steps of a run, + those of the critic that scores its data."
    )
    if beside:
        text += (
            " The last column: single numbers as published for the same tasks in the same order (the paper's quality "
            "is the return), on D4RL's own data in mujoco-py's physics."
        )
    header = ["method", "seeds", "updates", *titles(report), *averages, *[published] * beside]
    return Section(metric(report).capitalize(), text, header, rows)


def updates(run: RunResult) -> str:
    """Gradient steps behind a run: its own and BC's, + the critic's where that scores the data."""
    config = run.config
    try:
        policy = config.get("policy", {})
        own = f"{config.get('steps', 0) + policy.get('bc_steps', 0) + policy.get('fine_tune_steps', 0):,}"
        critics = [v["steps"] for v in config.values() if isinstance(v, dict) and "steps" in v]
        return own + "".join(f" + {steps:,}" for steps in critics)
    except (AttributeError, TypeError, ValueError):  # a configuration that tells of no steps
        return "-"


def _differences(report: Report, title: str, subject: str, pairs: Mapping[str, tuple[Row, Row]]) -> Section:
    text = (
        f"Paired by seed [95% interval, corrected for the {len(pairs)} comparisons of a column: all of them hold at "
        "once in 95% of repetitions (Bonferroni)]; P is the probability that a run of the first scores higher than a "
        "run of the second, and the last column what the interval of the mean over data sets says."
    )
    means = ["mean"] * (len(report.datasets) > 1)
    header = ["method", *titles(report), *means, "P", f"verdict on {subject}"]
    return Section(
        title, text, header, [_difference_row(report, a, b, label, len(pairs)) for label, (a, b) in pairs.items()]
    )


def _published_as(row: Row, datasets: Sequence[str], tasks_of: Mapping[str, str]) -> str:
    column = published_as(row.method, row.quality)
    if column is None:
        return "-"
    places = [PUBLISHED_TASKS.index(tasks_of[d]) if tasks_of[d] in PUBLISHED_TASKS else None for d in datasets]
    return " / ".join("-" if i is None else f"{column.scores[i]:.1f}" for i in places)


def _difference_row(report: Report, row: Row, other: Row, label: str, comparisons: int) -> list[str]:
    several = len(report.datasets) > 1
    by_dataset = differences(report, row, other)
    cells = [
        cell(statistics.mean_interval(by_dataset[d], comparisons), True) if d in by_dataset else "-"
        for d in report.datasets
    ]
    if not by_dataset:
        return [label, *cells, *(["-"] * several), "-", "no shared seeds"]
    whole = len(by_dataset) == len(report.datasets)
    mean = statistics.stratified_mean(list(by_dataset.values()), comparisons) if whole else None
    scores = [
        (strata(report, row)[i], strata(report, other)[i]) for i, d in enumerate(report.datasets) if d in by_dataset
    ]
    chance = f"{statistics.probability_of_improvement(scores):.2f}" if mean else "-"
    return [label, *cells, *([cell(mean, True)] * several), chance, verdict(mean) if mean else "-"]


POINTS = 5.0  # of normalised score: a difference that matters
MOST = 1000  # seeds that are asked about


def _power(report: Report, rivals: Sequence[Row]) -> Section:
    several, points = len(report.datasets) > 1, metric(report) == NORMALISED
    chance = f"{statistics.POWER:.0%}"
    text = (
        f"The smallest true difference from {report.focus.label} that as many seeds as there are would show with a "
        f"probability of {chance}, by the spread of the paired differences and with the correction of the intervals "
        "above."
    )
    if points:
        text += (
            f" Last column: how many seeds of each method are needed to show a difference of {POINTS:.0f} points, in "
            "the mean where there are several data sets."
        )
    rows = []
    for row in rivals:
        by_dataset = {d: x for d, x in differences(report, report.focus, row).items() if len(x) > 1}
        each = [[by_dataset[d]] if d in by_dataset else None for d in report.datasets]
        mean = [*by_dataset.values()] if len(by_dataset) == len(report.datasets) else None
        cells = [
            f"{statistics.detectable(x, min(map(len, x)), len(rivals)):.1f}" if x else "-"
            for x in (*each, *[mean] * several)
        ]
        needed = "-"
        if mean and points:
            needed = str(statistics.seeds_needed(mean, POINTS, len(rivals), MOST) or f"> {MOST}")
        rows.append([row.label, *cells, *[needed] * points])
    header = ["method", *titles(report), *["mean"] * several, *[f"seeds for {POINTS:.0f} points"] * points]
    return Section("What these seeds can show", text, header, rows)


def _published(report: Report) -> Section | None:
    """Published scores, beside ours of the same method and the distance: what data and settings make of it."""
    tasks_of = _tasks_of(report)
    columns = [
        (i, PUBLISHED_TASKS.index(tasks_of[d])) for i, d in enumerate(report.datasets) if tasks_of[d] in PUBLISHED_TASKS
    ]
    if not columns:
        return None
    ours_are = {run.dataset["origin"] for run in report.runs.values()}
    text = "Published: single numbers, on D4RL's own data in mujoco-py's physics. In brackets: mean here, difference."
    if "reconstruction" in ours_are:
        text += " The scores here are on reconstructions: other data, so the two are not comparable number by number."
    columns_of = {row: published_as(row.method, row.quality) for row in report.scores}
    ours = {column.label: strata(report, row) for row, column in columns_of.items() if column is not None}

    def beside(label: str, value: float, i: int) -> str:
        scores = ours[label][i] if label in ours else ()
        return f"{value:.1f}" + (f" ({np.mean(scores):.1f}, {np.mean(scores) - value:+.1f})" if len(scores) else "")

    rows = [[label, *(beside(label, values[k], i) for i, k in columns)] for label, values in published().items()]
    title = _published_title(ours_are).capitalize()
    return Section(title, text, ["method", *(short(report.datasets[i]) for i, _ in columns)], rows)


def _published_title(origins: set[str]) -> str:
    return "published" if origins == {"D4RL"} else "published, on other data"
