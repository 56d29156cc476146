"""Result files, grouped into rows (methods) and columns (data sets)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from iwsft_control.base import files
from iwsft_control.base.errors import UserError, apart, near, require, told_apart
from iwsft_control.benchmark.results import NO_PHYSICS, REFERENCES, RunResult, read
from iwsft_control.datasets.types import describe_origin
from iwsft_control.envs.specs import NO_MUJOCO
from iwsft_control.methods import registry
from iwsft_control.report import statistics
from iwsft_control.report.published import PUBLISHED_TASKS
from iwsft_control.report.statistics import Estimate

SCORES_FILE = "scores.json"  # the matrices for rliable
NORMALISED = "normalised score"  # what scores are, unless a run says otherwise

T = TypeVar("T")


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
        found = {path: read(path) for path in ([folder] if folder.is_file() else result_files(folder))}
        if not found:  # of several folders too: a table without one of them is not what was asked for
            raise UserError(f"no result files in {folder}; make some with python -m iwsft_control.sweep.")
        known = {path.resolve() for path in runs}  # a folder may be named twice, in two ways
        runs |= {path: run for path, run in found.items() if path.resolve() not in known}
    for path, run in runs.items():
        if "simulator_steps" in run.evaluation:
            raise UserError(
                f"{path} was trained in the simulator ({run.method}): it has no place in an offline table; "
                "python experiments/online.py makes the table of such runs."
            )
        if run.quick and not quick:
            raise UserError(
                f"{path} is a trial (--quick), not a score; remove it, or ask for trials (--quick; quick=True)."
            )
        if quick and not run.quick:
            raise UserError(
                f"{path} is not a trial, and trials stand in no table with scores; do not ask for them (--quick; "
                "quick=True)."
            )
    return runs


def by_seed(folder: Path, quick: bool = False) -> dict[str, dict[int, RunResult]]:
    """The runs in the folder of one variant of a method, or with ``quick`` its trials, by task and seed.

    Raises:
        UserError: a file is no result, two are of one task and seed, or they are not alike but for that.
    """
    found: dict[str, dict[int, RunResult]] = {}
    for path in result_files(folder):
        run = read(path)
        if run.quick == quick:
            first = found.setdefault(run.task, {}).setdefault(run.seed, run)
            require(first is run, f"{path.parent} holds two runs of seed {run.seed}; remove one.")
            one = next(iter(found[run.task].values()))
            other = apart(one.config, run.config, shared=True)  # older records lack the settings that came later
            require(
                other is None,
                f"{path.parent} holds runs of other settings (seeds {one.seed} and {run.seed}), first in {other}; "
                "part them.",
            )
    require_alike([found])
    return found


def require_alike(variants: Iterable[Mapping[str, Mapping[int, RunResult]]]) -> None:
    """See that runs of variants, by task and seed, may be compared: the same data, physics and evaluation of a task.

    Raises:
        UserError: they may not.
    """

    def alike(run: RunResult) -> list[tuple[str, str, Any]]:
        data = [run.dataset["id"], run.dataset["sha256"]]
        return [("data sets", run.task, data), *circumstances(run, run.task)]

    every = (run for of_task in variants for of_seed in of_task.values() for run in of_seed.values())
    if differ := unlike(((run, run) for run in every), alike):
        two = " and ".join(f"{run.method} with seed {run.seed}" for run in differ[:2])
        raise UserError(f"{two} ({differ[1].task}) have {differ[2]}; make a table of each.")


def bc_start(run: RunResult) -> float:
    """Normalised score of the BC policy that a run was fine-tuned from."""
    return float(run.diagnostics["bc_start"]["normalised_score"])


def result_files(folder: Path) -> list[Path]:
    """The files in a folder, at any depth, that hold results, records of failed runs aside."""
    ours = (SCORES_FILE,)  # what a table writes beside them is no result
    return sorted(p for p in folder.rglob("*.json") if p.parent.name != "failures" and p.name not in ours)


def find_failures(folders: Sequence[Path], runs: Iterable[RunResult] = ()) -> list[str]:
    """What the records of failed runs in folders say, a line each, but for those that are among ``runs`` after all:
    seeds that failed as a group are tried alone."""
    lines, there = [], {(run.task, run.method, run.quality, run.seed) for run in runs}
    for path in sorted(p for folder in folders for p in folder.rglob("failures/*.json")):
        try:
            record = files.parse_json(path.read_text(encoding="utf-8"))
            row = Row(str(record["method"]), record["quality"] and str(record["quality"]))
            variant = f" ({record['variant']})" if "variant" in record else ""  # of finetune: reward and budget
            seeds = [s for s in record["seeds"] if (record["task"], row.method, row.quality, s) not in there]
            if seeds:
                lines.append(
                    f"{record['task']} {row.label}{variant} seed {', '.join(map(str, seeds))}: {record['error']}"
                )
        except (OSError, ValueError, LookupError, TypeError):  # of a run that failed anyway: no reason to stop
            lines.append(f"{path.name}, whose record is damaged")
    return lines


def told(failed: Sequence[str]) -> list[str]:
    """What a table says of runs that failed, a line each of :func:`find_failures`."""
    return [f"Failed, and not in any mean: {line}." for line in failed]


def collect(runs: Mapping[Path, RunResult], baseline: Row, focus: Row, failed: Sequence[str] = ()) -> Report:
    """Group runs into rows and data sets.

    Raises:
        UserError: two files clash (the sentence names them), or there is no run of the baseline.
    """

    def alike(run: RunResult) -> list[tuple[str, str, Any]]:
        dataset, row = run.dataset["id"], Row(run.method, run.quality)
        return [
            ("data sets (sha256)", dataset, run.dataset["sha256"]),
            *circumstances(run, dataset),
            ("configurations", f"{dataset} {row.label}", run.config),
        ]

    if differ := unlike(runs.items(), alike):
        raise UserError(f"{differ[0]} and {differ[1]} have {differ[2]}; make a table of each.")
    scores: Scores = {}
    seen: dict[tuple[Row, str, int], Path] = {}
    for path, run in runs.items():
        dataset, row = run.dataset["id"], Row(run.method, run.quality)
        twin = seen.setdefault((row, dataset, run.seed), path)
        if twin != path:
            raise UserError(f"{twin} and {path} are the same run; remove one.")
        scores.setdefault(row, {}).setdefault(dataset, {})[run.seed] = run.normalised_score
    for row, option in ((baseline, "--baseline"), (focus, "--focus")):
        if row not in scores:
            known_rows = ", ".join(sorted(r.label.replace(" (", " by ").rstrip(")") for r in scores))
            raise UserError(f"there is no run of {option} {row.label}; choose one of {known_rows}.")
    rows, names = _all_rows(), list(registry.names())
    order = {row: (names.index(row.method), i) for i, row in enumerate(rows)}

    def place_of(row: Row) -> tuple[int, int]:  # a quality of another task comes after the method's own
        return order.get(row, (names.index(row.method) if row.method in names else len(names), len(rows)))

    scores = {row: scores[row] for row in sorted(scores, key=place_of)}
    tasks_of = {run.dataset["id"]: run.task for run in runs.values()}
    place = {task: i for i, task in enumerate(PUBLISHED_TASKS)}
    datasets = sorted(tasks_of, key=lambda d: (place.get(tasks_of[d], len(place)), d))
    return Report(dict(runs), scores, datasets, baseline, focus, list(failed))


def unlike(
    runs: Iterable[tuple[T, RunResult]], alike: Callable[[RunResult], Iterable[tuple[str, str, Any]]]
) -> tuple[T, T, str] | None:
    """The names of the first two runs that differ in what must be alike, and the words for it.

    Args:
        runs: pairs of a run's name and the run.
        alike: as :func:`circumstances` gives it, of a run.
    """
    first: dict[tuple[str, str], tuple[Any, T]] = {}
    for name, run in runs:
        for what, group, value in alike(run):
            known, one = first.setdefault((what, group), (value, name))
            if known != value:
                return one, name, f"different {what}{told_apart(known, value)}"
    return None


def circumstances(run: RunResult, group: str) -> list[tuple[str, str, Any]]:
    """What must be alike among runs of a group (of a task, or a data set), but for data and settings: for each what it
    is, the group that it must be alike in ("": all, since means are over groups), and its value in a run."""
    return [
        ("physics", group, run.physics),
        ("reference scores", group, [run.evaluation[name] for name in REFERENCES]),
        *_mujoco(run),
        ("evaluation protocols", "", _protocol(run)),
    ]


def _protocol(run: RunResult) -> dict[str, Any]:
    # What of the policy was evaluated belongs to the method: TD3+BC's paper has no average of parameters. How long an
    # online training took belongs to the run.
    own = (*REFERENCES, "policy", "simulator_steps")
    protocol = {k: v for k, v in run.evaluation.items() if k not in own}
    return protocol | {"episodes": len(run.episode_returns)}


def parse_row(text: str) -> Row:
    """``bc``, ``sft-q`` (by q) or ``sft-q by return`` as a :class:`Row`.

    Raises:
        UserError: no such method.
    """
    method, _, quality = text.partition(" by ")
    if method not in registry.names():
        raise UserError(f"unknown method {method!r}: {near(method, list(registry.names()))}")
    has_quality = registry.card(method).by_quality
    if quality not in (("", "q", "return") if has_quality else ("",)):
        raise UserError(
            f"{method} does not take {quality!r}; say {method}" + (" by q or by return." if has_quality else ".")
        )
    return Row(method, (quality or "q") if has_quality else None)


def _all_rows() -> list[Row]:
    qualities = {name: ("return", "q") if registry.card(name).by_quality else (None,) for name in registry.names()}
    return [Row(method, quality) for method, each in qualities.items() for quality in each]


def strata(report: Report, row: Row) -> list[np.ndarray]:
    """Scores of a row on every data set, seeds in order; empty where a data set is missing."""
    return [np.array([s for _, s in sorted(report.scores[row].get(d, {}).items())]) for d in report.datasets]


def differences(report: Report, row: Row, other: Row) -> dict[str, np.ndarray]:
    """Score of ``row`` minus that of ``other`` by seed, (n,) for every data set where they share seeds."""
    found = {}
    for dataset in report.datasets:
        apart = statistics.paired(*(report.scores[r].get(dataset, {}) for r in (row, other)))
        if len(apart):
            found[dataset] = apart
    return found


def _mujoco(run: RunResult) -> list[tuple[str, str, str]]:
    """The version of MuJoCo as something to compare, of a run that used it."""
    version = run.physics["mujoco"]
    return [] if version in (NO_PHYSICS, NO_MUJOCO) else [("versions of MuJoCo", "", version)]


def overall(report: Report, row: Row) -> tuple[Estimate, Estimate] | None:
    """Mean over data sets and interquartile mean of a row, or None where it lacks one of the data sets."""
    each = strata(report, row)
    if not all(len(x) for x in each):
        return None
    return statistics.stratified_mean(each), statistics.iqm_interval(each)


def _tasks_of(report: Report) -> dict[str, str]:
    """The task of every data set that published scores may stand beside: D4RL's and their reconstructions."""
    known = ("D4RL", "reconstruction")
    return {r.dataset["id"]: r.task if r.dataset["origin"] in known else "" for r in report.runs.values()}


