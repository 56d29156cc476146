"""One result file per run: what was run on what, and every evaluation episode's return.

The file is JSON; its fields are those of :class:`RunResult`. Files are written atomically and checked when read.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from iwsft_control.base.errors import UserError
from iwsft_control.base.files import write_json

SCHEMA = 1
KEYS = {  # that tables and figures read
    "dataset": ("id", "sha256", "origin", "transitions", "episodes"),
    "physics": ("environment", "mujoco", "corrections"),
    "evaluation": ("ref_min_score", "ref_max_score"),
    "diagnostics": ("training",),
    "versions": ("jax",),
}


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Schema of a result file."""

    schema: int
    """Version of this schema."""
    task: str
    """Task name, or the data set id where a run was given no task."""
    method: str
    """Name of the method, as on the command line."""
    quality: str | None
    """What scored the data: q or return; null for methods without a quality."""
    seed: int
    """Seed of initialisation, batches and critics."""
    quick: bool
    """A short trial (--quick): never part of a table."""
    dataset: dict[str, Any]
    """id, sha256 (of the content), origin (D4RL, reconstruction, Minari), transitions, episodes."""
    physics: dict[str, Any]
    """environment, mujoco (version), corrections (active ones)."""
    evaluation: dict[str, Any]
    """first_reset_seed, ref_min_score, ref_max_score, policy (what was evaluated)."""
    episode_returns: list[float]
    """Undiscounted return of every evaluation episode, in the order of reset seeds."""
    normalised_score: float
    """Mean of 100 (R - min) / (max - min) over the episodes."""
    standard_error: float
    """Of that mean over the episodes of this run (not over seeds)."""
    config: dict[str, Any]
    """Every hyper-parameter of the run."""
    diagnostics: dict[str, Any]
    """Logs along training, curation sizes, the score of the BC start."""
    seconds: dict[str, float]
    """Wall time of each stage."""
    versions: dict[str, str]
    """Python and the packages."""
    device: str
    """What it was trained on."""
    git_commit: str | None
    """Commit of the code, with "-dirty" if it was changed; null outside a checkout."""


def score(returns: np.ndarray, ref_min_score: float, ref_max_score: float) -> tuple[float, float]:
    """Mean normalised score over episodes and its standard error (0 for a single episode)."""
    scores = 100 * (np.asarray(returns) - ref_min_score) / (ref_max_score - ref_min_score)
    error = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else 0.0
    return float(scores.mean()), float(error)


def write(path: Path, result: RunResult) -> None:
    """Write a result file atomically.

    Raises:
        UserError: the folder cannot be written.
    """
    write_json(path, dataclasses.asdict(result))


def read(path: Path) -> RunResult:
    """Read and check a result file.

    Raises:
        UserError: no such file, not JSON, of another schema, or a field is missing, unknown or of the wrong type.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path.") from error
    except ValueError as error:
        raise UserError(f"{path} is not a result file ({error}); run it again.") from error
    fields = {f.name: f for f in dataclasses.fields(RunResult)}
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a result file of schema {SCHEMA}; run it again with this version.")
    different = sorted(set(values) ^ set(fields))
    if different:
        raise UserError(f"{path} has missing or unknown fields ({', '.join(different)}); run it again.")
    types: dict[str, Any] = {
        "str": str, "str | None": (str, type(None)), "int": int, "bool": bool, "float": (int, float), "list": list
    }  # fmt: skip
    for name, field in fields.items():
        expected = types.get(str(field.type), types.get(str(field.type).split("[")[0], dict))
        if not isinstance(values[name], expected):
            raise UserError(f"{path}: {name} should be {field.type}; run it again.")
    for name, keys in KEYS.items():
        missing = sorted(set(keys) - set(values[name]))
        if missing:
            raise UserError(f"{path}: {name} lacks {', '.join(missing)}; run it again.")
    returns, evaluation = values["episode_returns"], values["evaluation"]
    if not returns or not all(isinstance(r, int | float) and np.isfinite(r) for r in returns):
        raise UserError(f"{path}: episode_returns must be finite numbers; run it again.")
    try:
        mean, _ = score(np.array(returns), evaluation["ref_min_score"], evaluation["ref_max_score"])
    except TypeError as error:
        raise UserError(f"{path}: reference scores must be numbers; run it again.") from error
    if not np.isclose(mean, values["normalised_score"], rtol=1e-6, atol=1e-6):
        raise UserError(f"{path}: normalised_score is not that of its episode returns; run it again.")
    return RunResult(**values)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a score depends on."""
    packages = ("iwsft_control", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "mujoco", "minari")
    return {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}}


def device() -> str:
    """The accelerator, or the processor and its number of cores."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return kind
    try:  # Linux; platform knows no more than the architecture there
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        kind = platform.processor() or platform.machine() or kind
    return f"{kind}, {os.cpu_count()} cores"


def provenance() -> dict[str, Any]:
    """What made a result besides its settings and data: device, versions, git_commit."""
    return {"device": device(), "versions": versions(), "git_commit": git_commit()}


def git_commit() -> str | None:
    """Commit of the checkout that this package lies in."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # an installed copy inside someone's checkout is not ours
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None
