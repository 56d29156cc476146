"""Learning curves: scores along training on a tuning seed, to choose a number of updates; never for a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iwsft_control.base import files
from iwsft_control.base.errors import require
from iwsft_control.benchmark import results
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import evaluation
from iwsft_control.networks import policies
from iwsft_control.networks.policies import Exported
from iwsft_control.report import figures, formats

FIRST_RESET_SEED = 3_000_000  # no result uses these
POINTS, AVERAGES = ("step", "normalised_score", "standard_error"), ("last_iterate_score", "averaged_score")
FIELDS = {"task": "str", "method": "str", "seed": "int", "config": "dict", "dataset": "dict", "episodes": "int"}
FIELDS |= dict.fromkeys(POINTS, "list")


def begin(task: str, method: str, seed: int, config: Mapping[str, Any], data: Dataset, episodes: int) -> dict[str, Any]:
    """A curve without points: what it is of, and where it was made."""
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "config": config,
        "dataset": {"id": data.id, "sha256": data.sha256},
        "episodes": episodes,
        "first_reset_seed": FIRST_RESET_SEED,
        **results.provenance(),
    }


def is_there(path: Path, record: Mapping[str, Any], steps: Callable[[Mapping[str, Any]], Any]) -> bool:
    """Whether a file holds this very curve, whole: nothing is left to do.

    Args:
        record: the curve without points.
        steps: of a whole curve, by its configuration.

    Raises:
        UserError: it holds a whole curve of other settings or data, which the new one would replace.
    """
    if not path.is_file():
        return False
    known, wanted = read_record(path), files.through_json(record)
    whole = known["step"][-1] == steps(known["config"])
    same = all(known[k] == wanted[k] for k in ("config", "dataset", "episodes"))
    sentence = f"{path} is a whole curve of other settings or data; move it, or give another --out."
    require(same or not whole, sentence)
    return whole


def score(record: Mapping[str, Any], exported: Exported, data: Dataset) -> tuple[float, float]:
    """Mean normalised score of a policy over the curve's episodes, and its standard error."""
    returns = evaluation.evaluate(
        policies.make(exported), data.environment, record["episodes"], first_seed=FIRST_RESET_SEED, threads=1
    )
    return results.score(np.asarray(returns), data.ref_min_score, data.ref_max_score)


def add_point(path: Path, record: dict[str, Any], **point: float) -> None:
    """Add a point (step, normalised_score, standard_error and the like) to a curve and write that to ``path``."""
    for key, value in point.items():
        record.setdefault(key, []).append(value)
    files.write_json(path, record)


def draw(folder: Path) -> None:
    """A figure of all curves in a folder, into it, and their :func:`tables` printed."""
    figures.save(figures.curves(read(folder)), folder, "curves")
    print(tables(folder))


def tables(folder: Path) -> str:
    """:func:`quarters` and :func:`averages` of all curves in a folder."""
    records = [record for group in read(folder) for record in group]
    return f"{quarters(records)}\n\n{averages(records)}"


def read(folder: Path) -> list[list[Mapping[str, Any]]]:
    """The curves in a folder, in groups that differ in their seed only.

    Raises:
        UserError: a file is not a curve, two are of one seed, or two seeds of other data, settings or episodes.
    """
    return list(_grouped([read_record(path) for path in sorted(folder.glob("*.json"))]).values())


def read_record(path: Path) -> dict[str, Any]:
    """A curve, whole or not.

    Raises:
        UserError: the file is none.
    """
    what, remedy = "a learning curve", "delete it and draw it again"
    record = files.read_json(path, what, remedy)
    known = {name: record.get(name) for name in FIELDS} if isinstance(record, dict) else record
    problem = files.problem_of(known, FIELDS)
    if problem is None:
        columns = [record[name] for name in (*POINTS, *AVERAGES) if name in record]
        if not columns[0] or any(not isinstance(c, list) or len(c) != len(columns[0]) for c in columns):
            problem = "it has no points, or not one score for each"
        elif not all(files.is_number(x) for column in columns for x in column):
            problem = "a score is no finite number"
    require(problem is None, f"{path} is not {what} ({problem}); {remedy}.")
    return record


def quarters(records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of curves: the mean normalised score of each quarter of training, over seeds."""
    rows = []
    for (task, method, steps), same in _grouped(records).items():
        means = np.mean([_means(r["step"], r["normalised_score"], 4) for r in same], axis=0)
        rows.append([task, method, str(len(same)), f"{steps[-1]:,}", *map(_shown, means)])
    header = ["task", "method", "seeds", "updates", "first quarter", "second", "third", "last"]
    return formats.markdown_table(header, rows)


def averages(records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: the policy's last parameters beside their exponential average, for curves that have both.

    Mean normalised score over the second half of training, of every seed.
    """
    rows = []
    for (task, method, _), same in _grouped([r for r in records if "averaged_score" in r]).items():
        columns = ([_means(r["step"], r[k], 2)[1] for r in same] for k in AVERAGES)
        rows.append([task, method, *(", ".join(map(_shown, column)) for column in columns)])
    return formats.markdown_table(["task", "method", "last parameters", "their average"], rows)


def _grouped(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, tuple[int, ...]], list[Mapping[str, Any]]]:
    """Curves by task, method and the updates of their points, each group in the order of seeds, one curve per seed."""
    found: dict[tuple[str, str, tuple[int, ...]], list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda r: (r["task"], r["method"], r["step"][-1], r["seed"])):
        found.setdefault((record["task"], record["method"], tuple(record["step"])), []).append(record)
    for (task, method, _), same in found.items():
        name = f"the curves of {method} on {task}"
        require(len({r["seed"] for r in same}) == len(same), f"two of {name} are of one seed; part them.")
        for what in ("config", "dataset", "episodes"):
            require(all(r[what] == same[0][what] for r in same), f"{name} differ in their {what}; part them.")
    return found


def _means(steps: Sequence[int], scores: Sequence[float], parts: int) -> list[float]:
    """Mean score of each of equal parts of training, NaN without a point in it; a point counts for the part that it
    ends."""
    x, y = np.array(steps), np.array(scores)
    part = np.ceil(x * parts / x[-1])
    parted = (y[part == i + 1] for i in range(parts))
    return [points.mean() if len(points) else np.nan for points in parted]


def _shown(mean: float) -> str:
    return "-" if np.isnan(mean) else f"{mean:.0f}"