def metric(report: Report) -> str:
    """What the scores are: of one report all are of one protocol."""
    return str(next(iter(report.runs.values())).evaluation.get("metric", NORMALISED))


def titles(report: Report) -> list[str]:
    """Column titles of the data sets: with where they come from or as whole ids, where two would be the same."""
    plain = [short(d) for d in report.datasets]
    longer = [
        f"{d.split('/')[0]} {t}" if plain.count(t) > 1 else t for d, t in zip(report.datasets, plain, strict=True)
    ]
    return [d if longer.count(t) > 1 else t for d, t in zip(report.datasets, longer, strict=True)]


def short(dataset: str) -> str:
    """A data set's column title: "hopper medium-replay" for iwsft/hopper/medium-replay-v1."""
    return " ".join(re.sub(r"-v\d+$", "", dataset).split("/")[-2:])


def notes(report: Report) -> list[str]:
    """What a reader has to know of the runs: data, physics, versions, devices, commits."""
    runs = list(report.runs.values())
    lines = []
    for dataset in report.datasets:
        of = next(r for r in runs if r.dataset["id"] == dataset)
        corrected = "corrected to D4RL's" if of.physics["corrections"] else "as installed"
        judged = f"evaluated in {of.physics['environment']}, MuJoCo {of.physics['mujoco']}, {corrected}"
        if of.physics["mujoco"] == NO_MUJOCO:
            judged = f"evaluated in {of.physics['environment']}, without MuJoCo"
        if of.physics["mujoco"] == NO_PHYSICS:
            judged = f"judged by {of.physics['environment']}, no physics"
        lines.append(
            f"{dataset}: {describe_origin(of.dataset['origin'])}, {of.dataset['transitions']:,} transitions, "
            f"sha256 {of.dataset['sha256'][:16]}; {judged}."
        )
    for name, values in (
        ("Trained on", sorted({r.device for r in runs})),
        ("Commit", sorted({str(r.git_commit) for r in runs})),
        ("JAX", sorted({r.versions["jax"] for r in runs})),
    ):
        lines.append(f"{name}: {'; '.join(values)}.")
    lines += told(report.failed)
    if any(r.quick for r in runs):
        lines.insert(0, "TRIAL RUNS (--quick): these are not scores.")
    return lines
