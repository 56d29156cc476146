"""How close is the physics to D4RL's? One-step errors on real D4RL rows, and returns of D4RL's behaviour policies.

    iwsft d4rl download hopper-medium --folder d4rl   # and halfcheetah-medium, walker2d-medium
    python experiments/fidelity.py --d4rl d4rl

D4RL's files hold rows with qpos and qvel, and the weights of the policy that made them. Small pieces of them do as well
(``hopper_medium-v2_subset.npz``, of the same names). A figure outside its bound makes the exit code 1.
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
from iwsft_control.base.errors import UserError, require
from iwsft_control.datasets import d4rl_files, hdf5
from iwsft_control.envs import evaluation, tasks
from iwsft_control.networks import policies
from iwsft_control.networks.policies import Exported, Policy
from iwsft_control.report import formats

HEADER = [
    "environment",
    "real rows",
    "max. error: observation",
    "reward",
    "Gymnasium's own -v5: observation, reward",
    "published mean return",
    "here",
    "deviation (standard errors)",
]
STOCK = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5"}
MAX_ERROR = 1e-4  # of observation and reward
MAX_DEVIATION = 2.5  # standard errors of the difference of a behaviour policy's mean return and the published one
POLICY, LAYERS = "metadata/policy", ("fc0", "fc1", "last_fc", "last_fc_log_std")
POLICY_KEYS = [f"{POLICY}/{layer}/{part}" for layer in LAYERS for part in ("weight", "bias")]
ROW_KEYS = ("actions", "rewards", "next_observations", "infos/qpos", "infos/qvel")
ROWS = 2_000  # of a whole file that are stepped
MEDIUM_EPISODES = {"hopper": 2186, "halfcheetah": 1000, "walker2d": 1190}  # that the published means are of


@dataclasses.dataclass(frozen=True)
class FidelityConfig:
    """What to check."""

    d4rl: Path
    """Folder with D4RL's <env>_medium-v2.hdf5 files, or <env>_medium-v2_subset.npz."""
    episodes: Annotated[int, TWO_OR_MORE] = 400
    """Episodes of each behaviour policy."""
    first_seed: Annotated[int, NOT_NEGATIVE] = evaluation.FIRST_RESET_SEED
    """Of their resets; another one gives other episodes."""
    out: Path = Path("results/bench")
    """Folder of the table, fidelity.md."""


def piece_path(folder: Path, name: str) -> Path:
    """Where D4RL's file of a medium policy lies, or a piece of it.

    Raises:
        UserError: there is neither.
    """
    task = tasks.parse_task(f"{name}-medium")
    whole, piece = folder / d4rl_files.file_name(task), folder / f"{name}_medium-v2_subset.npz"
    found = whole if whole.is_file() else piece
    there = zipfile.is_zipfile(piece) or whole.is_file()
    require(there, f"{folder} holds no {whole.name}; 'iwsft d4rl download {task.name} --folder {folder}' fetches it.")
    return found


def load_piece(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The first rows of a D4RL file, and the weights of its policy.

    Raises:
        UserError: the file is not there or lacks something.
    """
    path = piece_path(folder, name)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    try:
        with hdf5.open_file(path) as file:
            found = hdf5.arrays(file, [*ROW_KEYS, *POLICY_KEYS], str(path))
    except OSError as error:
        raise UserError(f"{path} is not HDF5 ({error}); delete it and fetch it again.") from error
    return {key: values[:ROWS] if key in ROW_KEYS else values for key, values in found.items()}


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
    first, second, *heads = [(piece[f"{POLICY}/{layer}/weight"].T, piece[f"{POLICY}/{layer}/bias"]) for layer in LAYERS]
    net = {f"Dense_{i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate((first, second))}
    kernels, biases = zip(*heads, strict=True)  # of mean and log standard deviation
    net["Dense_2"] = {"kernel": np.concatenate(kernels, axis=1), "bias": np.concatenate(biases)}
    return {"params": {"net": net}}


def behaviour_policy(piece: Mapping[str, np.ndarray]) -> Policy:
    """The recorded SAC policy, with sampled actions as when the data were recorded."""
    return policies.make(Exported(behaviour_parameters(piece), "sampled-tanh-gaussian"))


def main(config: FidelityConfig) -> None:
    """Print and write the table."""
    bounds.check(config, "")
    for name in STOCK:
        piece_path(config.d4rl, name)
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
