"""Online fine-tuning under one budget of simulator steps: every method, reward and seed, a table and a figure.

    python experiments/online.py
    python experiments/online.py --tasks hopper-medium-replay --seeds 0 1 --steps 40000
    python experiments/online.py --start iw-sft-q --methods bc-rl --out results/online-from-iw-sft-q

Runs ``python -m iwsft_control.finetune`` for every combination that has no result yet (a killed run goes on where it
was), seed by seed, so that the methods can be compared whenever it is stopped. Then it writes table.md, score.svg and
success.svg beside the results. ``--only-report`` makes these alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from iwsft_control import finetune
from iwsft_control.base import console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.errors import require
from iwsft_control.base.files import through_json, write_text
from iwsft_control.benchmark import checks
from iwsft_control.configs.online import PPOConfig, PrefixConfig, Reward, Start
from iwsft_control.envs import tasks
from iwsft_control.online import methods as online_methods
from iwsft_control.online.methods import METHODS
from iwsft_control.report import figures, online
from iwsft_control.report import runs as grouped


@dataclasses.dataclass(frozen=True)
class OnlineConfig:
    """What to compare."""

    tasks: tuple[str, ...] = ("hopper-medium-replay", "walker2d-medium-replay")
    methods: tuple[str, ...] = tuple(METHODS)
    rewards: tuple[Reward, ...] = ("dense", "sparse")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    start: Start = "bc"
    """The offline policy that training starts from; each in a folder of its own (--out)."""
    steps: Annotated[int, POSITIVE] = 300_000
    """Simulator steps of every run."""
    out: Path = Path("results/online")
    stages: Path | None = None
    """Folder of finished stages, as of ``run``."""
    only_report: bool = False
    """Make the table and the figures of what is there."""
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    prefix: PrefixConfig = dataclasses.field(default_factory=PrefixConfig)


def main(config: OnlineConfig) -> None:
    """Make what is missing, then the report."""
    checks.check_tasks(config.tasks)
    checks.check_seeds(config.seeds)
    require(bool(config.methods), "--methods must name one or more methods.")
    require(len(set(config.rewards)) == len(config.rewards) > 0, "--rewards must be dense, sparse or both.")
    wanted = [
        finetune.FinetuneConfig(
            env=task,
            method=config.methods,
            seeds=(seed,),
            reward=reward,
            steps=config.steps,
            start=config.start,
            results=config.out,
            stages=config.stages,
            ppo=config.ppo,
            prefix=config.prefix,
        )
        for seed in config.seeds
        for task in config.tasks
        for reward in config.rewards
    ]
    for each in wanted:  # a mistake is told before hours are spent
        finetune.validate(each)
        finetune.check_offline(each)
    online_methods.check_effects(config.methods, config.rewards, config.ppo, config.prefix)
    if not config.only_report:
        _check_there(config)
    failed = console.each(finetune.main, () if config.only_report else wanted)
    found = online.find(config.out)
    count = len(online.compared(found))
    corrected = f", corrected for the {count} comparisons of a column" if count > 1 else ""
    paired = f"Paired by seed [95% interval{corrected}]:"
    missing = grouped.told(grouped.find_failures([config.out]))
    differences = [paired, online.differences_markdown(found)] if count else []
    table = "\n\n".join([online.to_markdown(found), *missing, *differences])
    write_text(config.out / "table.md", table + "\n")
    figures.save(online.draw(found), config.out, "score")
    figures.save(online.draw(found, "success"), config.out, "success")
    console.console.print(table)
    if failed:
        raise SystemExit(1)


def _check_there(config: OnlineConfig) -> None:
    """See that the runs in the folder, of these tasks, rewards and budget, have the settings that the others will have.

    Raises:
        UserError: one has others.
    """
    groups = {k: dataclasses.asdict(getattr(config, k)) for k in ("ppo", "prefix")}
    wanted = through_json({"start": config.start, **groups})
    names = {tasks.parse_task(task).name for task in config.tasks}
    for panel, methods in online.find(config.out).items() if grouped.result_files(config.out) else ():
        if panel.task in names and panel.reward in config.rewards and panel.budget == config.steps:
            for run in (run for each in methods.values() for run in each):
                other = next((k for k in wanted if run.config[k] != wanted[k]), None)
                which = f"{panel.task} ({panel.reward}) with another --{other}"
                require(other is None, f"{config.out} holds runs of {which}; choose another --out.")


if __name__ == "__main__":
    console.command(lambda: OnlineConfig, main, "python experiments/online.py", __doc__)
