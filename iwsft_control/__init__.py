"""Offline continuous-control RL by supervised fine-tuning on curated data.

Importing the package registers D4RL's environments (``d4rl/Hopper-v2``, ...) with Gymnasium.
"""

from iwsft_control.envs import physics

__all__ = ["load_policy"]

physics.register()
