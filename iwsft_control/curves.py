"""Learning curves: scores along training on a tuning seed, to choose a number of updates; never for a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iwsft_control import evaluation, figures, files, results
from iwsft_control.dataset import Dataset
from iwsft_control.networks import greedy

FIRST_RESET_SEED = 3_000_000  # no result uses these


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


def score(record: Mapping[str, Any], parameters: Any, data: Dataset) -> tuple[float, float]:
    """Mean normalised score of a policy over the curve's episodes, and its standard error."""
    returns = evaluation.evaluate(
        greedy(parameters), data.environment, record["episodes"], first_seed=FIRST_RESET_SEED, threads=1
    )
    return results.score(np.asarray(returns), data.ref_min_score, data.ref_max_score)


def add_point(path: Path, record: dict[str, Any], **point: float) -> None:
    """Add a point (step, normalised_score, standard_error and the like) to a curve and write that to ``path``."""
    for key, value in point.items():
        record.setdefault(key, []).append(value)
    files.write_json(path, record)


def draw(folder: Path) -> None:
    """A figure of all curves in a folder, into it, and their :func:`quarters` printed."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    figures.save(figures.curves(records), folder, "curves")
    print(quarters(records))


def quarters(records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of curves: the mean normalised score of each quarter of training, after how many updates."""
    lines = ["| task | method | updates | first quarter | second | third | last |", "|---|---|---|---|---|---|---|"]
    for record in sorted(records, key=lambda r: (r["task"], r["method"])):
        steps, scores = np.array(record["step"]), np.array(record["normalised_score"])
        ends = steps[-1] * np.arange(1, 5) / 4
        means = [scores[(steps > end - ends[0]) & (steps <= end)].mean() for end in ends]
        cells = " | ".join(f"{mean:.0f}" for mean in means)
        lines.append(f"| {record['task']} | {record['method']} | {steps[-1]:,} | {cells} |")
    return "\n".join(lines)
