"""Where the spread between runs comes from.

    python experiments/variance.py --env hopper-medium-replay --method sft-q iw-sft-q --runs 5

One thing changes at a time, the others stay those of the first seed:

    bc          seed of the BC policy that fine-tuning starts from
    critic      seed of the critic that scores the data (quality q)
    fine-tune   seed of fine-tuning: which batches it draws
    rounding    BC's parameters times 1 + 1e-7 x normal: what another processor or library may do to the same seed
    evaluation  reset seeds of the 100 episodes; the policy is the same
    all         everything but the reset seeds, as runs of several seeds do

The table gives the standard deviation of the normalised score over the runs of each, with its 95% interval (of a normal
distribution). How many seeds a comparison needs is in every report: "What these seeds can show".

What is finished is kept in the file of the task, run by run: a killed command goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from iwsft_control import api
from iwsft_control.base import bounds, console, files
from iwsft_control.base.bounds import TWO_OR_MORE
from iwsft_control.base.errors import require
from iwsft_control.benchmark import checks, perform, results, settings, stages
from iwsft_control.benchmark.settings import Settings
from iwsft_control.benchmark.store import Store, environment
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import evaluation
from iwsft_control.learning import loop
from iwsft_control.learning.method import Artefact, Inputs
from iwsft_control.methods import registry, supervised
from iwsft_control.networks import policies
from iwsft_control.report import formats, statistics
from iwsft_control.report.tables import cell

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
    runs: Annotated[int, TWO_OR_MORE] = 5
    """Runs of every component."""
    first_seed: int = 100
    """Tuning seeds: from here."""
    out: Path | None = None
    """By default results/variance, of trials results/quick/variance."""
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

    def key(self) -> str:
        """Its name in the file."""
        return " ".join(f"{name} {value}" for name, value in self._asdict().items())


def draws(component: str, first: int, runs: int) -> list[Draw]:
    """The runs of a component: in the first nothing is changed."""
    plain = Draw(first, first, first, 0, 0)
    if component == "all":
        return [Draw(first + k, first + k, first + k, 0, 0) for k in range(runs)]
    field = component.replace("-", "_")
    return [plain._replace(**{field: getattr(plain, field) + k}) for k in range(runs)]


def components(config: VarianceConfig, method: str) -> dict[str, list[Draw]]:
    """The runs of every component that a method has."""
    needed = registry.get(method).dependencies(config.quality)
    every = (c for c in COMPONENTS if c != "critic" or c in needed)
    return {component: draws(component, config.first_seed, config.runs) for component in every}


def train(data: Dataset, store: Store, chosen: Settings, method_name: str, quality: str, draw: Draw) -> policies.Policy:
    """The policy of one run."""
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
    return policies.make(perform.export(method.export, stage.config, data, trained.policy)[0])


def score(data: Dataset, policy: policies.Policy, episodes: int, draw: Draw) -> float:
    """The normalised score of one run's policy."""
    first_seed = evaluation.FIRST_RESET_SEED + draw.evaluation * 10 * evaluation.EPISODES
    returns = evaluation.evaluate(policy, data.environment, episodes, first_seed=first_seed)
    return results.score(returns, data.ref_min_score, data.ref_max_score)[0]


def rounded(artefact: Artefact, seed: int) -> Artefact:
    """The artefact with its parameters off by one part in ten million."""
    rng = np.random.default_rng(seed)

    def off(x: Any) -> np.ndarray:
        return (x * (1 + ROUNDING * rng.standard_normal(x.shape))).astype(np.float32)

    return Artefact(dict(artefact.arrays) | {"params": jax.tree.map(off, artefact.arrays["params"])}, artefact.record)


def main(config: VarianceConfig) -> None:
    """Run what is missing of every component of every method, then write the table."""
    kinds = [supervised.KINDS.get(m) for m in config.method]
    require(all(k is not None and k.fine_tunes for k in kinds), "--method must name methods that fine-tune.")
    bounds.check(config, "")
    checks.check_seeds((config.first_seed, config.first_seed + config.runs), "--first-seed")
    console.cache_compiled_programs()
    out = config.out or Path("results/quick" if config.quick else "results") / "variance"
    console.writable(out)
    data = api.load(None if config.dataset else config.env, dataset=config.dataset)
    chosen = settings.validate(settings.make(config.quick))
    store = Store(config.stages or files.cache_home() / "stages")
    path = out / f"{data.task.replace('/', '-')}.json"
    head = {
        "dataset": {"id": data.id, "sha256": data.sha256},
        "environment": files.through_json(environment(data)),
        "quality": config.quality,
        "quick": config.quick,
        **results.provenance(),
    }
    record = known(path, head) if path.is_file() else head | {"methods": {}}
    episodes = perform.QUICK_EPISODES if config.quick else evaluation.EPISODES
    wanted = {name: components(config, name) for name in config.method}
    runs = {name: list(dict.fromkeys(d for each in mine.values() for d in each)) for name, mine in wanted.items()}
    found: dict[str, dict[str, list[float]]] = {}
    with console.progress_bar() as bar:
        line = bar.add_task(data.task, total=sum(map(len, runs.values())))
        for name, mine in runs.items():
            stage = stages.method_stage(name, config.quality, (config.first_seed,), chosen, data.task)
            own = (*stages.dependencies(stage).values(), stage)
            setting = files.through_json({each.method: stages.configuration(each) for each in own})
            kept = record["methods"].setdefault(name, {"settings": setting, "scores": {}})
            require(kept["settings"] == setting, f"{path} holds {name} with other settings; choose another --out.")
            scores = kept["scores"]
            for training in dict.fromkeys(draw._replace(evaluation=0) for draw in mine):
                same = [draw for draw in mine if draw._replace(evaluation=0) == training]
                missing = [draw for draw in same if draw.key() not in scores]
                if missing:
                    policy = train(data, store, chosen, name, config.quality, training)
                for draw in missing:
                    scores[draw.key()] = score(data, policy, episodes, draw)
                    files.write_json(path, record)
                bar.advance(line, len(same))
            found[name] = {component: [scores[d.key()] for d in each] for component, each in wanted[name].items()}
    header, rows = table(found)
    console.print_table(header, rows)
    files.write_text(path.with_suffix(".md"), formats.markdown_table(header, rows) + "\n")


def known(path: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """The record of earlier runs.

    Raises:
        UserError: it is none, or of other data, settings, versions or code than ``head``.
    """
    what, remedy = "a record of runs of this command", "delete it or choose another --out"
    record = files.read_json(path, what, remedy)
    methods = record.get("methods") if isinstance(record, dict) else None
    whole = isinstance(methods, dict) and all(
        isinstance(each, dict)
        and each.keys() == {"settings", "scores"}
        and isinstance(each["scores"], dict)
        and all(map(files.is_number, each["scores"].values()))
        for each in methods.values()
    )
    require(whole, f"{path} is not {what}; {remedy}.")
    different = [name for name, value in head.items() if record.get(name) != value]
    require(not different, f"{path} holds runs of another {', '.join(different)}; {remedy}.")
    return record


def table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of cells: standard deviations with their intervals."""
    header, rows = ["method", *COMPONENTS], []
    for name, of_method in found.items():
        cells = {c: cell(statistics.deviation(np.array(x))) for c, x in of_method.items()}
        rows.append([name, *(cells.get(c, "-") for c in COMPONENTS)])
    return header, rows


if __name__ == "__main__":
    console.command(lambda: VarianceConfig, main, "python experiments/variance.py", __doc__)
