"""From result files to tables: who scores what, with what certainty, and who beats whom.

A row is a method with what it takes its quality from, a column a data set. Nothing is averaged over what does not
belong together: results of one data set that differ in its content, in physics or in how they were evaluated, and
runs of one method that differ in configuration, are an error.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwsft_control import statistics, tasks
from iwsft_control.dataset import describe_origin
from iwsft_control.files import UserError
from iwsft_control.results import RunResult, read
from iwsft_control.stages import NAMES, by_quality
from iwsft_control.statistics import Estimate

# D4RL normalised scores on medium-replay-v2, as published: BC to IQL are the columns of Kostrikov et al. 2022 (IQL) as
# Qin & Springenberg 2025 reprint them, SFT, SFT(Q) and iw-SFT(Q) are theirs (no spread given), ReBRAC is Tarasov et
# al. 2023. All of them on D4RL's own data, with mujoco-py.
PUBLISHED_TASKS = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")
PUBLISHED = {
    "BC": (18.1, 36.6, 26.0),
    "BC 10%": (75.9, 40.6, 62.5),
    "SFT": (79.0, 35.1, 58.8),
    "SFT(Q)": (84.9, 39.3, 66.2),
    "iw-SFT(Q)": (85.0, 40.9, 75.8),
    "DT": (82.7, 36.6, 66.6),
    "AWAC": (37.2, 40.5, 27.0),
    "OneStep": (97.5, 38.1, 49.5),
    "TD3+BC": (60.9, 44.6, 81.8),
    "CQL": (95.0, 45.5, 77.2),
    "IQL": (94.7, 44.2, 73.9),
    "ReBRAC": (98.1, 51.0, 77.3),
}
SCORES_FILE = "scores.json"  # the matrices for rliable
# The rows here that mean what a published column means (the paper's quality is the return).
PUBLISHED_AS = {
    ("bc", None): "BC",
    ("filtered-bc", None): "BC 10%",
    ("sft", None): "SFT",
    ("sft-q", "return"): "SFT(Q)",
    ("iw-sft-q", "return"): "iw-SFT(Q)",
    ("iql", None): "IQL",
    ("td3-bc", None): "TD3+BC",
    ("awac", None): "AWAC",
    ("cql", None): "CQL",
    ("rebrac-tuned", None): "ReBRAC",  # its published scores are tuned per task
}


class Row(NamedTuple):
    """A method and, where it curates by quality, what the quality comes from."""

    method: str
    quality: str | None

    @property
    def label(self) -> str:
        return self.method if self.quality is None else f"{self.method} ({self.quality})"


Scores = dict[Row, dict[str, dict[int, float]]]  # row -> data set id -> seed -> normalised score


class Report(NamedTuple):
    """What a table is made of."""

    runs: dict[Path, RunResult]
    scores: Scores
    datasets: list[str]
    baseline: Row
    focus: Row
    failed: list[str]
    """Runs that gave no result, for the notes: the means are over those that did."""


def find(folders: Sequence[Path], quick: bool = False) -> dict[Path, RunResult]:
    """Read all result files in folders, at any depth (records of failed runs aside).

    Raises:
        UserError: a folder does not exist or holds no result; a file is no result; a trial is among them (or, with
            ``quick``, a real run).
    """
    runs: dict[Path, RunResult] = {}
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder} does not exist; give a folder of result files.")
        paths = [folder] if folder.is_file() else sorted(folder.rglob("*.json"))
        ours = (SCORES_FILE,)  # what a table writes beside them is no result
        runs |= {path: read(path) for path in paths if path.parent.name != "failures" and path.name not in ours}
    if not runs:
        raise UserError(f"no result files in {', '.join(map(str, folders))}; make some with experiments/sweep.py.")
    for path, run in runs.items():
        if run.quick and not quick:
            raise UserError(
                f"{path} is a trial (--quick), not a score; remove it, or make a table of trials (--quick)."
            )
        if quick and not run.quick:
            raise UserError(f"{path} is not a trial; leave out --quick.")
    return runs


def find_failures(folders: Sequence[Path]) -> list[str]:
    """What the records of failed runs in folders say, a line each."""
    lines = []
    for path in sorted(p for folder in folders for p in folder.rglob("failures/*.json")):
        record = json.loads(path.read_text())
        row = Row(record["method"], record["quality"])
        seeds = ", ".join(map(str, record["seeds"]))
        lines.append(f"{record['task']} {row.label} seed {seeds}: {record['error']}")
    return lines


def collect(runs: Mapping[Path, RunResult], baseline: Row, focus: Row, failed: Sequence[str] = ()) -> Report:
    """Group runs into rows and data sets.

    Raises:
        UserError: two files clash (the sentence names them), or there is no run of the baseline.
    """
    first: dict[tuple[str, str], tuple[Any, Path]] = {}
    scores: Scores = {}
    seen: dict[tuple[Row, str, int], Path] = {}
    for path, run in runs.items():
        dataset, row = run.dataset["id"], Row(run.method, run.quality)
        for what, group, value in (
            ("data sets (sha256)", dataset, run.dataset["sha256"]),
            ("physics", dataset, run.physics),
            ("reference scores", dataset, [run.evaluation[f"ref_{end}_score"] for end in ("min", "max")]),
            ("versions of MuJoCo", "", run.physics["mujoco"]),  # means over data sets are of one
            ("evaluation protocols", "", _protocol(run)),
            ("configurations", f"{dataset} {row.label}", run.config),
        ):
            known, other = first.setdefault((what, group), (value, path))
            if known != value:
                raise UserError(f"{other} and {path} have different {what}; make a table of each.")
        twin = seen.setdefault((row, dataset, run.seed), path)
        if twin != path:
            raise UserError(f"{twin} and {path} are the same run; remove one.")
        scores.setdefault(row, {}).setdefault(dataset, {})[run.seed] = run.normalised_score
    for row, option in ((baseline, "--baseline"), (focus, "--focus")):
        if row not in scores:
            known_rows = ", ".join(sorted(r.label.replace(" (", " by ").rstrip(")") for r in scores))
            raise UserError(f"there is no run of {option} {row.label}; choose one of {known_rows}.")
    order = {row: i for i, row in enumerate(_all_rows())}
    scores = {row: scores[row] for row in sorted(scores, key=lambda r: order.get(r, len(order)))}
    tasks_of = {run.dataset["id"]: run.task for run in runs.values()}
    place = {task: i for i, task in enumerate(PUBLISHED_TASKS)}
    datasets = sorted(tasks_of, key=lambda d: (place.get(tasks_of[d], len(place)), d))
    return Report(dict(runs), scores, datasets, baseline, focus, list(failed))


def _protocol(run: RunResult) -> dict[str, Any]:
    # What of the policy was evaluated belongs to the method: TD3+BC's paper has no average of parameters.
    protocol = {k: v for k, v in run.evaluation.items() if k not in ("ref_min_score", "ref_max_score", "policy")}
    return protocol | {"episodes": len(run.episode_returns)}


def parse_row(text: str) -> Row:
    """``bc``, ``sft-q`` (by q) or ``sft-q by return`` as a :class:`Row`.

    Raises:
        UserError: no such method.
    """
    method, _, source = text.partition(" by ")
    if method not in NAMES:
        raise UserError(f"unknown method {method!r}: {tasks.near(method, list(NAMES))}")
    has_quality = by_quality(method)
    if source not in (("", "q", "return") if has_quality else ("",)):
        raise UserError(
            f"{method} does not take {source!r}; say {method}" + (" by q or by return." if has_quality else ".")
        )
    return Row(method, (source or "q") if has_quality else None)


def _all_rows() -> list[Row]:
    return [Row(method, source) for method in NAMES for source in (("return", "q") if by_quality(method) else (None,))]


def strata(report: Report, row: Row) -> list[np.ndarray]:
    """Scores of a row on every data set, seeds in order; empty where a data set is missing."""
    return [np.array([s for _, s in sorted(report.scores[row].get(d, {}).items())]) for d in report.datasets]


def differences(report: Report, row: Row, other: Row) -> dict[str, np.ndarray]:
    """Score of ``row`` minus that of ``other`` by seed, (n,) for every data set where they share seeds."""
    found = {}
    for dataset in report.datasets:
        mine, theirs = (report.scores[r].get(dataset, {}) for r in (row, other))
        shared = sorted(set(mine) & set(theirs))
        if shared:
            found[dataset] = np.array([mine[s] - theirs[s] for s in shared])
    return found


def overall(report: Report, row: Row) -> tuple[Estimate, Estimate] | None:
    """Mean over data sets and interquartile mean of a row, or None where it lacks one of the data sets."""
    each = strata(report, row)
    if not all(len(x) for x in each):
        return None
    return statistics.stratified_mean(each), statistics.iqm_interval(each)


# --- the tables ------------------------------------------------------------------------------------------------------


def verdict(difference: Estimate) -> str:
    """Whether an interval of differences excludes zero."""
    if np.isnan(difference.low):
        return "one seed: no telling"
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no difference shown"


def _cell(estimate: Estimate | None, signed: bool = False) -> str:
    if estimate is None:
        return "-"
    sign = "+" if signed else ""
    interval = "" if np.isnan(estimate.low) else f" [{estimate.low:{sign}.1f}, {estimate.high:{sign}.1f}]"
    return f"{estimate.value:{sign}.1f}{interval}"


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
    found = [
        _scores(report),
        _differences(
            report, f"Every method minus {baseline.label}", "the method", {row.label: (row, baseline) for row in others}
        ),
        _differences(
            report, f"{focus.label} minus every other method", focus.label, {row.label: (focus, row) for row in rivals}
        ),
    ]
    published = _published(report)
    return [*found, published] if published else found


def _scores(report: Report) -> Section:
    several = len(report.datasets) > 1
    tasks_of = _tasks_of(report)
    rows = []
    for row in report.scores:
        each = strata(report, row)
        counts = sorted({len(x) for x in each if len(x)})
        seeds = "-".join(map(str, (counts[0], counts[-1])[: len(counts)]))
        cells = [_cell(statistics.mean_interval(x) if len(x) else None) for x in each]
        total = overall(report, row) if several else None
        extra = [_cell(total[0]), _cell(total[1])] if total else ["-", "-"]
        steps = " or ".join(sorted({updates(r) for r in report.runs.values() if Row(r.method, r.quality) == row}))
        published_as = _published_as(row, report.datasets, tasks_of)
        rows.append([row.label, seeds, steps, *cells, *(extra * several), published_as])
    averages = ["mean", "IQM"] * several
    origins = {run.dataset["origin"] for run in report.runs.values()}
    published = _published_title(origins)
    episodes = len(next(iter(report.runs.values())).episode_returns)
    text = (
        "Mean over seeds [95% interval: Student's t, Welch's over data sets, for the interquartile mean (IQM) t times "
        f"a stratified bootstrap's error]. The run (seed) is the unit; every run is the mean of {episodes} episodes of "
        "its last checkpoint. Updates are the gradient steps of a run, + those of the critic that scores its data. The "
        "last column: single numbers as published for the same tasks in the same order (the paper's quality is the "
        "return), on D4RL's own data in mujoco-py's physics."
    )
    header = ["method", "seeds", "updates", *titles(report), *averages, published]
    return Section("Normalised score", text, header, rows)


def updates(run: RunResult) -> str:
    """Gradient steps behind a run: its own and BC's, + the critic's where that scores the data."""
    config = run.config
    if "steps" in config:  # a baseline
        return f"{config['steps']:,}"
    policy = config["policy"]
    own = f"{policy['bc_steps'] + policy.get('fine_tune_steps', 0):,}"
    return own + (f" + {config['critic']['steps']:,}" if "critic" in config else "")


def _differences(report: Report, title: str, subject: str, pairs: Mapping[str, tuple[Row, Row]]) -> Section:
    text = (
        "Paired by seed [95% interval]; P is the probability that a run of the first scores higher than a run of the "
        "second, and the last column what the interval of the mean over data sets says. The intervals are not "
        "corrected for the number of comparisons."
    )
    means = ["mean"] * (len(report.datasets) > 1)
    header = ["method", *titles(report), *means, "P", f"verdict on {subject}"]
    return Section(title, text, header, [_difference_row(report, a, b, label) for label, (a, b) in pairs.items()])


def _tasks_of(report: Report) -> dict[str, str]:
    """The task of every data set that published scores may stand beside: D4RL's and their reconstructions."""
    known = ("D4RL", "reconstruction")
    return {r.dataset["id"]: r.task if r.dataset["origin"] in known else "" for r in report.runs.values()}


