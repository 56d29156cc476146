"""Offline continuous-control RL by supervised fine-tuning on curated data.

Importing the package registers D4RL's environments (``d4rl/Hopper-v2``, ...) with Gymnasium.
"""

from iwsft_control import physics
from iwsft_control.networks import load_policy

__all__ = ["load_policy"]

physics.register()
