"""Offline continuous-control RL by supervised fine-tuning on curated data.

Importing the package registers D4RL's environments (``d4rl/Hopper-v2``, ...) with Gymnasium; everything else is
imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from iwsft_control.envs.registration import register

__all__ = [
    "Recorder",
    "Run",
    "TrainedPolicy",
    "UserError",
    "__version__",
    "evaluate",
    "from_arrays",
    "load",
    "load_policy",
    "load_results",
    "method_names",
    "record_video",
    "train",
]

_PLACES = {
    "iwsft_control.api": ("Run", "evaluate", "load", "method_names", "record_video", "train"),
    "iwsft_control.base.errors": ("UserError",),
    "iwsft_control.datasets.arrays": ("from_arrays",),
    "iwsft_control.envs.evaluation": ("Recorder",),
    "iwsft_control.networks.policies": ("TrainedPolicy", "load_policy"),
    "iwsft_control.report.frame": ("load_results",),
}
_PLACE_OF = {name: module for module, names in _PLACES.items() for name in names}
if TYPE_CHECKING:
    from iwsft_control.api import Run, evaluate, load, method_names, record_video, train
    from iwsft_control.base.errors import UserError
    from iwsft_control.datasets.arrays import from_arrays
    from iwsft_control.envs.evaluation import Recorder
    from iwsft_control.networks.policies import TrainedPolicy, load_policy
    from iwsft_control.report.frame import load_results

    __version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from iwsft_control.base.versions import version

        return version(__name__)
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACE_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACE_OF, "__version__"]


register()