def _published_as(row: Row, datasets: Sequence[str], tasks_of: Mapping[str, str]) -> str:
    values = PUBLISHED.get(PUBLISHED_AS.get((row.method, row.quality), ""))
    if values is None:
        return "-"
    places = [PUBLISHED_TASKS.index(tasks_of[d]) if tasks_of[d] in PUBLISHED_TASKS else None for d in datasets]
    return " / ".join("-" if i is None else f"{values[i]:.1f}" for i in places)


def _difference_row(report: Report, row: Row, other: Row, label: str) -> list[str]:
    several = len(report.datasets) > 1
    by_dataset = differences(report, row, other)
    cells = [_cell(statistics.mean_interval(by_dataset[d]), True) if d in by_dataset else "-" for d in report.datasets]
    if not by_dataset:
        return [label, *cells, *(["-"] * several), "-", "no shared seeds"]
    mean = statistics.stratified_mean(list(by_dataset.values())) if len(by_dataset) == len(report.datasets) else None
    scores = [
        (strata(report, row)[i], strata(report, other)[i]) for i, d in enumerate(report.datasets) if d in by_dataset
    ]
    chance = f"{statistics.probability_of_improvement(scores):.2f}" if mean else "-"
    return [label, *cells, *([_cell(mean, True)] * several), chance, verdict(mean) if mean else "-"]


