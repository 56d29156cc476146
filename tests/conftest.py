"""Shared pieces: real D4RL rows (where they are at hand), small data sets, an isolated home for caches and Minari."""

from __future__ import annotations

import gc
import json
import os
import resource
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import pytest

from iwsft_control.base import children
from iwsft_control.benchmark import processes
from iwsft_control.benchmark.jobs import InProcessPool
from iwsft_control.datasets import minari_files
from iwsft_control.datasets.types import Dataset, Episodes
from iwsft_control.learning.method import Inputs, Prepared

SCORES = {"ref_min_score": -20.272305, "ref_max_score": 3234.3}  # D4RL's of Hopper
STATM = Path("/proc/self/statm")  # memory of this process in pages: in all, resident, ...
LARGE = 3 << 29  # bytes

jitted = cache(partial(jax.jit, static_argnums=0))
"""A function of (static, ...) as one program: op by op it is a hundred small ones, which take longer to compile."""

SHARED = Path(os.environ.get("IWSFT_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_configure():
    gc.set_threshold(100_000, 50, 50)  # tracing makes many objects and hardly a cycle: looking for them took its share
    # Compiled programs are kept between runs of the tests, apart from the user's.
    kept = {
        "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in kept.items():
        chosen = os.environ.setdefault(name.upper(), str(value))  # for processes that begin now
        jax.config.update(name, type(value)(chosen))  # for this one (-n 0), which has imported JAX
    # One thread in every process of the tests (these inherit it): threads wait for one another by spinning.
    for name in ("PJRT_NPROC", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    if "XLA_FLAGS" not in os.environ:
        # The programs of tests are many and small: compiling costs more than running. Without fusion emitters it costs
        # half; but two programs that do the same may then round differently (test_online.py).
        flags = ["--xla_backend_optimization_level=0"]
        if jaxlib.__version__.startswith("0.10."):  # XLA ends a process that names a flag which it does not know
            # A program in one piece instead of 32 for as many threads: a fifth less to compile.
            flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
        os.environ["XLA_FLAGS"] = " ".join(flags)


def pytest_xdist_auto_num_workers():
    """One process more than cores (of ``-n logical``): a sixth of the time tests wait for processes that they start."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Every test has its own Minari root and cache."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Programs are let go after a module that leaves its process large: they would add up to gigabytes."""
    yield
    if not STATM.is_file() or int(STATM.read_text().split()[1]) * resource.getpagesize() > LARGE:
        jax.clear_caches()


@pytest.fixture(params=["hopper", "halfcheetah", "walker2d"])
def piece(request):
    """(name, arrays) of a real piece of D4RL."""
    return request.param, real_piece(request.param)


def real_piece(name: str) -> dict[str, np.ndarray]:
    path = SHARED / "d4rl" / f"{name}_medium-v2_subset.npz"
    if not path.is_file():
        pytest.skip(f"no real D4RL rows: {path} is not there (they are not part of the repository)")
    with np.load(path, allow_pickle=False) as file:
        return {k: file[k] for k in file.files}


def make_episodes(lengths=(30, 5, 17, 40), seed=0, observation_dim=11, action_dim=3, states=True) -> Episodes:
    """Random episodes of Hopper's shape that obey its rule: observations are positions and clipped velocities."""
    rng = np.random.default_rng(seed)
    n, e, nq = sum(lengths), len(lengths), 6
    qpos = rng.standard_normal((n + e, nq)).astype(np.float32)
    qvel = (6 * rng.standard_normal((n + e, nq))).astype(np.float32)
    ends = np.zeros(n, bool)
    ends[np.cumsum(lengths) - 1] = True
    terminations = ends & (rng.random(n) < 0.5)
    return Episodes(
        observations=np.concatenate([qpos[:, 1:], np.clip(qvel, -10, 10)], axis=1)[:, :observation_dim],
        actions=np.tanh(rng.standard_normal((n, action_dim))).astype(np.float32),
        rewards=rng.random(n).astype(np.float32),
        terminations=terminations,
        truncations=ends & ~terminations,
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        qpos=qpos if states else None,
        qvel=qvel if states else None,
    )


def write_hopper(dataset_id: str) -> None:
    """Thirty random episodes of Hopper's shape in the local Minari root."""
    folder = minari_files.minari_path(dataset_id) / "data"
    folder.mkdir(parents=True)
    hdf5, metadata = hopper_files()
    (folder / "main_data.hdf5").write_bytes(hdf5)
    (folder / "metadata.json").write_text(json.dumps(metadata | {"dataset_id": dataset_id}))


@cache
def hopper_files() -> tuple[bytes, dict[str, Any]]:
    """What ``write_hopper`` writes: two hundred small HDF5 arrays, made once in a process of the tests."""
    lengths = np.random.default_rng(0).integers(5, 40, 30)
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", root)
        made = minari_files.write_minari("a/b-v0", make_episodes(tuple(lengths)), "d4rl/Hopper-v2", SCORES) / "data"
        return (made / "main_data.hdf5").read_bytes(), json.loads((made / "metadata.json").read_text())


def in_this_process(kept, progress, count):
    """A pool that does all in this process, in the place of ``processes.Processes``."""
    return InProcessPool(kept, progress)


@pytest.fixture
def one_process(monkeypatch):
    """Sweeps and runs do all in this process: a process of their own takes seconds to import what they need."""
    monkeypatch.setattr(children, "usable_cores", lambda: 1)
    monkeypatch.setattr(processes, "Processes", in_this_process)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made and not written, which takes most of a report's time: the tests of the report write them."""
    from iwsft_control.report import figures  # here: most tests need no Matplotlib

    monkeypatch.setattr(figures, "save", lambda figure, folder, name: figures.plt.close(figure) or "<svg/>")


@pytest.fixture
def imported_hopper(home):
    """A small D4RL/hopper/medium-replay-v2, which its task takes before the embedded data."""
    write_hopper("D4RL/hopper/medium-replay-v2")


def make_data(lengths=(30, 5, 17, 40), seed=0) -> Dataset:
    """Random flat data of Hopper's shape."""
    episodes = make_episodes(lengths, seed)
    pairs = zip(episodes.starts[:-1], episodes.starts[1:], strict=True)
    rows = np.concatenate([np.arange(a, b) + e for e, (a, b) in enumerate(pairs)])
    return Dataset(
        id="test/hopper/random-v0",
        sha256="0" * 64,
        origin="Minari",
        environment="d4rl/Hopper-v2",
        **SCORES,
        observations=episodes.observations[rows],
        actions=episodes.actions,
        rewards=episodes.rewards,
        next_observations=episodes.observations[rows + 1],
        terminations=episodes.terminations,
        starts=episodes.starts,
    )


def prepared(method, config, data, artefacts=None, quality=None, seeds=(0,)) -> Prepared:
    """What a method samples from, of small data."""
    return method.prepare(config, Inputs(data, artefacts or {}, quality, tuple(seeds)))
