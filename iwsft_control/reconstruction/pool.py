"""A pool of candidates for a reconstruction: many replays, each with its portrait, in one folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iwsft_control.base import files
from iwsft_control.base.errors import UserError
from iwsft_control.datasets import facts
from iwsft_control.datasets.types import Episodes, content_sha256
from iwsft_control.envs import tasks
from iwsft_control.envs.tasks import Environment
from iwsft_control.reconstruction import sac
from iwsft_control.reconstruction.acceptance import Portrait, portrait
from iwsft_control.reconstruction.collection import Run

CHECKPOINT_STEPS = 20_000


def slug(env_id: str, seed: int, config: sac.SACConfig) -> str:
    """The name of a replay's files: "Hopper-v2-seed0-u1"."""
    return f"{env_id.split('/')[1]}-seed{seed}-u{config.updates_per_step:g}"


def grow(
    env_id: str,
    config: sac.SACConfig,
    seed: int,
    steps: int,
    work: Path,
    tell: Callable[[Run], None] = lambda run: None,
    keep_at: Sequence[int] = (),
) -> Run:
    """SAC's run up to ``steps``, continued from the furthest checkpoint in a folder.

    Args:
        tell: called after every iteration.
        keep_at: further steps at which a checkpoint is kept.
    """
    run, name = Run(env_id, config, seed, steps), slug(env_id, seed, config)
    current = work / f"{name}-current.safetensors"
    kept = [work / f"{name}-{at}.safetensors" for at in sorted({steps, *keep_at}, reverse=True) if at <= steps]
    found = [path for path in (*kept, current) if path.is_file() and steps_of(path) <= steps]
    if found:
        run.load(max(found, key=steps_of))
    while run.steps < steps:
        run.iterate()
        tell(run)
        if run.steps in {steps, *keep_at}:
            run.save(work / f"{name}-{run.steps}.safetensors")
        elif run.steps % CHECKPOINT_STEPS == 0:
            run.save(current)
    return run


def steps_of(checkpoint: Path) -> int:
    """Environment steps of a checkpoint; 0 if it is damaged."""
    return int(files.read_metadata(checkpoint).get("steps", 0))


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One replay of the pool."""

    environment: str
    seed: int
    updates_per_step: float
    sha256: str
    """Of its content, as :func:`~iwsft_control.datasets.types.content_sha256`."""
    portrait: Portrait

    @property
    def name(self) -> str:
        return f"seed{self.seed}-u{self.updates_per_step:g}"


def candidate(run: Run) -> Candidate:
    """The portrait of a finished replay."""
    environment = next(e for e in tasks.ENVIRONMENTS.values() if e.env_id == run.env_id)
    episodes = run.episodes()
    states = facts.D4RL_MEDIUM_REPLAY_STATES.get(environment.name)
    return Candidate(
        environment.name,
        run.seed,
        run.config.updates_per_step,
        content_sha256(episodes),
        portrait(episodes, states),
    )


def write(folder: Path, found: Candidate) -> None:
    """Keep a candidate's portrait."""
    files.write_json(folder / f"{found.environment}-{found.name}.json", dataclasses.asdict(found))


def read(folder: Path, environment: str) -> list[Candidate]:
    """The candidates of an environment whose portraits are in a folder, by updates a step and seed.

    Raises:
        UserError: a file is not a portrait.
    """
    found = []
    for path in folder.glob(f"{environment}-seed*.json"):
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            inner = values.pop("portrait")
            inner["length_quantiles"] = tuple(inner["length_quantiles"])
            found.append(Candidate(**values, portrait=Portrait(**inner)))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is not a candidate's portrait ({error}); collect it again.") from error
    return sorted(found, key=lambda c: (c.updates_per_step, c.seed))


def load_episodes(work: Path, environment: Environment, found: Candidate) -> Episodes:
    """The transitions of a candidate from its checkpoint in ``work``.

    Raises:
        UserError: the checkpoint is gone, or holds another replay than the portrait is of.
    """
    steps = found.portrait.transitions
    config = dataclasses.replace(sac.SACConfig(), updates_per_step=found.updates_per_step)
    path = work / f"{slug(environment.env_id, found.seed, config)}-{steps}.safetensors"
    run = Run(environment.env_id, config, found.seed, steps)
    run.load(path)
    episodes = run.episodes()
    if content_sha256(episodes) != found.sha256:
        raise UserError(f"{path} is another replay than the portrait of {found.name} is of; collect it again.")
    return episodes


COLUMNS = (
    "candidate", "episodes", "mean", "sd", "min", "max", "last tenth", "full length", "best 2%: length", "return",
    "length 10/25/50/75/90/98%", "state shift", "spread",
)  # fmt: skip


def rows(candidates: Sequence[Candidate], environment: Environment) -> list[list[str]]:
    """A table's rows: D4RL's own figures first, where they are public, then the candidates."""
    wanted = facts.D4RL_MEDIUM_REPLAY[environment.name]
    moments = [
        f"{x:.0f}" for x in (wanted.mean, wanted.std, wanted.min, wanted.max, environment.medium_return or np.nan)
    ]
    found = [["D4RL", f"{wanted.episodes:,}", *moments, "-", "-", "-", "-", "0", "0"]]
    for each in candidates:
        p = each.portrait
        found.append(
            [each.name, f"{p.episodes:,}"]
            + [f"{x:.0f}" for x in (p.mean, p.std, p.min, p.max, p.last_tenth, p.full_length)]
            + [f"{p.best_length:.0f}", f"{p.best_return:.0f}", " ".join(f"{x:.0f}" for x in p.length_quantiles)]
            + [f"{x:.2f}" if x is not None else "-" for x in (p.state_shift, p.state_spread)]
        )
    return found
