"""One result file per run: what was run on what, and every evaluation episode's return.

The file is JSON; its fields are those of :class:`RunResult`. Files are written atomically and checked when read.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from iwsft_control.base import children, files
from iwsft_control.base.errors import UserError
from iwsft_control.base.versions import SCORING, version
from iwsft_control.datasets.types import Dataset

SCHEMA = 1
NO_PHYSICS = "none"  # in the place of MuJoCo's version, of a task that a verifier judges
REFERENCES = ("ref_min_score", "ref_max_score")  # returns that score 0 and 100, among what a result says of evaluation
KEYS: dict[str, dict[str, str]] = {  # that tables and figures read, and what they are
    "dataset": {"id": "str", "sha256": "str", "origin": "str", "transitions": "int", "episodes": "int"},
    "physics": {"environment": "str", "mujoco": "str", "corrections": "list"},
    "evaluation": dict.fromkeys(REFERENCES, "float"),
    "diagnostics": {"training": "dict"},
    "versions": {"jax": "str"},
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
    """id, sha256 (of the content), origin (D4RL, reconstruction, Minari, generated, arrays), transitions, episodes."""
    physics: dict[str, Any]
    """environment, mujoco (version; "not used" by an environment of other physics, "none" where there is no physics),
    corrections (active ones); of an environment that is not this package's also its specification, and a digest of its
    code if it is not Gymnasium's either."""
    evaluation: dict[str, Any]
    """first_reset_seed, ref_min_score, ref_max_score, policy (what was evaluated); metric, where it is another than the
    normalised score."""
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


def describe_data(data: Dataset) -> dict[str, Any]:
    """What a result says of the data set that it was learned from."""
    return {
        "id": data.id,
        "sha256": data.sha256,
        "origin": data.origin,
        "transitions": len(data.rewards),
        "episodes": len(data.starts) - 1,
    }


def holds(path: Path, result: RunResult) -> bool:
    """Whether a file is there, undamaged, and holds this result."""
    try:
        return read(path) == result
    except UserError:
        return False


def write(path: Path, result: RunResult) -> None:
    """Write a result file atomically.

    Raises:
        UserError: the folder cannot be written.
    """
    files.write_json(path, dataclasses.asdict(result))


def read(path: Path) -> RunResult:
    """Read and check a result file.

    Raises:
        UserError: no such file, not JSON, of another schema, or a field is missing, unknown or of the wrong type.
    """
    values = files.read_json(path, "a result file", "run it again")
    problem = _problem(values)
    if problem is not None:
        raise UserError(f"{path} {problem}; run it again.")
    return RunResult(**values)


def _problem(values: Any) -> str | None:
    """What keeps JSON from being a result; None if nothing does."""
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        return f"is not a result file of schema {SCHEMA}"
    problem = files.problem_of(values, files.fields_of(RunResult))
    if problem is not None:
        return f"is damaged: {problem}"
    for name, keys in KEYS.items():
        missing = sorted(set(keys) - set(values[name]))
        if missing:
            return f"is damaged: {name} lacks {', '.join(missing)}"
        for key, kind in keys.items():
            if not files.is_of(values[name][key], kind):
                return f"is damaged: {key} of {name} should be {kind}"
    for name in ("training", "critic"):
        problem = _log_problem(values["diagnostics"].get(name, {"step": [0], "loss": [0]}))
        if problem is not None:
            return f"is damaged: the log of {name} {problem}"
    returns, evaluation = values["episode_returns"], values["evaluation"]
    if not returns or not all(map(files.is_number, returns)):
        return "is damaged: episode_returns must be finite numbers"
    low, high = evaluation["ref_min_score"], evaluation["ref_max_score"]
    if low >= high:
        return "is damaged: ref_min_score is not below ref_max_score"
    mean, _ = score(np.array(returns, float), float(low), float(high))
    if not np.isclose(mean, float(values["normalised_score"]), rtol=1e-6, atol=1e-6):
        return "is damaged: normalised_score is not that of its episode returns"
    return None


ROWS = ("weight_quantiles", "weight_histogram")  # of a log: several numbers for each step (the latter up to 0.1)


def _log_problem(log: Any) -> str | None:
    """What keeps a log from being drawn: by name it holds a number for each step, of some a row.

    None is what a call without a step of its kind has logged: a policy that moves every second step, and did not.
    """
    if not isinstance(log, dict) or not isinstance(log.get("step"), list) or not log["step"] or len(log) < 2:
        return "has no steps, or nothing beside them"
    for name, values in log.items():
        if not isinstance(values, list) or len(values) != len(log["step"]):
            return f"has not one {name:.40} for each step"
        rows = values if name in ROWS else [[value] for value in values if value is not None or name == "step"]
        if not all(
            isinstance(row, list) and len(row) == len(rows[0]) and all(map(files.is_number, row)) for row in rows
        ):
            return f"holds a {name:.40} that is no finite number"
    return None


def record_failure(folder: Path, name: str, what: Mapping[str, Any] | None) -> None:
    """Write why a run failed to failures/ of a folder of results, or take back what an earlier try left (None).

    Raises:
        UserError: the folder cannot be written.
    """
    path = folder / "failures" / f"{name.replace(' ', '-').replace(',', '').replace('/', '-')}.json"
    if what is None:
        path.unlink(missing_ok=True)
    else:
        files.write_json(path, what)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a score depends on."""
    return {"python": platform.python_version(), **{p: version(p) for p in SCORING}}


def device() -> str:
    """The accelerator, or the processor, its number of cores and whether XLA has one thread, which rounds otherwise."""
    import jax  # here: who only reads results needs none of it

    on_cpu = jax.default_backend() == "cpu"
    return f"{processor()}, {children.rounding()}" if on_cpu else jax.devices()[0].device_kind


def processor() -> str:
    """The processor and its number of cores."""
    try:  # Linux; platform knows no more than the architecture there
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        kind = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        kind = platform.processor() or platform.machine() or "cpu"
    return f"{kind}, {os.cpu_count()} cores"


def provenance() -> dict[str, Any]:
    """What made a result besides its settings and data: device, versions, git_commit."""
    return {"device": device(), "versions": versions(), "git_commit": git_commit()}


def git_commit() -> str | None:
    """Commit of the checkout that this package lies in."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, encoding="utf-8"
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # an installed copy inside someone's checkout is not ours
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None
