"""D4RL's own HDF5 files: fetched, verified, converted."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwsft_control.base import files
from iwsft_control.base.errors import UserError
from iwsft_control.datasets import episodes, hdf5, minari_files, packed, types
from iwsft_control.datasets.facts import Fingerprint
from iwsft_control.datasets.types import Episodes
from iwsft_control.envs.tasks import Task

BASE_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/"
BLOCK = 1 << 20  # bytes
KEYS = ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts", "infos/qpos", "infos/qvel")
PER_STEP = ("rewards", "terminals", "timeouts")


class OfficialFile(NamedTuple):
    """An entry of D4RL's checksums."""

    size: int
    sha256: str


def official_files() -> dict[str, OfficialFile]:
    """Name -> size and sha256 of every v2 locomotion file of D4RL."""
    lines = (packed.EMBEDDED / "d4rl_checksums.tsv").read_text(encoding="utf-8").splitlines()
    return {name: OfficialFile(int(size), digest) for name, size, digest in (line.split("\t") for line in lines)}


def file_name(task: Task) -> str:
    """D4RL's name of a task's file: ``hopper_medium_replay-v2.hdf5``."""
    return f"{task.environment.name}_{task.level.replace('-', '_')}-v2.hdf5"


def verify(path: Path, expected: OfficialFile) -> None:
    """Compare a file's size and sha256 with D4RL's.

    Raises:
        UserError: it is missing or not the official file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path.")
    size = path.stat().st_size
    if size != expected.size:
        raise UserError(
            f"{path} has {size:,} bytes, D4RL's has {expected.size:,}: it is truncated or another file; "
            "delete it and fetch it again."
        )
    if files.sha256(path) != expected.sha256:
        raise UserError(
            f"{path} does not have the sha256 of D4RL's file; it is damaged or another file: "
            "delete it and fetch it again."
        )


def download(url: str, path: Path, expected: OfficialFile, progress: Callable[[int], None] = lambda n: None) -> None:
    """Fetch ``url`` to ``path``: what a stopped download left in ``path.part`` is continued, then verified and moved.

    Raises:
        UserError: the server cannot be reached, or what came is not the official file.
    """
    if path.is_file():
        verify(path, expected)
        return
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.is_file() else 0
    if have > expected.size:
        part.unlink()
        have = 0
    if have < expected.size:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
                progress(have if resumed else 0)
                with part.open("ab" if resumed else "wb") as file:
                    while block := response.read(BLOCK):
                        file.write(block)
                        progress(len(block))
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise UserError(
                f"cannot fetch {url} ({error}); what came is kept and continued next time, or fetch it by other means "
                f"and run 'python -m iwsft_control.d4rl import FILE'."
            ) from error
    try:
        verify(part, expected)
    except UserError:
        if part.stat().st_size >= expected.size:  # complete but wrong: continuing it would never mend it
            part.unlink()
        raise
    part.replace(path)


def read_legacy(path: Path, root_coordinates: int = 1, expected: Fingerprint | None = None) -> Episodes:
    """Read a D4RL v2 HDF5 file as whole episodes.

    An episode ends where ``terminals`` or ``timeouts`` is set; its final observation is ``next_observations`` of its
    last row; a trailing piece without a flag is a truncated episode. The simulator's final state is not recorded: its
    positions and (clipped) velocities are the final observation's, its root coordinates NaN.

    Args:
        root_coordinates: leading positions that observations leave out (1; Ant 2).
        expected: transitions, episodes and mean return that the file must have.

    Raises:
        UserError: the file is damaged, lacks a key, has lengths that disagree, NaNs, or not the expected facts.
    """
    raw = _legacy_arrays(path)
    wrong = [key for key in KEYS if raw[key].ndim != 1 + (key not in PER_STEP)]
    if wrong:
        raise UserError(f"{path}: the shape of {wrong[0]} is {raw[wrong[0]].shape}; it is damaged: fetch it again.")
    lengths = {key: len(value) for key, value in raw.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}: lengths disagree ({lengths}); it is damaged: fetch it again.")
    for key in ("terminals", "timeouts"):
        if not ((raw[key] == 0) | (raw[key] == 1)).all():
            raise UserError(f"{path}: its {key} are neither true nor false; it is damaged: fetch it again.")
    positions = raw["infos/qpos"].shape[1] - root_coordinates
    if positions + raw["infos/qvel"].shape[1] > raw["observations"].shape[1] or positions < 1:
        raise UserError(f"{path}: observations do not hold its positions and velocities; it is another task's file.")
    if raw["next_observations"].shape != raw["observations"].shape:
        raise UserError(f"{path}: shapes of its observations disagree; it is damaged: fetch it again.")
    terminations = raw["terminals"].astype(bool)
    truncations = raw["timeouts"].astype(bool) & ~terminations
    if len(terminations) and not terminations[-1]:
        truncations[-1] = True
    ends = np.flatnonzero(terminations | truncations)
    finals = raw["next_observations"][ends].astype(np.float32)
    nv = raw["infos/qvel"].shape[1]
    unknown = np.full((len(ends), root_coordinates), np.nan)
    final_qpos = np.concatenate([unknown, finals[:, :positions]], axis=1)
    found = Episodes(
        observations=np.insert(raw["observations"].astype(np.float32), ends + 1, finals, axis=0),
        actions=raw["actions"].astype(np.float32),
        rewards=raw["rewards"].astype(np.float32),
        terminations=terminations,
        truncations=truncations,
        starts=np.concatenate([[0], ends + 1]),
        qpos=np.insert(raw["infos/qpos"], ends + 1, final_qpos, axis=0),
        qvel=np.insert(raw["infos/qvel"], ends + 1, finals[:, positions : positions + nv], axis=0),
    )
    types.check(found, str(path))
    if expected is not None:
        returns = found.returns
        counts = (len(found.rewards), len(returns))
        if counts != (expected.transitions, expected.episodes) or abs(returns.mean() - expected.mean) > 0.1:
            raise UserError(
                f"{path} has {counts[0]:,} transitions in {counts[1]:,} episodes with mean return "
                f"{returns.mean():.1f}, D4RL's has {expected.transitions:,}, {expected.episodes:,} and "
                f"{expected.mean}; fetch it again."
            )
    return found


def _legacy_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a D4RL file; columns (N, 1) of what each step has one of are flattened."""
    try:
        with hdf5.open_file(path) as file:
            missing = [key for key in KEYS if not hdf5.has(file, key)]
            if missing:
                raise UserError(f"{path} lacks {', '.join(missing)}: it is not a D4RL v2 locomotion file.")
            raw = hdf5.arrays(file, KEYS, str(path))
    except UserError:
        raise
    except Exception as error:  # whatever HDF5 and NumPy raise at bytes that are not theirs
        raise UserError(f"{path} is not a readable HDF5 file ({error}); fetch it again.") from error
    return {key: episodes.flat(array) if key in PER_STEP else array for key, array in raw.items()}


def import_file(path: Path, task: Task, official: OfficialFile, expected: Fingerprint | None) -> Path:
    """Verify a legacy file, convert it and write it into the Minari root; returns the data set's folder.

    Raises:
        UserError: the file is not the official one, or the data set exists already.
    """
    verify(path, official)
    environment = task.environment
    whole = read_legacy(path, 2 if environment.name == "ant" else 1, expected)
    metadata: dict[str, Any] = {
        "ref_min_score": environment.ref_min_score,
        "ref_max_score": environment.ref_max_score,
        "algorithm_name": "uniform" if task.level == "random" else "SAC",
        "author": ["Justin Fu", "Aviral Kumar", "Ofir Nachum", "George Tucker", "Sergey Levine"],
        "description": f"D4RL's {task.name}-v2 (arXiv 2004.07219), CC-BY-4.0, converted from {path.name}.",
        "reconstruction": False,
        "source": BASE_URL + file_name(task),
        "source_sha256": official.sha256,
    }
    return minari_files.write_minari(task.d4rl_id, whole, environment.env_id, metadata)
