"""SAC's run by rlkit's protocol, and data of fixed policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import threadpoolctl

from iwsft_control.base import children, files
from iwsft_control.base.errors import UserError
from iwsft_control.base.versions import version
from iwsft_control.datasets import transitions
from iwsft_control.datasets.types import Episodes
from iwsft_control.envs import physics
from iwsft_control.envs.batch import D4RLBatch
from iwsft_control.envs.evaluation import evaluate
from iwsft_control.reconstruction import sac

ITERATION_STEPS = 1000  # rlkit's num_expl_steps_per_train_loop
ROLLOUT_LANES = 40  # environments that share them, each for 25,000 steps
TRIAL_EPISODES = 10  # of a policy that may be a run's best
TRIAL_RESET_SEED = 2_000_000  # of their first; none of the episodes that score a policy


def columns(rows: int, o: int, a: int, nq: int, nv: int) -> dict[str, np.ndarray]:
    """Empty columns of recorded transitions; ``final_`` ones hold a state where an episode has ended."""
    widths = {"observations": o, "next_observations": o, "actions": a}
    widths |= {"qpos": nq, "qvel": nv, "final_qpos": nq, "final_qvel": nv}
    found = {name: np.zeros((rows, width), np.float32) for name, width in widths.items()}
    flags = {name: np.zeros(rows, bool) for name in ("terminations", "truncations")}
    return {**found, "rewards": np.zeros(rows, np.float32), **flags}


def block(batch: D4RLBatch, policy: Any, seed: int, iteration: int) -> dict[str, np.ndarray]:
    """What a fixed policy, sampled, does in 1,000 environment steps: the rows of a run's iteration.

    Args:
        batch: one environment.
        policy: NumPy parameters.
        seed: of the run; with the iteration it gives the block's own random stream.
    """
    rng = np.random.default_rng([seed, iteration])
    only, model = np.arange(1), batch.model
    record = columns(ITERATION_STEPS, batch.observation_dim, batch.action_dim, model.nq, model.nv)

    def reset() -> np.ndarray:
        return batch.reset([int(rng.integers(2**31))])[0]

    observation = reset()
    for t in range(ITERATION_STEPS):
        action = sac.act(policy, observation, rng.standard_normal(batch.action_dim, np.float32))
        record["qpos"][t], record["qvel"][t] = (x[0] for x in batch.state(only))
        next_observation, reward, terminated, truncated = batch.step(only, action[None])
        record["observations"][t], record["actions"][t] = observation, action
        record["next_observations"][t], record["rewards"][t] = next_observation[0], reward[0]
        record["terminations"][t] = terminated[0]
        cut = truncated[0] or t == ITERATION_STEPS - 1
        record["truncations"][t] = cut and not terminated[0]
        observation = next_observation[0]
        if terminated[0] or cut:
            record["final_qpos"][t], record["final_qvel"][t] = (x[0] for x in batch.state(only))
            observation = reset()
    return record


_environment: D4RLBatch  # of a process that steps one for others


def begin_process(env_id: str) -> None:
    """Begin a process that does :func:`block_in_process`: one thread, and an end with the process that started it."""
    global _environment
    children.end_with_parent()
    threadpoolctl.threadpool_limits(1, "blas")
    _environment = D4RLBatch(env_id, 1)


def block_in_process(policy: Any, seed: int, iteration: int) -> dict[str, np.ndarray]:
    """:func:`block` in this process's environment."""
    return block(_environment, policy, seed, iteration)


def updates_of(config: sac.SACConfig, start: int, stop: int) -> int:
    """Updates that follow the environment steps from ``start`` to ``stop``; none before ``first_steps`` are over."""
    if stop <= config.first_steps:
        return 0
    return round(stop * config.updates_per_step) - round(start * config.updates_per_step)


def provenance(env_id: str) -> dict[str, Any]:
    """What makes data here: the physics, the versions of packages and the kind of device."""
    versions = {p: version(p) for p in ("iwsft_control", "mujoco", "gymnasium", "jax", "numpy", "minari")}
    return {"physics": physics.describe(env_id), "versions": versions, "device": jax.devices()[0].device_kind}


class Best(NamedTuple):
    """The best of a run's policies that were tried."""

    policy: Any  # NumPy parameters
    mean_return: float  # over its trial
    steps: int  # of the run, before it


