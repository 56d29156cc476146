"""Evaluation: many episodes of a policy at once, on all cores, exactly as Gymnasium would play them.

Episodes are dealt to fixed lanes, each with its own policy calls, played by a pool of threads: MuJoCo and BLAS
release the GIL. The lanes do not depend on the number of cores, so neither does any return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import threadpoolctl
from gymnasium.envs.registration import EnvSpec

from iwsft_control.base import children
from iwsft_control.base.errors import RunError
from iwsft_control.envs.batch import Batch, D4RLBatch, make_batch
from iwsft_control.networks.policies import Policy, as_policy, observe

EPISODES = 100
FIRST_RESET_SEED = 1_000_000  # evaluation episode i is reset with FIRST_RESET_SEED + i, for every method and seed
LANE = 25  # episodes that share a policy call: large enough for BLAS, small enough to spread over cores
TOGETHER = 40 * LANE  # episodes that are in memory at once: each has a simulator, about a megabyte


class PolicyError(RunError):
    """A policy answered with something that is not an action."""


class Recording(NamedTuple):
    """One recorded episode of T steps."""

    reset_seed: int
    observations: np.ndarray  # (T + 1, O), the last one after the last step
    actions: np.ndarray  # (T, A)
    rewards: np.ndarray  # (T,)
    qpos: np.ndarray | None  # (T + 1, nq) positions of the simulator; None where it does not tell
    qvel: np.ndarray | None  # (T + 1, nv)
    terminated: bool


class Recorder:
    """Keeps states and actions of chosen episodes while :func:`evaluate` plays them, for a video or an analysis.

    Args:
        episodes: indices of the episodes to keep.
    """

    def __init__(self, episodes: Sequence[int]):
        self.episodes = tuple(episodes)
        self.recordings: dict[int, Recording] = {}
        """The episodes that were played last, by index."""

    def begin(self, batch: Batch, observations: np.ndarray, first_seed: int) -> None:
        """Forget what was kept and note how the chosen episodes start: observations (N, O) of all episodes."""
        self._first_seed = first_seed
        chosen = [i for i in self.episodes if i < len(observations)]
        self._states = {i: [self._state(batch, i, observations[i])] for i in chosen}
        self._steps: dict[int, list[tuple[np.ndarray, float]]] = {i: [] for i in chosen}
        self.recordings = {}

    def add(
        self,
        batch: Batch,
        active: np.ndarray,
        actions: np.ndarray,
        observations: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        ended: np.ndarray,
    ) -> None:
        """Note a step of the episodes ``active`` (K,), the results of which are the other arguments (K, ...)."""
        for row, i in enumerate(active.tolist()):
            if i in self._states:
                self._states[i].append(self._state(batch, i, observations[row]))
                self._steps[i].append((actions[row].copy(), float(rewards[row])))
                if ended[row]:
                    states, qpos, qvel = zip(*self._states[i], strict=True)
                    self.recordings[i] = Recording(
                        self._first_seed + i,
                        np.array(states),
                        np.array([a for a, _ in self._steps[i]]),
                        np.array([r for _, r in self._steps[i]]),
                        None if qpos[0] is None else np.array(qpos),
                        None if qvel[0] is None else np.array(qvel),
                        bool(terminated[row]),
                    )

    @staticmethod
    def _state(batch: Batch, i: int, observation: np.ndarray) -> tuple[Any, Any, Any]:
        states = [x[0] for x in batch.state(np.array([i]))] if isinstance(batch, D4RLBatch) else [None, None]
        return observation.copy(), states[0], states[1]


def evaluate(
    policy: Policy | Callable[[np.ndarray], np.ndarray],
    environment: str | EnvSpec,
    episodes: int = EPISODES,
    *,
    name: str = "policy",
    first_seed: int = FIRST_RESET_SEED,
    threads: int | None = None,
    on_lane: Callable[[int], None] = lambda episodes: None,
    recorder: Recorder | None = None,
) -> np.ndarray:
    """Undiscounted return of every episode, (episodes,) float64.

    Args:
        policy: a :class:`Policy`, or a function from observations (K, O) float32 to actions (K, A) in [-1, 1],
            which are scaled to the environment's own box; thread-safe. Its random numbers, if it draws any, are those
            of a lane of 25 episodes: they depend on ``first_seed`` and on which of the lane's episodes go on. (The
            products of one or two rows round otherwise than those of more, so an unstable gait may score otherwise
            where fewer episodes are asked for.)
        environment: Gymnasium id or spec.
        name: names the policy in an error.
        first_seed: episode i is reset with ``first_seed + i``.
        threads: all cores by default; the returns do not depend on it.
        on_lane: told the number of episodes whenever a lane ends (for a progress bar).
        recorder: keeps the episodes that it was made for.

    Raises:
        PolicyError: an action is NaN, infinite, outside [-1, 1] or of another shape; names policy, episode and step.
        RunError: a reward is not finite.
    """
    if episodes > TOGETHER and recorder is None:
        options: dict[str, Any] = {"name": name, "threads": threads, "on_lane": on_lane}
        parts = [
            evaluate(policy, environment, min(TOGETHER, episodes - done), first_seed=first_seed + done, **options)
            for done in range(0, episodes, TOGETHER)
        ]
        return np.concatenate(parts)
    acting, batch = as_policy(policy), make_batch(environment, episodes)
    observations = batch.reset([first_seed + i for i in range(episodes)])
    returns = np.zeros(episodes)
    if recorder is not None:
        recorder.begin(batch, observations, first_seed)

    def play(lane: np.ndarray) -> None:
        key = np.random.default_rng([first_seed, int(lane[0])])
        _play(acting, batch, lane, observations[lane], returns, key, f"{name}, reset seed {first_seed} + ", recorder)
        on_lane(len(lane))

    lanes = [np.arange(i, min(i + LANE, episodes)) for i in range(0, episodes, LANE)]
    # One BLAS thread a lane: the lanes are the parallelism.
    with threadpoolctl.threadpool_limits(1, "blas"), ThreadPoolExecutor(threads or children.usable_cores()) as pool:
        list(pool.map(play, lanes))
    return returns


def _play(
    policy: Policy,
    batch: Batch,
    active: np.ndarray,
    observations: np.ndarray,
    returns: np.ndarray,
    key: np.random.Generator,
    name: str,
    recorder: Recorder | None,
) -> None:
    """Play the episodes ``active`` of a batch to their ends, adding their rewards to ``returns`` in place."""
    carry = policy.initial(len(active))
    step = 0
    while len(active):
        actions, carry = policy.act(carry, observations.astype(np.float32), key)
        actions = check_actions(actions, batch.action_dim, active, name, step)
        observations, rewards, terminated, truncated = batch.step(active, actions)
        if not np.isfinite(rewards).all():
            worst = int(np.argmin(np.isfinite(rewards)))
            raise RunError(
                f"{name}{active[worst]}: the environment's reward at step {step} is {rewards[worst]}, which gives no "
                "score; mend the environment."
            )
        ended = terminated | truncated
        if recorder is not None:
            recorder.add(batch, active, actions, observations, rewards, terminated, ended)
        returns[active] += rewards
        carry = observe(policy, carry, rewards)
        step += 1
        if ended.any():
            going = ~ended
            active, observations = active[going], observations[going]
            carry = jax.tree.map(lambda x: x[going], carry)  # noqa: B023 (used at once)


def check_actions(actions: Any, dim: int, active: np.ndarray, name: str, step: int) -> np.ndarray:
    """The actions (K, A) with which a policy answered K observations, as an array of NumPy.

    Args:
        actions: what it answered, an array or a list; dim: of the environment's actions.
        active: (K,) what follows ``name`` in the sentence, of each observation; step: of the episodes.

    Raises:
        PolicyError: an action is not finite, outside [-1, 1] or of another shape.
    """
    wanted = len(active), dim
    try:
        actions = np.asarray(actions)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of several lengths, an array on an accelerator
        raise PolicyError(f"{name}{active[0]}: the actions at step {step} are no array ({error}).") from error
    if actions.shape != wanted:  # one of another width would be repeated for every joint
        raise PolicyError(
            f"{name}{active[0]}: the actions at step {step} are of shape {actions.shape}; for as many "
            f"observations they must be of shape {wanted}."
        )
    if actions.dtype.kind in "OSU":
        raise PolicyError(f"{name}{active[0]}: the actions at step {step} are no numbers ({actions.dtype}).")
    valid = (np.abs(actions) <= 1).all(axis=1)  # NaN compares false
    if not valid.all():
        worst = int(np.argmin(valid))
        raise PolicyError(
            f"{name}{active[worst]}: the action at step {step} is {actions[worst].tolist()}; "
            "actions must be finite and within [-1, 1]."
        )
    return actions
