"""Versions of packages, as results and data sets name them."""

from __future__ import annotations

import importlib.metadata
from functools import cache

SCORING = ("iwsft_control", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "mujoco", "minari")


@cache
def version(package: str) -> str:
    """Of a package; "not installed" for one that was only found on the path, as a checkout may be.

    Finding it takes milliseconds, and keys of stages are made by the hundred.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # of results the commit tells the rest
        return "not installed"
