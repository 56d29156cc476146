"""``python -m iwsft_control.collect``: reconstruct D4RL's locomotion data by D4RL's own protocol.

rlkit's, as far as its code tells (github.com/rail-berkeley/rlkit, examples/sac.py and what it calls):

- the loop: 1,000 rows of the untrained stochastic policy, then again and again 1,000 environment steps of a fixed,
  sampled policy and 1,000 updates; paths are cut at 1,000 steps and at the end of each block;
- the learner: soft actor-critic with twin critics, two layers of 256, batches of 256, learning rates of 3e-4, discount
  0.99, target rate 0.005, automatic temperature with target entropy -A, its initialisation (:mod:`.sac`).

Not rlkit's: the updates per step where ``--updates-per-step`` says other than 1, the random numbers, JAX and float32
sums in another order. D4RL's authors do not say which version of rlkit they ran, nor their seed.

``medium-replay`` is every transition from the first until the policy reaches the medium level (D4RL's sizes). What
comes out is a reconstruction, not D4RL's own data.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from iwsft_control import cli, dataset, files, physics, sac, tasks
from iwsft_control.dataset import Episodes
from iwsft_control.files import UserError, require
from iwsft_control.simulation import D4RLBatch
from iwsft_control.tasks import Fingerprint, Task

ITERATION_STEPS = 1000  # rlkit's num_expl_steps_per_train_loop
CHECKPOINT_STEPS = 20_000
ROLLOUT_STEPS = 1_000_000  # transitions of random, medium and expert data
ROLLOUT_LANES = 40  # environments that share them, each for 25,000 steps
STREAMS = {"random": 1, "medium": 2, "expert": 3}  # random streams of the fixed policies' data

# The embedded data of version 0 were made by an earlier form of this learner (uniform first actions, Flax's
# initialisation, fewer updates); git's history keeps it.
SAC_CONFIGS = {
    "hopper": sac.SACConfig(),
    "halfcheetah": sac.SACConfig(),
    "walker2d": sac.SACConfig(),
}
EMBEDDED_SEEDS = {"hopper": 1, "halfcheetah": 0, "walker2d": 9}


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
        self.record = {
            "observations": np.zeros((capacity, o), np.float32),
            "next_observations": np.zeros((capacity, o), np.float32),
            "actions": np.zeros((capacity, a), np.float32),
            "rewards": np.zeros(capacity, np.float32),
            "terminations": np.zeros(capacity, bool),
            "truncations": np.zeros(capacity, bool),
            "qpos": np.zeros((capacity, nq), np.float32),
            "qvel": np.zeros((capacity, nv), np.float32),
            "final_qpos": np.zeros((capacity, nq), np.float32),
            "final_qvel": np.zeros((capacity, nv), np.float32),
        }
        self.steps = 0
        self._replay: Any = None

    def iterate(self) -> None:
        """1,000 environment steps with the current policy, then the updates."""
        start, stop = self.steps, self.steps + ITERATION_STEPS
        iteration = start // ITERATION_STEPS
        rng = np.random.default_rng([self.seed, iteration])
        policy = jax.tree.map(np.asarray, self.learner.policy)
        only, record = np.arange(1), self.record
        observation = self._reset(rng)
        length = 0
        for t in range(start, stop):
            action = sac.act(policy, observation, rng.standard_normal(self.batch.action_dim, np.float32))
            record["qpos"][t], record["qvel"][t] = (x[0] for x in self.batch.state(only))
            next_observation, reward, terminated = self.batch.step(only, action[None])
            record["observations"][t], record["actions"][t] = observation, action
            record["next_observations"][t], record["rewards"][t] = next_observation[0], reward[0]
            record["terminations"][t] = terminated[0]
            length += 1
            cut = length == self.batch.max_steps or t == stop - 1
            record["truncations"][t] = cut and not terminated[0]
            observation = next_observation[0]
            if terminated[0] or cut:
                record["final_qpos"][t], record["final_qvel"][t] = (x[0] for x in self.batch.state(only))
                observation, length = self._reset(rng), 0
        self.steps = stop
        self._learn(start, stop, iteration)

    def _reset(self, rng: np.random.Generator) -> np.ndarray:
        return self.batch.reset([int(rng.integers(2**31))])[0]

    def _learn(self, start: int, stop: int, iteration: int) -> None:
        if self._replay is None:
            self._replay = jax.tree.map(jax.numpy.array, self._transitions(0, len(self.record["rewards"])))
        rows = self._transitions(start, stop)
        self._replay = sac.insert(self._replay, rows, np.int32(start))
        updates = round(stop * self.config.updates_per_step) - round(start * self.config.updates_per_step)
        if stop > self.config.first_steps and updates:
            key = jax.random.fold_in(jax.random.key(self.seed), iteration)
            self.learner = sac.train(self.config, updates, self.learner, self._replay, np.int32(stop), key)

    def _transitions(self, start: int, stop: int) -> sac.Transitions:
        r = self.record
        names = ("observations", "actions", "rewards", "next_observations", "terminations")
        return sac.Transitions(*(r[k][start:stop].astype(np.float32) for k in names))

    def returns(self) -> np.ndarray:
        """Return of every recorded episode, in order."""
        ends = np.flatnonzero((self.record["terminations"] | self.record["truncations"])[: self.steps])
        totals = np.cumsum(self.record["rewards"][: self.steps].astype(np.float64))[ends]
        return np.diff(totals, prepend=0.0)

    def save(self, path: Path) -> None:
        """Write a checkpoint that :meth:`load` continues from, bit for bit."""
        tree = {"learner": self.learner, "record": {k: v[: self.steps] for k, v in self.record.items()}}
        files.save_pytree(path, tree, {"steps": self.steps, **self._identity()})

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            UserError: it is damaged or of a run with another configuration.
        """
        arrays, metadata = files.load_arrays(path)
        if {k: metadata.get(k) for k in self._identity()} != self._identity():
            raise UserError(f"{path} belongs to a run with another configuration; choose another --work folder.")
        self.steps = metadata["steps"]
        for name, column in self.record.items():
            column[: self.steps] = arrays[f"record/{name}"][: len(column)]
        names = files.flatten({"learner": self.learner})
        self.learner = jax.tree.unflatten(jax.tree.structure(self.learner), [arrays[n] for n in names])

    def _identity(self) -> dict[str, Any]:
        config = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self.config).items()}
        return {"env_id": self.env_id, "seed": self.seed, "config": config}

    def episodes(self) -> Episodes:
        """Every transition so far, as whole episodes."""
        return _episodes({k: v[: self.steps] for k, v in self.record.items()})


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


