"""Offline continuous-control RL by supervised fine-tuning on curated data.

Importing the package registers D4RL's environments (``d4rl/Hopper-v2``, ...) with Gymnasium; everything else is
imported when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from iwsft_control.envs.registration import register

__all__ = ["Recorder", "evaluate", "load", "load_policy", "method_names", "train"]

_PLACES = dict.fromkeys(("evaluate", "load", "method_names", "train"), "iwsft_control.api")
_PLACES["Recorder"] = "iwsft_control.envs.evaluation"
_PLACES["load_policy"] = "iwsft_control.networks.policies"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]


register()
