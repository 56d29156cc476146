"""Which episodes a curated set comes from: whole episodes, segments or single transitions, by the learned Q.

    python experiments/curation.py --seed 100

For every task and unit: the transitions that fine-tuning draws, how many of the draws lie in the best tenth of episodes
by return, and the mean return of the episodes that they lie in. Critics are those of the sweep with the same seed; what
is in the store is not trained again. Table: results/tuning/curation.md.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from iwsft_control import api
from iwsft_control.base import console, files
from iwsft_control.benchmark import checks, jobs, settings, stages
from iwsft_control.benchmark.perform import perform
from iwsft_control.benchmark.store import Store
from iwsft_control.configs.critic import CriticConfig
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.supervised import KINDS
from iwsft_control.datasets.types import Dataset
from iwsft_control.methods import supervised
from iwsft_control.report import formats

UNITS = {"episode": "episodes, mean Q", "segment": "segments, mean Q - V", "transition": "transitions, Q - V"}
HEADER = [
    "task",
    "unit, quality",
    "transitions",
    "draws in the best tenth of episodes",
    "mean return of their episodes",
]


@dataclasses.dataclass(frozen=True)
class CurationOptions:
    """Which data, and whose critic."""

    tasks: tuple[str, ...] = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")
    seed: int = 100
    """Of the critic; tuning seeds are 100 and up."""
    out: Path = Path("results/tuning")
    stages: Path | None = None
    """Folder of finished stages; by default ~/.cache/iwsft_control/stages."""
    critic: CriticConfig = dataclasses.field(default_factory=CriticConfig)


def drawn(data: Dataset, curated: Any) -> tuple[np.ndarray, np.ndarray]:
    """The distinct transitions of a curated set (R,), and the probability that a draw is each of them (R,).

    A unit counts by its length and by how often it stands in the set.
    """
    often = np.bincount(curated.entries, minlength=len(curated.starts))[curated.unit_of_row]
    return np.asarray(curated.rows), often / often.sum()


def origin(data: Dataset, rows: np.ndarray, probability: np.ndarray) -> list[str]:
    """The cells of transitions (R,) that are drawn with a probability (R,)."""
    best = np.argsort(-data.returns, kind="stable")[: round(0.1 * len(data.returns))]
    episodes = data.episode_of[rows]
    share = probability[np.isin(episodes, best)].sum()
    return [f"{len(rows):,}", f"{share:.2f}", f"{probability @ data.returns[episodes]:,.0f}"]


def main(config: CurationOptions) -> None:
    """Find or train the critics, curate, print and write the table."""
    checks.check_tasks(config.tasks)
    checks.check_seeds((config.seed,), "--seed")
    chosen = settings.validate(settings.make(critic=config.critic))
    console.writable(config.out)
    store = Store(config.stages or files.cache_home() / "stages")
    rows = []
    with console.progress_bar() as bar:
        for task in config.tasks:
            data = api.load(task)
            stage = stages.method_stage("sft-q", "q", (config.seed,), chosen, task)
            critic = stages.dependencies(stage)["critic"]
            told = jobs.reporter(lambda what, *event, task=task: bar.loop(f"{task} {what}", *event))
            arrays = perform(critic, data, store, told).arrays
            everything = np.arange(len(data.rewards))
            rows.append([task, "(all data)", *origin(data, everything, np.full(len(everything), 1 / len(everything)))])
            for unit, name in UNITS.items():
                kind, own = KINDS["sft-q"], CurationConfig(q_unit=unit)  # type: ignore[arg-type]
                choice = supervised.curate(own, kind, "q", data, (arrays["q"][0], arrays["v"][0]))
                rows.append([task, name, *origin(data, *drawn(data, choice.curated))])
    console.print_table(HEADER, rows)
    files.write_text(config.out / "curation.md", formats.markdown_table(HEADER, rows) + "\n")


if __name__ == "__main__":
    console.command(lambda: CurationOptions, main, "python experiments/curation.py", __doc__)
