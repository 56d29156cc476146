"""D4RL's environments by name: registered with Gymnasium, and MuJoCo is imported when one of them is made."""

from __future__ import annotations

import gymnasium as gym

MAX_EPISODE_STEPS = 1000
CLASSES = {
    "d4rl/Hopper-v2": "HopperEnv",
    "d4rl/HalfCheetah-v2": "HalfCheetahEnv",
    "d4rl/Walker2d-v2": "Walker2dEnv",
    "d4rl/Ant-v2": "AntEnv",
}


def register() -> None:
    """Register the four environments of :mod:`.physics` with Gymnasium (done by ``import iwsft_control``)."""
    for env_id, name in CLASSES.items():
        if env_id not in gym.registry:
            place = f"iwsft_control.envs.physics:{name}"
            gym.register(env_id, entry_point=place, max_episode_steps=MAX_EPISODE_STEPS)