def _published(report: Report) -> Section | None:
    tasks_of = _tasks_of(report)
    columns = [(d, PUBLISHED_TASKS.index(tasks_of[d])) for d in report.datasets if tasks_of[d] in PUBLISHED_TASKS]
    if not columns:
        return None
    ours_are = {run.dataset["origin"] for run in report.runs.values()}
    text = "Single numbers as published, on D4RL's own data in mujoco-py's physics."
    if "reconstruction" in ours_are:
        text += " The scores above are on reconstructions: other data, so the two are not comparable number by number."
    rows = [[name, *(f"{values[i]:.1f}" for _, i in columns)] for name, values in PUBLISHED.items()]
    title = _published_title(ours_are).capitalize()
    return Section(title, text, ["method", *(short(d) for d, _ in columns)], rows)


def _published_title(origins: set[str]) -> str:
    return "published" if origins == {"D4RL"} else "published, on other data"


def titles(report: Report) -> list[str]:
    """Column titles of the data sets: with where they come from, where two would be the same."""
    plain = [short(d) for d in report.datasets]
    return [f"{d.split('/')[0]} {t}" if plain.count(t) > 1 else t for d, t in zip(report.datasets, plain, strict=True)]


def short(dataset: str) -> str:
    """A data set's column title: "hopper medium-replay" for iwsft/hopper/medium-replay-v0."""
    return " ".join(re.sub(r"-v\d+$", "", dataset).split("/")[-2:])


