"""Known methods here and as published, side by side: ``python experiments/published.py`` writes it into docs/data.md.

What they score here is of the runs by which the data were accepted (results/reconstruction) and of the baselines' own
(results/baselines).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from iwsft_control.base.files import write_text
from iwsft_control.benchmark import results
from iwsft_control.benchmark.acceptance import mean_score
from iwsft_control.datasets.facts import PUBLISHED_SCORES
from iwsft_control.methods import registry
from iwsft_control.report.published import PUBLISHED_TASKS

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- published: results/reconstruction, results/baselines -->", "<!-- end of published -->"
METHODS = {"bc": "BC", "filtered-bc": "10%BC", "td3-bc": "TD3+BC", "iql": "IQL", "cql": "CQL"}


def published(task: str, method: str) -> tuple[float, float]:
    """The published score of a method, from and to."""
    if method in PUBLISHED_SCORES[task]:
        return PUBLISHED_SCORES[task][method]
    column = registry.card(method).published
    assert column is not None
    return (column.scores[PUBLISHED_TASKS.index(task)],) * 2


def scores(task: str, folder: Path) -> dict[str, dict[int, float]]:
    """Normalised scores on the embedded data, by method and seed; ``folder`` is that of all results."""
    record = json.loads((folder / "reconstruction" / f"{task}.json").read_text(encoding="utf-8"))
    found = {m: {int(s): x for s, x in by.items()} for m, by in record["scores"][record["chosen"]].items()}
    for path in sorted((folder / "baselines" / task).glob("*.json")):
        run = results.read(path)
        found.setdefault(run.method, {}).setdefault(run.seed, run.normalised_score)
    return found


def rows_of(task: str, found: Mapping[str, Mapping[int, float]]) -> list[list[str]]:
    """Three rows: published, here (with the number of runs), the distance of the mean from the published range."""
    wanted, here, far = [], [], []
    for method in METHODS:
        low, high = published(task, method)
        wanted.append(f"{low:.1f}" if low == high else f"{low:.1f} to {high:.1f}")
        mean = mean_score(found[method]) if found.get(method) else None
        here.append("-" if mean is None else f"{mean:.1f} ({len(found[method])})")
        distance = None if mean is None else mean - np.clip(mean, low, high)
        far.append("-" if distance is None else "within" if distance == 0 else f"{distance:+.1f}")
    name = task.removesuffix("-medium-replay")
    return [[name, "published", *wanted], [name, "here (runs)", *here], [name, "**distance**", *far]]


def with_published(text: str, folder: Path) -> str:
    """A page's text with the table of the runs in ``folder`` between its marks."""
    head = ["task", "score", *METHODS.values()]
    rows = [row for task in PUBLISHED_TASKS for row in rows_of(task, scores(task, folder))]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]
    table = "\n".join(lines)
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)


if __name__ == "__main__":
    page = ROOT / "docs" / "data.md"
    write_text(page, with_published(page.read_text(encoding="utf-8"), ROOT / "results"))
