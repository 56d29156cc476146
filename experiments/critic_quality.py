"""How well the learned Q judges data that it has not seen: against Monte-Carlo returns of held-out episodes.

    python experiments/critic_quality.py --env hopper-medium-replay --seeds 100 101 102

Every tenth episode is held out. Critics are trained on the others, one for every expectile and discount, and one by
SARSA (the Q-function of the data's policy). After several numbers of updates each is compared with the discounted sum
of rewards that followed in the held-out episodes:

    row     rank correlation of Q(s_t, a_t) with the discounted return from t, over transitions whose return is known
            (the episode terminated, or less than 5% of the discounted horizon lies beyond its cut)
    slope   of the regression of that return on Q: 1 is calibrated, below 1 Q spreads more than returns do
    bias    mean of Q minus return, in standard deviations of the return
    episode rank correlation of an episode's mean Q with its undiscounted return, over all held-out episodes
    top     share of the best tenth of the held-out episodes by return that are in the best tenth by mean Q

The table goes to results/critic/<task>.md.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from iwsft_control import api
from iwsft_control.base import bounds, console, files
from iwsft_control.base.errors import require
from iwsft_control.base.snapshot import Snapshot
from iwsft_control.benchmark import checks, results, settings, sources, store
from iwsft_control.benchmark.stages import Stage
from iwsft_control.datasets.transitions import Demonstrations, reward_scale
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning import curation, loop
from iwsft_control.learning.defaults import CALL_STEPS
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.methods import critic, registry, sarsa
from iwsft_control.report import formats

HELD_OUT = 10  # every tenth episode
UNKNOWN = 0.05  # share of the discounted horizon that may lie beyond an episode's cut
MEASURES = ("row", "slope", "bias", "episode", "top")


@dataclasses.dataclass(frozen=True)
class CriticQualityConfig:
    """Which critics, on which data."""

    env: str = "hopper-medium-replay"
    dataset: str | None = None
    seeds: tuple[int, ...] = (100, 101, 102)
    """Tuning seeds."""
    updates: tuple[int, ...] = (10_000, 25_000, 50_000, 100_000)
    """Numbers of updates after which a critic is judged, whole multiples of 500."""
    expectiles: tuple[float, ...] = (0.5, 0.7, 0.9)
    discounts: tuple[float, ...] = (0.99,)
    sarsa: bool = True
    """The SARSA critic too."""
    out: Path = Path("results/critic")
    work: Path | None = None
    """Folder of unfinished trainings; by default ~/.cache/iwsft_control/critic-quality."""


class Truth(NamedTuple):
    """What followed in held-out episodes, in units of the critics' scaled rewards."""

    returns_to_go: np.ndarray  # (N,) discounted
    known: np.ndarray  # (N,) bool
    episode_returns: np.ndarray  # (E,) undiscounted


def split(data: Dataset) -> tuple[Dataset, Dataset]:
    """The data set without every tenth episode, and these episodes alone."""
    held_out = np.arange(len(data.starts) - 1) % HELD_OUT == HELD_OUT - 1
    return part(data, ~held_out), part(data, held_out)


def part(data: Dataset, episodes: np.ndarray) -> Dataset:
    """The episodes (E,) bool of a data set, as one of their own."""
    rows = episodes[data.episode_of]
    columns = {
        name: getattr(data, name)[rows]
        for name in ("observations", "actions", "rewards", "next_observations", "terminations")
    }
    starts = np.concatenate([[0], np.cumsum(data.lengths[episodes])])
    return dataclasses.replace(data, **columns, starts=starts)


def truth(data: Dataset, scale: float, discount: float) -> Truth:
    """Discounted returns of every row of whole episodes, and which of them the data tell in full."""
    rewards = data.rewards.astype(np.float64) * scale
    following, left = np.zeros(len(rewards)), np.zeros(len(rewards))
    for first, last in zip(data.starts[:-1], data.starts[1:], strict=True):
        total = 0.0
        for t in range(last - 1, first - 1, -1):
            total = following[t] = rewards[t] + discount * total
        left[first:last] = 0.0 if data.terminations[last - 1] else discount ** np.arange(last - first, 0, -1)
    return Truth(following, left < UNKNOWN, data.returns)