def fingerprint(episodes: Episodes) -> Fingerprint:
    """The facts by which a reconstruction is held against D4RL's data."""
    returns = np.add.reduceat(episodes.rewards.astype(np.float64), episodes.starts[:-1])
    moments = (float(f(returns)) for f in (np.mean, np.std, np.min, np.max))
    return Fingerprint(len(episodes.rewards), len(returns), *moments)


def acceptance(found: Fingerprint, wanted: Fingerprint, environment: tasks.Environment) -> list[str]:
    """What keeps a medium-replay reconstruction from being accepted, as sentences; empty if nothing does."""

    def score(value: float) -> float:
        return tasks.normalise(value, environment.ref_min_score, environment.ref_max_score)

    faults = []
    if found.transitions != wanted.transitions:
        faults.append(f"it has {found.transitions} transitions, D4RL's has {wanted.transitions}")
    if abs(score(found.mean) / score(wanted.mean) - 1) > 0.15:
        faults.append(f"mean normalised return {score(found.mean):.1f} is not within 15% of {score(wanted.mean):.1f}")
    if not 0.80 <= found.max / wanted.max <= 1.15:
        faults.append(f"maximum {found.max:.0f} is not between 80% and 115% of {wanted.max:.0f}")
    return faults


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
    length = np.zeros(lanes, int)
    for t in range(steps):
        noise_shape = (lanes, batch.action_dim)
        if policy is None:
            actions = rng.uniform(-1, 1, noise_shape).astype(np.float32)
        else:
            actions = sac.act(policy, observations, rng.standard_normal(noise_shape, np.float32))
        qpos, qvel = batch.state(everyone)
        next_observations, rewards, terminated = batch.step(everyone, actions)
        length += 1
        truncated = ((length == batch.max_steps) | (t == steps - 1)) & ~terminated
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
        length[ended] = 0
        if t % 100 == 99 or t == steps - 1:
            progress(lanes * (t % 100 + 1))
    # Environment by environment, so that episodes are whole.
    return _episodes({k: np.concatenate(np.swapaxes(np.array(v), 0, 1)) for k, v in columns.items()})


def concatenate(first: Episodes, second: Episodes) -> Episodes:
    """The episodes of ``first``, then those of ``second``."""
    joined = {k: np.concatenate([getattr(first, k), getattr(second, k)]) for k in Episodes._fields if k != "starts"}
    return Episodes(**joined, starts=np.concatenate([first.starts, first.starts[-1] + second.starts[1:]]))


