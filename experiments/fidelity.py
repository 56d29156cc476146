"""How close is the physics to D4RL's? One-step errors on real D4RL rows, and returns of D4RL's behaviour policies.

    python experiments/fidelity.py --d4rl ../shared/d4rl

needs small pieces of D4RL v2 (``<env>_medium-v2_subset.npz``: rows with qpos and qvel, and the policy's weights); they
are not part of this repository. A figure outside its bound makes the exit code 1.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
from rich.table import Table

from iwsft_control.base import console
from iwsft_control.base.errors import require
from iwsft_control.envs import evaluation, tasks
from iwsft_control.networks import policies
from iwsft_control.networks.policies import Exported, Policy

STOCK = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5"}
MAX_ERROR = 1e-4  # of observation and reward
MAX_DEVIATION = 2.5  # standard errors of the difference of a behaviour policy's mean return and the published one
MEDIUM_EPISODES = {"hopper": 2186, "halfcheetah": 1000, "walker2d": 1190}  # that the published means are of


@dataclasses.dataclass(frozen=True)
class FidelityConfig:
    """What to check."""

    d4rl: Path
    """Folder with the <env>_medium-v2_subset.npz files."""
    episodes: int = 400
    """Episodes of each behaviour policy."""


def load_piece(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Arrays of one piece of D4RL."""
    with np.load(folder / f"{name}_medium-v2_subset.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def replayable(name: str, piece: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows whose recorded velocities were not clipped to +-10 (HalfCheetah's never were)."""
    if name == "halfcheetah":
        return np.arange(len(piece["actions"]))
    return np.flatnonzero((np.abs(piece["infos/qvel"]) < 10).all(axis=1))


def one_step_errors(env_id: str, name: str, piece: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Largest absolute error of the next observation and error of the reward, for every replayable row, (R,) each."""
    env = gym.make(env_id).unwrapped
    env.reset(seed=0)
    errors = []
    for row in replayable(name, piece):
        mujoco.mj_resetData(env.model, env.data)  # type: ignore[attr-defined]
        env.set_state(piece["infos/qpos"][row], piece["infos/qvel"][row])  # type: ignore[attr-defined]
        observation, reward, *_ = env.step(piece["actions"][row])
        errors.append(
            (
                np.abs(observation - piece["next_observations"][row]).max(),
                abs(float(reward) - float(piece["rewards"][row])),
            )
        )
    observation_errors, reward_errors = np.array(errors).T
    return observation_errors, reward_errors


def behaviour_policy(piece: Mapping[str, np.ndarray]) -> Policy:
    """The recorded SAC policy, with sampled actions as when the data were recorded."""
    layers = ("fc0", "fc1")
    heads = [piece[f"metadata/policy/{h}/{k}"] for h in ("last_fc", "last_fc_log_std") for k in ("weight", "bias")]
    net = {
        f"Dense_{i}": {"kernel": piece[f"metadata/policy/{k}/weight"].T, "bias": piece[f"metadata/policy/{k}/bias"]}
        for i, k in enumerate(layers)
    }
    net["Dense_2"] = {"kernel": np.concatenate(heads[::2]).T, "bias": np.concatenate(heads[1::2])}
    return policies.make(Exported({"params": {"net": net}}, "sampled-tanh-gaussian"))


def main(config: FidelityConfig) -> None:
    """Print both tables."""
    require(
        (config.d4rl / "hopper_medium-v2_subset.npz").is_file(),
        f"{config.d4rl} holds no <env>_medium-v2_subset.npz; give the folder that does.",
    )
    failures = []
    steps = Table("environment", "rows", "observation: median", "max", "reward: max", title="one step from real rows")
    for name, stock in STOCK.items():
        piece = load_piece(config.d4rl, name)
        for env_id in (tasks.ENVIRONMENTS[name].env_id, stock):
            observation, reward = one_step_errors(env_id, name, piece)
            cells = [f"{x:.1e}" for x in (np.median(observation), observation.max(), reward.max())]
            steps.add_row(env_id, f"{len(observation)} of {len(piece['actions'])}", *cells)
            if env_id != stock and max(observation.max(), reward.max()) > MAX_ERROR:
                failures.append(f"{env_id}: one-step error above {MAX_ERROR}")
    console.console.print(steps)
    returns = Table(
        "environment", "published", "here", "standard error", "deviation (s.e.)", title="D4RL's behaviour policies"
    )
    for name in STOCK:
        environment = tasks.ENVIRONMENTS[name]
        assert environment.medium_return is not None
        policy = behaviour_policy(load_piece(config.d4rl, name))
        found = evaluation.evaluate(policy, environment.env_id, config.episodes, name="behaviour policy")
        error = found.std(ddof=1) / np.sqrt(len(found))
        # The published mean is of a finite number of episodes of the same policy: it has an error too.
        of_difference = found.std(ddof=1) * np.sqrt(1 / len(found) + 1 / MEDIUM_EPISODES[name])
        deviation = (found.mean() - environment.medium_return) / of_difference
        returns.add_row(
            environment.env_id,
            f"{environment.medium_return:.0f}",
            f"{found.mean():.0f}",
            f"{error:.0f}",
            f"{deviation:+.2f}",
        )
        if abs(deviation) > MAX_DEVIATION:
            failures.append(f"{environment.env_id}: {deviation:+.2f} standard errors from the published mean")
    console.console.print(returns)
    if failures:
        print("outside its bound: " + "; ".join(failures), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    console.command(lambda: FidelityConfig, main, "python experiments/fidelity.py", __doc__)