def judge(q: np.ndarray, data: Dataset, known: Truth) -> dict[str, float]:
    """The measures at the module's head, of Q (N,) on held-out episodes."""
    mine, theirs = q[known.known].astype(np.float64), known.returns_to_go[known.known]
    mean_q = curation.mean_values(q, curation.episode_units(data))
    best = max(1, len(mean_q) // 10)
    top = [set(np.argsort(-x, kind="stable")[:best].tolist()) for x in (mean_q, known.episode_returns)]
    return {
        "row": float(stats.spearmanr(mine, theirs)[0]),
        "slope": float(stats.linregress(mine, theirs)[0]),
        "bias": float((mine.mean() - theirs.mean()) / theirs.std()),
        "episode": float(stats.spearmanr(mean_q, known.episode_returns)[0]),
        "top": len(top[0] & top[1]) / best,
    }


def critics(config: CriticQualityConfig) -> Iterator[tuple[str, str, Any]]:
    """Label, method and configuration of every critic."""
    for discount in config.discounts:
        for expectile in config.expectiles:
            yield (
                f"expectile {expectile:g}, discount {discount:g}",
                "critic",
                critic.CriticConfig(expectile=expectile, discount=discount),
            )
        if config.sarsa:
            yield f"SARSA, discount {discount:g}", "sarsa", sarsa.SarsaConfig(discount=discount)


def stages(method: Method, config: Any, data: Prepared, seed: int, updates: Sequence[int], path: Path) -> Iterator[Any]:
    """The state of one training after each number of updates, in order; every stage goes on from the one before.

    Args:
        path: of the files, one for each number of updates; they are removed after the last one.
    """
    made: list[Path] = []
    for steps in updates:
        own = path.with_name(f"{path.name}-{steps}.safetensors")
        if made and not own.exists():
            with files.atomic_path(own) as temporary:
                shutil.copyfile(made[-1], temporary)
        longer = dataclasses.replace(config, steps=steps)
        trained = loop.train(method, longer, data, (seed,), snapshot=Snapshot(own))
        files.save_pytree(own, (trained.state, trained.policy), {"log": [{"step": steps}], "seconds": 0.0})
        made.append(own)
        yield jax.tree.map(lambda x: x[0], trained.state)
    for each in made:
        each.unlink()


def main(config: CriticQualityConfig) -> None:
    """Train, judge, write the table."""
    checks.check_seeds(config.seeds)
    whole = all(n > 0 and n % CALL_STEPS == 0 for n in config.updates)  # a training goes on between compiled calls
    different = len(set(config.updates)) == len(config.updates) > 0
    require(different and whole, f"--updates must be different positive multiples of {CALL_STEPS}.")
    for _, _, each in critics(config):
        bounds.check(each, "critic")
    console.cache_compiled_programs()
    data = api.load(None if config.dataset else config.env, dataset=config.dataset)
    learned, held_out = split(data)
    scale, rows = reward_scale(learned), Demonstrations(held_out.observations, held_out.actions)
    known = {discount: truth(held_out, scale, discount) for discount in config.discounts}
    for discount, by_discount in known.items():
        require(
            bool(by_discount.known.any()),
            f"no return of a held-out episode of {data.id} is known with --discounts {discount:g}: each is cut where "
            "more of it would count; give a smaller one.",
        )
    work = config.work or files.cache_home() / "critic-quality"
    console.writable(config.out)
    console.writable(work)
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with console.progress_bar() as bar:
        for label, name, chosen in critics(config):
            method = registry.get(name)
            # A training that other code began is begun anew.
            code = sources.code_version(store.code_of(Stage(name, None, config.seeds, settings.make())))[:8]
            for seed in config.seeds:
                line = bar.add_task(f"{label}, seed {seed}", total=max(config.updates))
                prepared = method.prepare(chosen, Inputs(learned, {}, None, (seed,)))
                kept = f"{data.sha256[:16]}-{label.replace(' ', '-').replace(',', '')}-{seed}-{code}"
                updates = sorted(config.updates)
                for steps, state in zip(
                    updates, stages(method, chosen, prepared, seed, updates, work / kept), strict=True
                ):
                    bar.update(line, completed=steps)
                    q = np.asarray(critic.min_q(chosen.hidden, state.target, rows))
                    found.setdefault((label, steps), []).append(judge(q, held_out, known[chosen.discount]))
    write(config, data, found)


def write(config: CriticQualityConfig, data: Dataset, found: dict[tuple[str, int], list[dict[str, float]]]) -> None:
    """The table, printed and as Markdown, and the figures as JSON."""
    header, rows = ["critic", "updates", *MEASURES], []
    for (label, updates), each in found.items():
        cells = [label, f"{updates:,}"]
        for measure in MEASURES:
            scores = np.array([x[measure] for x in each])
            spread = f" ({scores.min():.2f} to {scores.max():.2f})" if len(scores) > 1 else ""
            cells.append(f"{scores.mean():.2f}{spread}")
        rows.append(cells)
    console.print_table(header, rows)
    name = data.task.replace("/", "-")
    files.write_text(config.out / f"{name}.md", formats.markdown_table(header, rows) + "\n")
    record = [{"critic": label, "updates": n, "seeds": config.seeds, "found": x} for (label, n), x in found.items()]
    identity = {"id": data.id, "sha256": data.sha256}
    files.write_json(config.out / f"{name}.json", {"dataset": identity, "critics": record, **results.provenance()})


if __name__ == "__main__":
    console.command(lambda: CriticQualityConfig, main, "python experiments/critic_quality.py", __doc__)
