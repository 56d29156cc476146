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
        "step": [],
        "normalised_score": [],
        "standard_error": [],
    }


def add_point(path: Path, record: dict[str, Any], step: int, parameters: Any, data: Dataset) -> tuple[float, float]:
    """Evaluate a policy after ``step`` updates, add it to the curve and write that to ``path``.

    Returns:
        Mean normalised score and its standard error over episodes.
    """
    returns = evaluation.evaluate(
        greedy(parameters), data.environment, record["episodes"], first_seed=FIRST_RESET_SEED, threads=1
    )
    score, error = results.score(np.asarray(returns), data.ref_min_score, data.ref_max_score)
    for key, value in (("step", step), ("normalised_score", score), ("standard_error", error)):
        record[key].append(value)
    files.write_json(path, record)
    return score, error


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