# --- the command -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """What to collect."""

    env: str
    """Task to reconstruct: {hopper,halfcheetah,walker2d}-{random,medium,expert,medium-replay,medium-expert}."""
    seed: int | None = None
    """Seed of everything; by default that of the embedded data."""
    updates_per_step: float | None = None
    """SAC updates per environment step; by default the value that gives D4RL's fingerprint."""
    expert_steps: int = 1_000_000
    """Environment steps after which SAC counts as finished (expert, medium-expert)."""
    work: Path | None = None
    """Folder of checkpoints; a stopped collection continues from it. Default: ~/.cache/iwsft_control/collect."""
    unpack: bool = False
    """Collect nothing: write the embedded reconstruction of this task into the local Minari root."""
    embed: Path | None = None
    """Also pack the accepted data set into this folder and its manifest (how the embedded data are made)."""


def main(config: CollectConfig) -> None:
    """Collect (or continue to collect) one data set, hold it against D4RL's and write it as a Minari data set."""
    task = tasks.parse_task(config.env)
    name = task.environment.name
    require(
        name in SAC_CONFIGS and task.level != "full-replay",
        f"{task.name} is not reconstructed here; use one of {', '.join(SAC_CONFIGS)} with random, medium, expert, "
        "medium-replay or medium-expert.",
    )
    if config.unpack:
        _unpack(task)
        return
    require(config.updates_per_step is None or config.updates_per_step > 0, "--updates-per-step must be positive.")
    require(config.expert_steps >= ITERATION_STEPS, f"--expert-steps must be at least {ITERATION_STEPS}.")
    folder = dataset.minari_path(task.reconstruction_id)
    require(not folder.exists(), f"{folder} exists already; delete it to collect {task.name} again.")
    cli.cache_compiled_programs()
    seed = EMBEDDED_SEEDS[name] if config.seed is None else config.seed
    sac_config = SAC_CONFIGS[name]
    if config.updates_per_step is not None:
        sac_config = dataclasses.replace(sac_config, updates_per_step=config.updates_per_step)
    work = config.work or dataset.cache_home() / "collect"
    cli.writable(work)

    episodes = _collect(task, sac_config, seed, config.expert_steps, work)
    found, wanted = fingerprint(episodes), tasks.D4RL_MEDIUM_REPLAY.get(name)
    report(task, episodes, found)
    if task.level == "medium-replay" and wanted is not None:
        faults = acceptance(found, wanted, task.environment)
        if faults:
            print(
                f"not accepted: {'; '.join(faults)}. Nothing was written; try another --seed or --updates-per-step.",
                file=sys.stderr,
            )
            sys.exit(1)
        cli.console.print("accepted: it meets D4RL's fingerprint.")
    metadata = _metadata(task, sac_config, seed, found)
    written = dataset.write_minari(task.reconstruction_id, episodes, task.environment.env_id, metadata)
    cli.console.print(f"written: {task.reconstruction_id} in {written}")
    if config.embed is not None:
        embed(config.embed, task, episodes, dict(metadata))


def _collect(task: Task, config: sac.SACConfig, seed: int, expert_steps: int, work: Path) -> Episodes:
    env_id, name = task.environment.env_id, task.environment.name
    medium_steps = tasks.D4RL_MEDIUM_REPLAY[name].transitions

    def fixed(level: str) -> Episodes:
        policy = None
        if level != "random":
            steps = medium_steps if level == "medium" else expert_steps
            policy = jax.tree.map(np.asarray, _train(env_id, config, seed, steps, medium_steps, work).learner.policy)
        with cli.progress_bar() as bar:
            line = bar.add_task(f"{level} policy", total=ROLLOUT_STEPS)
            stream = [seed, STREAMS[level]]
            return rollout(env_id, policy, ROLLOUT_STEPS, stream, lambda n: bar.advance(line, n))

    if task.level == "medium-replay":
        return _train(env_id, config, seed, medium_steps, medium_steps, work).episodes()
    if task.level == "medium-expert":
        return concatenate(fixed("medium"), fixed("expert"))
    return fixed(task.level)


