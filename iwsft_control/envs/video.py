"""Videos of policies: an episode played in Gymnasium's renderer and written by imageio."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import threadpoolctl
from gymnasium.envs.registration import EnvSpec

from iwsft_control.base.errors import UserError, is_whole, require
from iwsft_control.base.files import atomic_path
from iwsft_control.envs.evaluation import FIRST_RESET_SEED, LANE, check_actions
from iwsft_control.envs.specs import id_of
from iwsft_control.networks.policies import Policy, as_policy, observe

FRAMES_PER_SECOND = 30  # at most; faster environments leave frames out
KINDS = (".mp4", ".gif")


def choose_renderer() -> None:
    """Let MuJoCo draw without a screen by what this machine has; who has set MUJOCO_GL, or has a screen, is left alone.

    Must come before the first environment that draws.
    """
    if sys.platform == "linux" and not any(os.environ.get(v) for v in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")):
        for name in ("EGL", "OSMesa"):
            if ctypes.util.find_library(name):
                os.environ["MUJOCO_GL"] = name.lower()
                return


def record_video(
    policy: Policy | Callable[[np.ndarray], np.ndarray],
    environment: str | EnvSpec,
    path: str | Path,
    *,
    seed: int = FIRST_RESET_SEED,
    steps: int | None = None,
    size: int = 480,
) -> float:
    """Play one episode and write it as a video: :func:`iwsft_control.api.record_video`, in an environment."""
    path = Path(path)
    for name, value in (("size", size), ("steps", 1 if steps is None else steps)):
        require(is_whole(value) and value > 0, f"{name} must be a whole number above zero: {value!r}.")
    known = isinstance(seed, int | np.integer) and 0 <= seed < 2**32
    require(known, f"seed must be a whole number between 0 and {2**32 - 1}: {seed!r}.")
    require(path.suffix in KINDS, f"{path} is not {' or '.join(KINDS)}; give a name that ends so.")
    require(
        path.suffix != ".mp4" or encodes_mp4(),
        f"nothing here encodes {path}; pip install 'imageio[ffmpeg]', or give a name that ends in .gif.",
    )
    frames, seconds, total = play(policy, environment, seed=seed, steps=steps, size=size)
    write(path, frames, seconds)
    return total


def encodes_mp4() -> bool:
    """Whether imageio's encoder is installed, without which .gif is what can be written."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def play(
    policy: Policy | Callable[[np.ndarray], np.ndarray],
    environment: str | EnvSpec,
    *,
    seed: int = FIRST_RESET_SEED,
    steps: int | None = None,
    size: int = 480,
) -> tuple[list[np.ndarray], float, float]:
    """One episode: its frames (size, size, 3) uint8, the seconds from one to the next, and its return.

    Raises:
        UserError: nothing here draws.
    """
    from iwsft_control.envs.batch import make_batch

    choose_renderer()
    acting = as_policy(policy)
    batch = make_batch(environment, 1)
    try:
        env = _drawable(environment, size)
        follow(env)
    except Exception as error:  # whatever the drivers of a display raise
        raise _undrawn(environment, error) from error
    observation, _ = env.reset(seed=int(seed))
    try:
        frames = [_frame(env)]
    except Exception as error:
        raise _undrawn(environment, error) from error
    rate = float(env.metadata.get("render_fps", FRAMES_PER_SECOND))
    every = max(1, round(rate / FRAMES_PER_SECOND))
    # An evaluation's number of rows, and its one thread: other products round otherwise, and a gait may end elsewhere.
    carry, key, total, step, over = acting.initial(LANE), np.random.default_rng(seed), 0.0, 0, False
    last = min(batch.max_steps, batch.max_steps if steps is None else steps)  # who has no time limit is cut, too
    with threadpoolctl.threadpool_limits(1, "blas"):
        while not over and step < last:
            rows = np.repeat(np.asarray(observation, np.float32)[None], LANE, axis=0)
            actions, carry = acting.act(carry, rows, key)
            actions = check_actions(actions, batch.action_dim, np.full(LANE, seed), "policy, reset seed ", step)
            action = batch.action_box.from_unit(actions)[0].astype(env.action_space.dtype or np.float32)
            observation, reward, terminated, truncated, _ = env.step(action)
            carry = observe(acting, carry, np.full(LANE, reward))
            total, step, over = total + float(reward), step + 1, terminated or truncated
            if step % every == 0:
                frames.append(_frame(env))
    env.close()
    return frames, every / rate, total


def _undrawn(environment: str | EnvSpec, error: Exception) -> UserError:
    absent = isinstance(error, gym.error.DependencyNotInstalled)  # a package that the environment draws with
    remedy = "try a smaller size, install EGL or OSMesa (libegl1, libosmesa6), or set MUJOCO_GL"
    if "render_mode" in str(error) or "render mode" in str(error):
        absent, remedy = False, "it must have the render mode rgb_array"
    return UserError(
        f"nothing here draws {id_of(environment)} ({type(error).__name__}: {error}); "
        f"{'install that' if absent else remedy}."
    )


def follow(env: Any) -> None:
    """Let MuJoCo draw by the model's camera "track", which follows the body; Gymnasium's free camera stays behind."""
    renderer, model = (getattr(env.unwrapped, name, None) for name in ("mujoco_renderer", "model"))
    if renderer is not None and model is not None:
        names = [model.camera(i).name for i in range(model.ncam)]
        if "track" in names and renderer.camera_id in (None, -1):
            renderer.camera_id = names.index("track")


def _drawable(environment: str | EnvSpec, size: int) -> gym.Env:
    try:
        return gym.make(environment, render_mode="rgb_array", width=size, height=size)
    except TypeError:  # what is not MuJoCo's has a size of its own
        return gym.make(environment, render_mode="rgb_array")


def _frame(env: Any) -> np.ndarray:
    frame = np.asarray(env.render())
    if frame.ndim != 3:
        raise ValueError("it gives no picture")
    return frame


def write(path: Path, frames: list[np.ndarray], seconds: float) -> None:
    """Write frames (H, W, 3), ``seconds`` from one to the next, as .mp4 or .gif.

    Raises:
        UserError: imageio is missing, or the folder cannot be written.
    """
    try:
        import imageio.v3 as imageio
    except ImportError as error:
        raise UserError("imageio is not installed; pip install imageio.") from error
    options: dict[str, Any] = {"fps": 1 / seconds} if path.suffix == ".mp4" else {"duration": 1000 * seconds, "loop": 0}
    try:
        encoded = imageio.imwrite("<bytes>", np.stack(frames), extension=path.suffix, **options)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"cannot make {path} ({error}); give a name that ends in .gif.") from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)
