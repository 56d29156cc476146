"""What a data set is in memory: flat arrays with episode offsets."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from gymnasium.envs.registration import EnvSpec

from iwsft_control.base.errors import UserError
from iwsft_control.envs.actions import ActionBox
from iwsft_control.envs.specs import id_of

VELOCITY_LIMIT = 10.0  # Hopper's and Walker2d's observations clip velocities to +-10


class Episodes(NamedTuple):
    """Whole episodes laid end to end: N transitions in E episodes of T_e actions and T_e + 1 states each.

    ``starts`` (E + 1,) are offsets into the per-transition arrays; episode e's states begin at ``starts[e] + e``.
    ``qpos`` and ``qvel`` (N + E, nq), (N + E, nv) are the simulator's states, in the order of ``observations``.
    """

    observations: np.ndarray  # (N + E, O) float32
    actions: np.ndarray  # (N, A) float32
    rewards: np.ndarray  # (N,) float32
    terminations: np.ndarray  # (N,) bool
    truncations: np.ndarray  # (N,) bool
    starts: np.ndarray  # (E + 1,) int64
    qpos: np.ndarray | None = None
    qvel: np.ndarray | None = None

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of every episode, (E,) float64."""
        return returns_of(self.rewards, self.starts)


class SimulatorStates(NamedTuple):
    """Positions (N, nq) and velocities (N, nv) before every transition, float32, not clipped."""

    qpos: np.ndarray
    qvel: np.ndarray


CONTENT = ("observations", "actions", "rewards", "terminations", "truncations", "starts")
ARRAYS = ("observations", "actions", "rewards", "next_observations", "terminations", "starts")  # of a Dataset


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Flat transitions of one data set, and where they come from.

    ``terminations`` marks true terminal states; an episode also ends where it was truncated, which ``starts`` tells.
    Its arrays can only be read, since ``sha256`` stands for them: other arrays are another data set
    (:func:`~iwsft_control.datasets.arrays.from_arrays`).
    """

    id: str
    # Of the content (:func:`content_sha256`), whichever file it was read from; where the environment is not as it is
    # registered, or actions were scaled, of those as well.
    sha256: str
    origin: str  # "D4RL", "reconstruction", "Minari", "generated" or "arrays"
    environment: str | EnvSpec  # Gymnasium id or spec of the environment to evaluate in
    ref_min_score: float
    ref_max_score: float
    observations: np.ndarray  # (N, O) float32
    actions: np.ndarray  # (N, A) float32 in [-1, 1]
    rewards: np.ndarray  # (N,) float32
    next_observations: np.ndarray  # (N, O) float32
    terminations: np.ndarray  # (N,) bool
    starts: np.ndarray  # (E + 1,) int64; episode e is rows starts[e]:starts[e + 1]
    action_box: ActionBox | None = None  # that the actions were scaled from; None where it is [-1, 1]
    # Names and widths of what dict observations consist of, in the order of their columns; {} where they were vectors.
    observation_parts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    task: str = ""  # name of the task, or the id where it was loaded without one
    read_states: Callable[[], SimulatorStates | None] = lambda: None  # see :meth:`states`
    # The arrays that ``sha256`` is of; set when they are first given, so that dataclasses.replace hands them on.
    hashed: tuple[np.ndarray, ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name in ARRAYS:
            if getattr(self, name).flags.writeable:
                read_only = getattr(self, name).view()  # whoever gave the array may still write to it
                read_only.flags.writeable = False
                object.__setattr__(self, name, read_only)
        if not self.hashed:
            object.__setattr__(self, "hashed", tuple(getattr(self, name) for name in ARRAYS))

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the arrays that ``sha256`` is not of, as after ``dataclasses.replace(data, rewards=...)``."""
        return tuple(n for n, hashed in zip(ARRAYS, self.hashed, strict=True) if getattr(self, n) is not hashed)

    def states(self) -> SimulatorStates:
        """The simulator's states before every transition; read from disk when asked for, and not kept.

        Raises:
            UserError: the data set does not hold them.
        """
        found = self.read_states()
        if found is None:
            raise UserError(f"{self.id} holds no simulator states (qpos, qvel); choose a data set that does.")
        return found

    @property
    def env_id(self) -> str:
        return id_of(self.environment)

    @property
    def lengths(self) -> np.ndarray:
        """Transitions of every episode, (E,)."""
        return np.diff(self.starts)

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of every episode, (E,) float64."""
        return returns_of(self.rewards, self.starts)

    @property
    def truncations(self) -> np.ndarray:
        """Whether an episode ends after a transition without a terminal state, (N,) bool."""
        ends = np.zeros(len(self.rewards), bool)
        ends[self.starts[1:] - 1] = True
        return ends & ~self.terminations

    @property
    def episode_of(self) -> np.ndarray:
        """Episode index of every transition, (N,)."""
        return np.repeat(np.arange(len(self.starts) - 1), self.lengths)


def returns_of(rewards: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums of rewards (N,) over episodes, (E,) float64; episode e is rows ``starts[e]:starts[e + 1]``."""
    return np.add.reduceat(rewards.astype(np.float64), starts[:-1])


def describe_origin(origin: str) -> str:
    """A data set's ``origin`` in words."""
    kinds = {"reconstruction": "a reconstruction, not D4RL's own data", "D4RL": "D4RL's own data"}
    kinds |= {"generated": "generated by this suite", "arrays": "arrays given in Python"}
    return kinds.get(origin, "a Minari data set")


def state_rows(starts: np.ndarray) -> np.ndarray:
    """Rows of the states s_t (not the final ones) in the (N + E) arrays of :class:`Episodes`."""
    return np.arange(starts[-1]) + np.repeat(np.arange(len(starts) - 1), np.diff(starts))


def check(episodes: Episodes, name: str) -> None:
    """Refuse what no learner can use.

    Raises:
        UserError: no transitions, lengths that disagree, or values that are not finite.
    """
    n, e = len(episodes.rewards), len(episodes.starts) - 1
    if not n:
        raise UserError(f"{name} holds no transitions; it is damaged or empty: fetch or collect it again.")
    if (
        episodes.starts[0] != 0
        or episodes.starts[-1] != n
        or (np.diff(episodes.starts) < 1).any()
        or len(episodes.actions) != n
        or len(episodes.terminations) != n
        or len(episodes.observations) != n + e
    ):
        raise UserError(f"{name}: lengths of its arrays disagree; it is damaged: fetch or collect it again.")
    for field in ("observations", "actions", "rewards"):
        values = getattr(episodes, field)
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise UserError(f"{name}: {field} hold a NaN or infinity (row {row}); fetch or collect it again.")


def content_sha256(episodes: Episodes) -> str:
    """SHA-256 of what is learned from, the same for a Minari data set and its packed form."""
    digest = hashlib.sha256()
    for name in CONTENT:
        digest.update(np.ascontiguousarray(getattr(episodes, name)).data)
    return digest.hexdigest()