def _train(env_id: str, config: sac.SACConfig, seed: int, steps: int, medium_steps: int, work: Path) -> Run:
    """SAC's run up to ``steps``, continued from the furthest checkpoint; the one at the medium level is kept."""
    run = Run(env_id, config, seed, steps)
    slug = f"{env_id.split('/')[1]}-seed{seed}-u{config.updates_per_step:g}"
    finished, current = work / f"{slug}-{steps}.safetensors", work / f"{slug}-current.safetensors"
    medium = work / f"{slug}-{medium_steps}.safetensors"
    candidates = [finished, current, medium] if steps > medium_steps else [finished, current]
    for checkpoint in candidates:
        if checkpoint.is_file() and _steps_of(checkpoint) <= steps:
            run.load(checkpoint)
            break
    with cli.progress_bar() as bar:
        line = bar.add_task("SAC", total=steps, completed=run.steps)
        while run.steps < steps:
            run.iterate()
            returns = run.returns()[-10:]
            bar.update(line, completed=run.steps, description=f"SAC, last 10 returns {returns.mean():.0f}")
            if run.steps in (steps, medium_steps):
                run.save(work / f"{slug}-{run.steps}.safetensors")
            elif run.steps % CHECKPOINT_STEPS == 0:
                run.save(current)
    return run


def _steps_of(checkpoint: Path) -> int:
    return int(files.read_metadata(checkpoint).get("steps", 0))


def report(task: Task, episodes: Episodes, found: Fingerprint) -> None:
    """Print the fingerprint beside D4RL's, where it is known, and a histogram of episode returns."""
    environment = task.environment
    wanted = tasks.D4RL_MEDIUM_REPLAY.get(environment.name) if task.level == "medium-replay" else None
    table = Table("", "here", "D4RL", title=f"{task.reconstruction_id}: a reconstruction")
    for field in dataclasses.fields(Fingerprint):
        here, there = getattr(found, field.name), getattr(wanted, field.name, None)
        table.add_row(field.name, f"{here:,.6g}", f"{there:,.6g}" if there is not None else "-")
    lo, hi = environment.ref_min_score, environment.ref_max_score
    there = f"{tasks.normalise(wanted.mean, lo, hi):.1f}" if wanted else "-"
    table.add_row("mean normalised", f"{tasks.normalise(found.mean, lo, hi):.1f}", there)
    returns = np.add.reduceat(episodes.rewards.astype(np.float64), episodes.starts[:-1])
    last = returns[-max(1, len(returns) // 10) :]
    table.add_row("mean of the last tenth", f"{last.mean():.0f}", f"medium level {environment.medium_return}")
    cli.console.print(table)
    counts, edges = np.histogram(returns, bins=10)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        cli.console.print(f"{low:8.0f} to {high:6.0f} {count:6d} {'#' * int(np.ceil(50 * count / counts.max()))}")


def _metadata(task: Task, config: sac.SACConfig, seed: int, found: Fingerprint) -> dict[str, Any]:
    return {
        "ref_min_score": task.environment.ref_min_score,
        "ref_max_score": task.environment.ref_max_score,
        "algorithm_name": "SAC",
        "author": ["iwsft_control"],
        "description": f"A reconstruction of D4RL's {task.name}-v2 by D4RL's protocol, not D4RL's own data.",
        "reconstruction": True,
        "seed": seed,
        "generation_config": dataclasses.asdict(config),
        "physics": physics.describe(task.environment.env_id),
        "fingerprint": dataclasses.asdict(found),
        "versions": {p: importlib.metadata.version(p) for p in ("mujoco", "gymnasium", "jax", "numpy", "minari")},
    }


def embed(folder: Path, task: Task, episodes: Episodes, metadata: dict[str, Any]) -> None:
    """Pack a data set into ``folder`` and enter its size and sha256 into the manifest there."""
    path = folder / f"{task.name}-v0.hdf5"
    environment = {"env_spec": dataset.environment_spec(task.environment.env_id)}
    dataset.pack(path, episodes, {"dataset_id": task.reconstruction_id, **environment, **metadata})
    manifest = folder / "manifest.json"
    entries = dataset.read_manifest(manifest)
    entries[task.reconstruction_id] = {
        "file": path.name,
        "sha256": files.sha256(path),
        "bytes": path.stat().st_size,
    }
    files.write_json(manifest, dict(sorted(entries.items())))
    cli.console.print(f"packed: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _unpack(task: Task) -> None:
    identity = task.reconstruction_id
    if identity not in dataset.embedded_manifest():
        raise UserError(f"{identity} is not embedded; run 'python -m iwsft_control.collect --env {task.name}' instead.")
    episodes, metadata = dataset.read_embedded(identity)
    metadata = {k: v for k, v in metadata.items() if k not in ("dataset_id", "env_spec")}
    written = dataset.write_minari(identity, episodes, task.environment.env_id, metadata)
    cli.console.print(f"written: {identity} in {written}")


if __name__ == "__main__":
    cli.command(CollectConfig, main, "python -m iwsft_control.collect", __doc__)