def notes(report: Report) -> list[str]:
    """What a reader has to know of the runs: data, physics, versions, devices, commits."""
    runs = list(report.runs.values())
    lines = []
    for dataset in report.datasets:
        of = next(r for r in runs if r.dataset["id"] == dataset)
        corrected = "corrected to D4RL's" if of.physics["corrections"] else "as installed"
        lines.append(
            f"{dataset}: {describe_origin(of.dataset['origin'])}, "
            f"{of.dataset['transitions']:,} transitions, sha256 {of.dataset['sha256'][:16]}; evaluated in "
            f"{of.physics['environment']}, MuJoCo {of.physics['mujoco']}, {corrected}."
        )
    for name, values in (
        ("Trained on", sorted({r.device for r in runs})),
        ("Commit", sorted({str(r.git_commit) for r in runs})),
        ("JAX", sorted({r.versions["jax"] for r in runs})),
    ):
        lines.append(f"{name}: {', '.join(values)}.")
    lines += [f"Failed, and not in any mean: {line}." for line in report.failed]
    if any(r.quick for r in runs):
        lines.insert(0, "TRIAL RUNS (--quick): these are not scores.")
    return lines


# --- formats ---------------------------------------------------------------------------------------------------------


def to_markdown(report: Report) -> str:
    """The tables in Markdown."""
    parts = ["# Results", "", *(f"- {line}" for line in notes(report)), ""]
    for section in sections(report):
        parts += [f"## {section.title}", "", section.text, ""]
        parts += ["| " + " | ".join(section.header) + " |", "|" + "---|" * len(section.header)]
        parts += ["| " + " | ".join(row) + " |" for row in section.rows] + [""]
    return "\n".join(parts)


