"""How close is the physics to D4RL's? One-step errors on real D4RL rows, and returns of D4RL's behaviour policies.

    python experiments/fidelity.py --d4rl ../shared/d4rl

needs small pieces of D4RL v2 (``<env>_medium-v2_subset.npz``: rows with qpos and qvel, and the policy's weights); they
are not part of this repository. A figure outside its bound makes the exit code 1.
"""

from __future__ import annotations

import dataclasses
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import mujoco
import numpy as np

from iwsft_control.base import bounds, console, files
from iwsft_control.base.bounds import NOT_NEGATIVE, TWO_OR_MORE
from iwsft_control.base.errors import require
from iwsft_control.envs import evaluation, tasks
from iwsft_control.networks import policies
from iwsft_control.networks.policies import Exported, Policy
from iwsft_control.report import formats

HEADER = [
    "environment",
    "real rows",
    "max. error: observation",
    "reward",
    "both, stock",
    "published mean return",
    "here",
    "deviation (standard errors)",
]
STOCK = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5"}
MAX_ERROR = 1e-4  # of observation and reward
MAX_DEVIATION = 2.5  # standard errors of the difference of a behaviour policy's mean return and the published one
MEDIUM_EPISODES = {"hopper": 2186, "halfcheetah": 1000, "walker2d": 1190}  # that the published means are of


@dataclasses.dataclass(frozen=True)
class FidelityConfig:
    """What to check."""

    d4rl: Path
    """Folder with the <env>_medium-v2_subset.npz files."""
    episodes: Annotated[int, TWO_OR_MORE] = 400
    """Episodes of each behaviour policy."""
    first_seed: Annotated[int, NOT_NEGATIVE] = evaluation.FIRST_RESET_SEED
    """Of their resets; another one gives other episodes."""
    out: Path = Path("results/bench")
    """Folder of the table, fidelity.md."""


def piece_path(folder: Path, name: str) -> Path:
    """Where one piece of D4RL lies."""
    return folder / f"{name}_medium-v2_subset.npz"


def require_piece(folder: Path, name: str) -> None:
    """Make sure that one piece of D4RL is there.

    Raises:
        UserError: it is not, or no .npz file.
    """
    path = piece_path(folder, name)
    require(zipfile.is_zipfile(path), f"{path} is not there or no .npz file; give the folder that holds all three.")


def load_piece(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Arrays of one piece of D4RL."""
    with np.load(piece_path(folder, name), allow_pickle=False) as file:
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


def behaviour_parameters(piece: Mapping[str, np.ndarray]) -> Any:
    """The recorded SAC policy's parameters."""
    layers = ("fc0", "fc1")
    heads = [piece[f"metadata/policy/{h}/{k}"] for h in ("last_fc", "last_fc_log_std") for k in ("weight", "bias")]
    net = {
        f"Dense_{i}": {"kernel": piece[f"metadata/policy/{k}/weight"].T, "bias": piece[f"metadata/policy/{k}/bias"]}
        for i, k in enumerate(layers)
    }
    net["Dense_2"] = {"kernel": np.concatenate(heads[::2]).T, "bias": np.concatenate(heads[1::2])}
    return {"params": {"net": net}}


def behaviour_policy(piece: Mapping[str, np.ndarray]) -> Policy:
    """The recorded SAC policy, with sampled actions as when the data were recorded."""
    return policies.make(Exported(behaviour_parameters(piece), "sampled-tanh-gaussian"))


def main(config: FidelityConfig) -> None:
    """Print and write the table."""
    bounds.check(config, "")
    for name in STOCK:
        require_piece(config.d4rl, name)
    console.writable(config.out)
    failures, rows = [], []
    for name, stock in STOCK.items():
        environment, piece = tasks.ENVIRONMENTS[name], load_piece(config.d4rl, name)
        assert environment.medium_return is not None
        observation, reward = one_step_errors(environment.env_id, name, piece)
        theirs = one_step_errors(stock, name, piece)
        if max(observation.max(), reward.max()) > MAX_ERROR:
            failures.append(f"{environment.env_id}: one-step error above {MAX_ERROR}")
        policy = behaviour_policy(piece)
        found = evaluation.evaluate(
            policy, environment.env_id, config.episodes, name="behaviour policy", first_seed=config.first_seed
        )
        error = found.std(ddof=1) / np.sqrt(len(found))
        # The published mean is of a finite number of episodes of the same policy: it has an error too.
        of_difference = found.std(ddof=1) * np.sqrt(1 / len(found) + 1 / MEDIUM_EPISODES[name])
        deviation = (found.mean() - environment.medium_return) / of_difference
        if not abs(deviation) <= MAX_DEVIATION:
            failures.append(f"{environment.env_id}: {deviation:+.2f} standard errors from the published mean")
        errors = [f"{x:.1e}" for x in (observation.max(), reward.max())]
        stocks = ", ".join(f"{x.max():.1e}" for x in theirs)
        returns = [f"{environment.medium_return:.0f}", f"{found.mean():.0f} ± {error:.0f}", f"{deviation:+.2f}"]
        rows.append([name, f"{len(observation)} of {len(piece['actions'])}", *errors, stocks, *returns])
    console.print_table(HEADER, rows)
    files.write_text(config.out / "fidelity.md", formats.markdown_table(HEADER, rows) + "\n")
    if failures:
        print("outside its bound: " + "; ".join(failures), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    console.command(lambda: FidelityConfig, main, "python experiments/fidelity.py", __doc__)
