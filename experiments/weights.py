"""Which episodes of its curated set iw-SFT(Q) weighs up: by place in the data, return and mean Q.

    python experiments/weights.py --seeds 100 101

A replay buffer holds its episodes in the order of collection, so the place of one (0 the first, 1 the last) tells which
of the collector's policies made it. For every task, as means over seeds: rank correlations, over the episodes of the
curated set, of the mean log-ratio log q - log pi_ref of a step with place, return and mean Q; and the place (mean and
standard deviation) and the return of what fine-tuning draws, without weights and with those of the final policy. Stages
are those of the sweep with the same seeds; what is in the store is not trained again. Table: results/tuning/weights.md.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from iwsft_control import api
from iwsft_control.base import console, files
from iwsft_control.benchmark import checks, jobs, settings, stages
from iwsft_control.benchmark.perform import perform
from iwsft_control.benchmark.store import Store
from iwsft_control.configs.critic import CriticConfig
from iwsft_control.configs.importance import ImportanceConfig
from iwsft_control.configs.supervised import KINDS, PolicyConfig, SupervisedConfig
from iwsft_control.datasets.transitions import Demonstrations
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning import curation, objectives
from iwsft_control.learning.curation import Curated
from iwsft_control.methods import supervised
from iwsft_control.report import formats

HEADER = ["task", "episodes", "with place", "with return", "with mean Q", "draws", "place", "return"]


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """Which data and runs."""

    tasks: tuple[str, ...] = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")
    seeds: tuple[int, ...] = (100, 101)
    """Tuning seeds are 100 and up."""
    out: Path = Path("results/tuning")
    stages: Path | None = None
    """Folder of finished stages; by default ~/.cache/iwsft_control/stages."""
    critic: CriticConfig = dataclasses.field(default_factory=CriticConfig)
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    importance: ImportanceConfig = dataclasses.field(default_factory=ImportanceConfig)


class Preference(NamedTuple):
    """What the weights of one run prefer."""

    correlations: np.ndarray
    """Of the log-ratio with place, return and mean Q, (3,)."""
    plain: np.ndarray
    """Of draws without weights: mean place, its standard deviation, mean return, (3,)."""
    weighted: np.ndarray
    """Of draws with weights, (3,)."""
    episodes: int
    """Of the curated set."""


def preference(
    config: SupervisedConfig, data: Dataset, curated: Curated, log_ratio: np.ndarray, q: np.ndarray
) -> Preference:
    """What weights prefer among the episodes of a curated set.

    Args:
        log_ratio: mean over the steps of every episode of the set, (U,).
        q: the learned Q of every transition, (N,).
    """
    counts = np.bincount(curated.entries, minlength=len(curated.starts))
    temperature = objectives.temperature_of(config.importance, jnp.asarray(log_ratio), jnp.asarray(counts))
    weights = objectives.importance_weights(config.importance, jnp.asarray(log_ratio), jnp.asarray(counts), temperature)
    sizes = curated.lengths if config.policy.length_weighted else np.ones_like(curated.lengths)  # as fine-tuning draws
    episodes = data.episode_of[curated.starts]
    place, returns = episodes / (len(data.returns) - 1), data.returns[episodes]
    mean_q = curation.mean_values(q, curation.episode_units(data))[episodes]

    def of_draws(weights: np.ndarray) -> np.ndarray:
        share = weights * counts * sizes
        share = share / share.sum()
        mean = share @ place
        return np.array([mean, np.sqrt(share @ (place - mean) ** 2), share @ returns])

    correlations = [stats.spearmanr(log_ratio, x).statistic for x in (place, returns, mean_q)]
    return Preference(
        np.array(correlations), of_draws(np.ones(len(counts))), of_draws(np.asarray(weights)), len(counts)
    )


def of_run(config: WeightsConfig, task: str, seed: int, data: Dataset, store: Store, told: Any) -> Preference:
    """The preference of one run's final weights; trains what the store does not hold."""
    chosen = settings.make(critic=config.critic, policy=config.policy, importance=config.importance)
    options = settings.validate(chosen)
    stage = stages.method_stage("iw-sft-q", "q", (seed,), options, task)
    needed = {name: perform(each, data, store, told).arrays for name, each in stages.dependencies(stage).items()}
    trained = perform(stage, data, store, told).arrays["params"], needed["bc"]["params"]
    policy, reference = (jax.tree.map(lambda x: x[0], params) for params in trained)
    q, v = needed["critic"]["q"][0], needed["critic"]["v"][0]
    method: SupervisedConfig = stage.config
    curated = supervised.curate(method.curation, KINDS["iw-sft-q"], "q", data, (q, v)).curated
    rows = Demonstrations(data.observations[curated.rows], data.actions[curated.rows])
    apart = supervised.log_probs(method, policy, rows) - supervised.log_probs(method, reference, rows)
    log_ratio = objectives.unit_means(apart, jnp.asarray(curated.unit_of_row), jnp.asarray(curated.lengths))
    return preference(method, data, curated, np.asarray(log_ratio), q)


def rows_of(task: str, found: list[Preference]) -> list[list[str]]:
    """A row of draws without weights and one with them, as means over seeds."""
    episodes = f"{np.mean([f.episodes for f in found]):.0f}"
    correlations = [f"{x:.2f}" for x in np.mean([f.correlations for f in found], axis=0)]
    cells = []
    for name in ("plain", "weighted"):
        place, spread, returned = np.mean([getattr(f, name) for f in found], axis=0)
        cells.append([name, f"{place:.2f} +- {spread:.2f}", f"{returned:,.0f}"])
    return [[task, episodes, *correlations, *cells[0]], ["", "", "", "", "", *cells[1]]]


def main(config: WeightsConfig) -> None:
    """Find or train the runs, print and write the table."""
    checks.check_tasks(config.tasks)
    checks.check_seeds(config.seeds)
    console.writable(config.out)
    store, rows = Store(config.stages or files.cache_home() / "stages"), []
    with console.progress_bar() as bar:
        for task in config.tasks:
            data = api.load(task)
            told = jobs.reporter(lambda what, *event, task=task: bar.loop(f"{task} {what}", *event))
            rows += rows_of(task, [of_run(config, task, seed, data, store, told) for seed in config.seeds])
    console.print_table(HEADER, rows)
    files.write_text(config.out / "weights.md", formats.markdown_table(HEADER, rows) + "\n")


if __name__ == "__main__":
    console.command(lambda: WeightsConfig, main, "python experiments/weights.py", __doc__)
