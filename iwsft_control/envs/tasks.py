"""What a task name such as ``hopper-medium-replay`` means: environment, reference scores, data, published facts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from iwsft_control.base.errors import UserError, near, require


@dataclasses.dataclass(frozen=True)
class Environment:
    """One of D4RL's locomotion environments.

    ``ref_min_score`` and ``ref_max_score`` are D4RL's reference returns (random and expert policy), the same for all
    data sets of the environment (Fu et al. 2020, arXiv 2004.07219).
    """

    name: str
    env_id: str
    ref_min_score: float
    ref_max_score: float
    medium_return: float | None  # mean return of the published medium-v2 data: D4RL's "medium level"
    expert_return: float | None  # of expert-v2
    levels: tuple[str, ...] = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
    """Of its data; another environment may have others ("umaze")."""


ENVIRONMENTS = {
    e.name: e
    for e in (
        Environment("hopper", "d4rl/Hopper-v2", -20.272305, 3234.3, 1422.0, 3511.0),
        Environment("halfcheetah", "d4rl/HalfCheetah-v2", -280.178953, 12135.0, 4770.0, 10656.0),
        Environment("walker2d", "d4rl/Walker2d-v2", 1.629008, 4592.3, 2852.0, 4921.0),
        Environment("ant", "d4rl/Ant-v2", -325.6, 3879.7, None, None),
    )
}


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment and a level of data."""

    environment: Environment
    level: str

    @property
    def name(self) -> str:
        return f"{self.environment.name}-{self.level}"

    @property
    def can_be_collected(self) -> bool:
        """Whether ``collect`` reconstructs its data: that stops at D4RL's medium level, which must be known."""
        return self.environment.medium_return is not None and self.level != "full-replay"

    @property
    def d4rl_id(self) -> str:
        """Minari id of D4RL's own data, once imported."""
        return f"D4RL/{self.environment.name}/{self.level}-v2"

    @property
    def reconstruction_id(self) -> str:
        """Minari id of this project's reconstruction."""
        return f"iwsft/{self.environment.name}/{self.level}-v1"


def normalise(episode_return: float, ref_min_score: float, ref_max_score: float) -> float:
    """D4RL's normalised score, 100 (R - min) / (max - min): 0 is a random policy, 100 an expert."""
    return 100.0 * (episode_return - ref_min_score) / (ref_max_score - ref_min_score)


MEDIUM_REPLAY = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")  # the benchmark's
TASK_NAMES = {f"{e.name}-{level}": (e, level) for e in ENVIRONMENTS.values() for level in e.levels}


def parse_task(name: str) -> Task:
    """``hopper-medium-replay`` (D4RL's ``hopper_medium_replay-v2`` is understood too) as a :class:`Task`.

    Raises:
        UserError: no such task; the sentence lists the near ones.
    """
    plain = name.lower().replace("_", "-").removesuffix("-v2")
    if plain not in TASK_NAMES:
        of_data = "a data set is named with --dataset (of a sweep --datasets)."
        raise UserError(f"unknown task {name!r}: {of_data if '/' in name else near(plain, list(TASK_NAMES))}")
    return Task(*TASK_NAMES[plain])


def environment_of(name: str) -> str:
    """The Gymnasium id that a task or id stands for, as a user names it.

    Raises:
        UserError: neither a task nor an id.
    """
    try:
        return parse_task(name).environment.env_id
    except UserError:
        if ":" in name or "-v" in name.rpartition("/")[2]:
            return name
        raise


def environment_of_policy(path: Path, task: str | None, remedy: str) -> str:
    """The Gymnasium id of the task that a policy's file names: of a task only, since an id may name what to import.

    Raises:
        UserError: it names none, or a data set; the sentence ends in the remedy.
    """
    require(task is not None, f"{path} does not say its task; {remedy}.")
    try:
        return parse_task(str(task)).environment.env_id
    except UserError as error:
        raise UserError(f"{path} was trained on {task}, which is no task; {remedy}.") from error