def to_latex(report: Report) -> str:
    """The tables in LaTeX (booktabs)."""
    parts = ["% Needs \\usepackage{booktabs}.", *(f"% {line}" for line in notes(report))]
    trial = "TRIAL RUNS, not scores. " if any(r.quick for r in report.runs.values()) else ""
    for section in sections(report):
        columns = "l" + "r" * (len(section.header) - 1)
        parts += ["\\begin{table}", f"\\caption{{{_tex(f'{trial}{section.title}. {section.text}')}}}"]
        parts += [f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
        parts += [" & ".join(map(_tex, section.header)) + " \\\\", "\\midrule"]
        parts += [" & ".join(map(_tex, row)) + " \\\\" for row in section.rows]
        parts += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(parts)


def _tex(text: str) -> str:
    text = text.replace("\\", "\\textbackslash ")
    return re.sub(r"([%&_#${}])", r"\\\1", text).replace("~", "\\textasciitilde ").replace("^", "\\textasciicircum ")


CSV_COLUMNS = (
    "dataset", "method", "quality", "n_seeds", "mean", "low", "high",
    "difference", "difference_low", "difference_high", "n_pairs", "probability_of_improvement",
)  # fmt: skip


def to_csv(report: Report) -> str:
    """One line per data set and method; the differences are those to the baseline, empty for itself."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)

    def number(x: float) -> str:
        return "" if np.isnan(x) else f"{x:.4f}"

    for i, dataset in enumerate(report.datasets):
        for row in report.scores:
            scores = strata(report, row)[i]
            if not len(scores):
                continue
            line = [
                dataset,
                row.method,
                row.quality or "",
                str(len(scores)),
                *map(number, statistics.mean_interval(scores)),
            ]
            pairs = differences(report, row, report.baseline).get(dataset)
            if row == report.baseline or pairs is None:
                line += [""] * 5
            else:
                chance = statistics.probability_of_improvement([(scores, strata(report, report.baseline)[i])])
                line += [*map(number, statistics.mean_interval(pairs)), str(len(pairs)), number(chance)]
            writer.writerow(line)
    return out.getvalue()


def to_rliable(report: Report) -> dict[str, Any]:
    """Score matrices as rliable takes them: for every method (runs, tasks), over the seeds that all data sets have."""
    matrices = {}
    for row, by_dataset in report.scores.items():
        shared = set.intersection(*(set(by_dataset.get(d, {})) for d in report.datasets))
        if shared:
            matrices[row.label] = [[by_dataset[d][s] for d in report.datasets] for s in sorted(shared)]
    return {"tasks": report.datasets, "scores": matrices}


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 88rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.8rem; }
th, td { padding: 0.3rem 0.5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, .words { text-align: left; }
thead th { border-bottom: 2px solid #444; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption, li, p { max-width: 50rem; } figcaption { color: #555; font-size: 0.9rem; }
"""


def to_html(report: Report, figures: Mapping[str, tuple[str, str]]) -> str:
    """One self-contained page. ``figures`` maps a title to its SVG and its caption."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>iwsft_control: results</title>',
        f"<style>{STYLE}</style></head><body><h1>Results</h1><ul>",
        *(f"<li>{html.escape(line)}</li>" for line in notes(report)),
        "</ul>",
    ]
    for section in sections(report):
        parts.append(f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>")
        # Columns of words, not of numbers.
        kinds = [' class="words"' if name.startswith(("verdict", "published")) else "" for name in section.header]
        head = "".join(f"<th{k}>{html.escape(cell)}</th>" for k, cell in zip(kinds, section.header, strict=True))
        parts.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>')
        for row in section.rows:
            cells = "".join(f"<td{k}>{html.escape(cell)}</td>" for k, cell in zip(kinds, row, strict=True))
            parts.append(f"<tr>{cells}</tr>")
        parts.append("</tbody></table></div>")
    for title, (svg, caption) in figures.items():
        svg = svg[svg.index("<svg") :]  # without the XML header, which has no place inside a page
        parts.append(
            f"<h2>{html.escape(title)}</h2><figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return "\n".join([*parts, "</body></html>", ""])


def to_json(value: Any) -> str:
    """Compact JSON, one line per entry of ``scores``."""
    rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value["scores"].items())
    return f'{{\n "tasks": {json.dumps(value["tasks"])},\n "scores": {{\n{rows}\n }}\n}}\n'
