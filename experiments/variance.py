"""Where the spread between runs comes from, and how many seeds a comparison needs.

    python experiments/variance.py --env hopper-medium-replay --method sft-q iw-sft-q --runs 5

One thing changes at a time, the others stay those of the first seed:

    bc          seed of the BC policy that fine-tuning starts from
    critic      seed of the critic that scores the data (quality q)
    fine-tune   seed of fine-tuning: which batches it draws
    rounding    BC's parameters times 1 + 1e-7 x normal: what another processor or library may do to the same seed
    evaluation  reset seeds of the 100 episodes; the policy is the same
    all         everything but the reset seeds, as runs of several seeds do

The table gives the standard deviation of the normalised score over the runs of each, and what follows from that of
"all" for one method against another: the seeds a side that show a difference of 5 and of 10 points with probability
0.8 at the 5% level (two-sided, by the normal approximation n = 2 (1.96 + 0.84)^2 sd^2 / difference^2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from iwsft_control import api
from iwsft_control.base import console, files
from iwsft_control.base.errors import require
from iwsft_control.benchmark import checks, perform, results, settings, stages
from iwsft_control.benchmark.settings import Settings
from iwsft_control.benchmark.store import Store
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import evaluation
from iwsft_control.learning import loop
from iwsft_control.learning.method import Artefact, Inputs
from iwsft_control.methods import registry, supervised
from iwsft_control.networks import policies
from iwsft_control.report import formats

COMPONENTS = ("bc", "critic", "fine-tune", "rounding", "evaluation", "all")
ROUNDING = 1e-7


@dataclasses.dataclass(frozen=True)
class VarianceConfig:
    """Which methods, on which data."""

    env: str = "hopper-medium-replay"
    dataset: str | None = None
    method: tuple[str, ...] = ("sft-q", "iw-sft-q")
    """Methods that fine-tune."""
    quality: Literal["q", "return"] = "q"
    runs: int = 5
    """Runs of every component."""
    first_seed: int = 100
    """Tuning seeds: from here."""
    out: Path = Path("results/variance")
    stages: Path | None = None
    """Folder of finished stages; by default ~/.cache/iwsft_control/stages."""
    quick: bool = False
    """A trial of a few steps and 5 episodes."""


class Draw(NamedTuple):
    """What one run is made of."""

    bc: int
    critic: int
    fine_tune: int
    rounding: int  # 0: none
    evaluation: int  # 0: the suite's reset seeds


def draws(component: str, first: int, runs: int) -> list[Draw]:
    """The runs of a component: in the first nothing is changed."""
    plain = Draw(first, first, first, 0, 0)
    if component == "all":
        return [Draw(first + k, first + k, first + k, 0, 0) for k in range(runs)]
    field = component.replace("-", "_")
    return [plain._replace(**{field: getattr(plain, field) + k}) for k in range(runs)]


def run(data: Dataset, store: Store, chosen: Settings, method_name: str, quality: str, draw: Draw) -> float:
    """The normalised score of one run."""
    stage = stages.method_stage(method_name, quality, (draw.fine_tune,), chosen, data.task)
    seeds = {"bc": draw.bc, "critic": draw.critic}
    artefacts = {
        name: perform.perform(dataclasses.replace(each, seeds=(seeds[name],)), data, store)
        for name, each in stages.dependencies(stage).items()
    }
    if draw.rounding:
        artefacts["bc"] = rounded(artefacts["bc"], draw.rounding)
    method = registry.get(method_name)
    prepared = method.prepare(stage.config, Inputs(data, artefacts, stage.quality, stage.seeds))
    trained = loop.train(method, stage.config, prepared, stage.seeds)
    assert method.export is not None
    policy = policies.make(perform.export(method.export, stage.config, data, trained.policy)[0])
    episodes = perform.QUICK_EPISODES if chosen.quick else evaluation.EPISODES
    first_seed = evaluation.FIRST_RESET_SEED + draw.evaluation * 10 * evaluation.EPISODES
    returns = evaluation.evaluate(policy, data.environment, episodes, first_seed=first_seed)
    return results.score(returns, data.ref_min_score, data.ref_max_score)[0]


def rounded(artefact: Artefact, seed: int) -> Artefact:
    """The artefact with its parameters off by one part in ten million."""
    rng = np.random.default_rng(seed)

    def off(x: Any) -> np.ndarray:
        return (x * (1 + ROUNDING * rng.standard_normal(x.shape))).astype(np.float32)

    return Artefact(dict(artefact.arrays) | {"params": jax.tree.map(off, artefact.arrays["params"])}, artefact.record)


def seeds_needed(deviation: float, difference: float) -> int:
    """Seeds a side that show a difference with probability 0.8 at the 5% level, two at least."""
    return max(2, math.ceil(2 * (1.96 + 0.84) ** 2 * deviation**2 / difference**2))


def main(config: VarianceConfig) -> None:
    """Run every component of every method, then write the table."""
    kinds = [supervised.KINDS.get(m) for m in config.method]
    require(all(k is not None and k.fine_tunes for k in kinds), "--method must name methods that fine-tune.")
    require(config.runs >= 2, "--runs must be at least 2.")
    checks.check_seeds((config.first_seed, config.first_seed + config.runs))
    console.cache_compiled_programs()
    console.writable(config.out)
    data = api.load(None if config.dataset else config.env, dataset=config.dataset)
    store, chosen = (
        Store(config.stages or files.cache_home() / "stages"),
        settings.validate(settings.make(config.quick)),
    )
    record = config.out / f"{data.task.replace('/', '-')}.json"
    found: dict[str, dict[str, list[float]]] = {}
    known: dict[tuple[str, Draw], float] = {}
    with console.progress_bar() as bar:
        line = bar.add_task(data.task, total=len(config.method) * len(COMPONENTS) * config.runs)
        for name in config.method:
            for component in COMPONENTS:
                if component == "critic" and "critic" not in registry.get(name).dependencies(config.quality):
                    bar.advance(line, config.runs)
                    continue
                for draw in draws(component, config.first_seed, config.runs):
                    if (name, draw) not in known:
                        known[name, draw] = run(data, store, chosen, name, config.quality, draw)
                    found.setdefault(name, {}).setdefault(component, []).append(known[name, draw])
                    bar.advance(line)
    identity = {"id": data.id, "sha256": data.sha256}
    files.write_json(record, {"dataset": identity, "scores": found, "quick": config.quick, **results.provenance()})
    header, rows = table(found)
    console.print_table(header, rows)
    files.write_text(record.with_suffix(".md"), formats.markdown_table(header, rows) + "\n")


def table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of cells."""
    header, rows = ["method", *COMPONENTS, "seeds for 5 points", "for 10 points"], []
    for name, components in found.items():
        deviations = {c: float(np.std(x, ddof=1)) for c, x in components.items()}
        cells = [name, *(f"{deviations[c]:.1f}" if c in deviations else "-" for c in COMPONENTS)]
        cells += [str(seeds_needed(deviations["all"], points)) for points in (5, 10)]
        rows.append(cells)
    return header, rows


if __name__ == "__main__":
    console.command(lambda: VarianceConfig, main, "python experiments/variance.py", __doc__)