class Run:
    """A SAC run that can be stopped and continued: learner, replay buffer and recorded states.

    Args:
        env_id: a D4RL environment.
        config: SAC's hyper-parameters.
        seed: of everything; iteration k draws from streams keyed by (seed, k), so a continued run is the same run.
        capacity: transitions to hold.
    """

    def __init__(self, env_id: str, config: sac.SACConfig, seed: int, capacity: int):
        self.env_id, self.config, self.seed = env_id, config, seed
        self.batch = D4RLBatch(env_id, 1)
        self.learner = sac.create(config, self.batch.observation_dim, self.batch.action_dim, jax.random.key(seed))
        o, a = self.batch.observation_dim, self.batch.action_dim
        nq, nv = self.batch.model.nq, self.batch.model.nv
        self.record = columns(capacity, o, a, nq, nv)
        self.steps = 0
        self.made = provenance(env_id)
        """What it was made with; of a continued run, what it was begun with and what continued it."""
        self.best: Best | None = None
        """The best policy by :meth:`try_policy`, if any was tried."""
        self._replay: Any = None

    def iterate(self) -> None:
        """1,000 environment steps with the current policy, then the updates."""
        start, stop = self.steps, self.steps + ITERATION_STEPS
        iteration = start // ITERATION_STEPS
        self.write(block(self.batch, jax.tree.map(np.asarray, self.learner.policy), self.seed, iteration))
        self._learn(start, stop, iteration)

    def try_policy(self) -> None:
        """Play the present policy for ten episodes, sampled; it becomes the best if none had a higher mean return.

        No random number of the run is touched.
        """
        policy = jax.tree.map(np.asarray, self.learner.policy)
        rng, width = np.random.default_rng([self.seed, self.steps, 1]), self.batch.action_dim

        def act(observations: np.ndarray) -> np.ndarray:
            return sac.act(policy, observations, rng.standard_normal((len(observations), width), np.float32))

        returns = evaluate(act, self.env_id, TRIAL_EPISODES, name="SAC", first_seed=TRIAL_RESET_SEED)
        if self.best is None or returns.mean() > self.best.mean_return:
            self.best = Best(policy, float(returns.mean()), self.steps)

    def write(self, rows: dict[str, np.ndarray]) -> None:
        """Record the next rows."""
        stop = self.steps + len(rows["rewards"])
        for name, column in self.record.items():
            column[self.steps : stop] = rows[name]
        self.steps = stop

    def _learn(self, start: int, stop: int, iteration: int) -> None:
        if self._replay is None:
            self._replay = jax.tree.map(jax.numpy.array, self.transitions(0, len(self.record["rewards"])))
        self._replay = sac.insert(self._replay, self.transitions(start, stop), np.int32(start))
        updates = updates_of(self.config, start, stop)
        if updates:
            key = jax.random.fold_in(jax.random.key(self.seed), iteration)
            self.learner = sac.train(self.config, updates, self.learner, self._replay, np.int32(stop), key)

    def transitions(self, start: int, stop: int) -> transitions.Transitions:
        """Recorded rows as the learner sees them."""
        r = self.record
        names = ("observations", "actions", "rewards", "next_observations", "terminations")
        return transitions.Transitions(*(r[k][start:stop].astype(np.float32) for k in names))

    def returns(self) -> np.ndarray:
        """Return of every recorded episode, in order."""
        ends = np.flatnonzero((self.record["terminations"] | self.record["truncations"])[: self.steps])
        totals = np.cumsum(self.record["rewards"][: self.steps].astype(np.float64))[ends]
        return np.diff(totals, prepend=0.0)

    def save(self, path: Path) -> None:
        """Write a checkpoint that :meth:`load` continues from, bit for bit."""
        tree = {"learner": self.learner, "record": {k: v[: self.steps] for k, v in self.record.items()}}
        metadata: dict[str, Any] = {"steps": self.steps, "made": self.made, **self._identity()}
        if self.best is not None:
            tree["best"] = self.best.policy
            metadata["best"] = {"mean_return": self.best.mean_return, "steps": self.best.steps}
        files.save_pytree(path, tree, metadata)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            UserError: it is damaged, or of a run with another configuration or in other physics.
        """
        arrays, metadata = files.load_arrays(path)
        if {k: metadata.get(k) for k in self._identity()} != self._identity():
            raise UserError(f"{path} belongs to a run with another configuration; choose another --work folder.")
        begun, now = metadata.get("made"), self.made
        begun = begun if isinstance(begun, dict) else now  # checkpoints of before do not tell
        if begun.get("physics") != now["physics"]:
            raise UserError(f"{path} belongs to a run in {begun.get('physics')}; choose another --work folder.")
        known = [begun, *begun.get("continued", [])]
        same = any({k: made.get(k) for k in now} == now for made in known)
        self.made = begun if same else begun | {"continued": [*begun.get("continued", []), now]}
        self.steps = metadata["steps"]
        for name, column in self.record.items():
            column[: self.steps] = arrays[f"record/{name}"][: len(column)]
        names = files.flatten({"learner": self.learner})
        self.learner = jax.tree.unflatten(jax.tree.structure(self.learner), [arrays[n] for n in names])
        if (best := metadata.get("best")) is not None:
            self.best = Best(files.nest(arrays)["best"], **best)

    def _identity(self) -> dict[str, Any]:
        config = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self.config).items()}
        return {"env_id": self.env_id, "seed": self.seed, "config": config}

    def episodes(self, steps: int | None = None) -> Episodes:
        """Every transition so far, or up to a number of ``steps`` that ends an iteration, as whole episodes."""
        return _episodes({k: v[: self.steps if steps is None else steps] for k, v in self.record.items()})


def _episodes(record: dict[str, np.ndarray]) -> Episodes:
    """Rows of (s, a, r, s') in order, with an end flag on the last of each episode, as :class:`Episodes`."""
    ends = np.flatnonzero(record["terminations"] | record["truncations"])
    after_end = ends + 1

    def states(rows: str, finals: str) -> np.ndarray:
        return np.insert(record[rows], after_end, record[finals][ends], axis=0)

    return Episodes(
        observations=states("observations", "next_observations"),
        actions=record["actions"],
        rewards=record["rewards"],
        terminations=record["terminations"],
        truncations=record["truncations"],
        starts=np.concatenate([[0], after_end]),
        qpos=states("qpos", "final_qpos"),
        qvel=states("qvel", "final_qvel"),
    )


def rollout(
    env_id: str, policy: Any | None, transitions: int, stream: list[int], progress: Callable[[int], None]
) -> Episodes:
    """Transitions of one fixed policy, sampled actions (uniform ones for ``policy=None``), in whole episodes.

    The transitions are shared equally by a batch of environments; each one's last episode is cut.
    """
    lanes = ROLLOUT_LANES
    steps, rest = divmod(transitions, lanes)
    assert not rest, "the environments share the transitions equally"
    batch, rng = D4RLBatch(env_id, lanes), np.random.default_rng(stream)
    everyone = np.arange(lanes)
    columns: dict[str, list[np.ndarray]] = {}
    observations = batch.reset(rng.integers(2**31, size=lanes).tolist())
    for t in range(steps):
        noise_shape = (lanes, batch.action_dim)
        if policy is None:
            actions = rng.uniform(-1, 1, noise_shape).astype(np.float32)
        else:
            actions = sac.act(policy, observations, rng.standard_normal(noise_shape, np.float32))
        qpos, qvel = batch.state(everyone)
        next_observations, rewards, terminated, truncated = batch.step(everyone, actions)
        truncated = (truncated | (t == steps - 1)) & ~terminated
        final_qpos, final_qvel = batch.state(everyone)
        row = {
            "observations": observations,
            "next_observations": next_observations,
            "actions": actions,
            "rewards": rewards,
            "qpos": qpos,
            "qvel": qvel,
            "final_qpos": final_qpos,
            "final_qvel": final_qvel,
            "terminations": terminated,
            "truncations": truncated,
        }
        for name, value in row.items():
            dtype = bool if value.dtype == bool else np.float32
            columns.setdefault(name, []).append(value.astype(dtype))
        observations = next_observations.copy()
        ended = np.flatnonzero(terminated | truncated)
        for i in ended:
            observations[i] = batch.reset_one(int(i), int(rng.integers(2**31)))
        if t % 100 == 99 or t == steps - 1:
            progress(lanes * (t % 100 + 1))
    # Environment by environment, so that episodes are whole.
    return _episodes({k: np.concatenate(np.swapaxes(np.array(v), 0, 1)) for k, v in columns.items()})


def concatenate(first: Episodes, second: Episodes) -> Episodes:
    """The episodes of ``first``, then those of ``second``."""
    joined = {k: np.concatenate([getattr(first, k), getattr(second, k)]) for k in Episodes._fields if k != "starts"}
    return Episodes(**joined, starts=np.concatenate([first.starts, first.starts[-1] + second.starts[1:]]))
