"""``python experiments/fuzz.py``: damaged files for every reader; each is refused in one sentence or read as it was.

    python experiments/fuzz.py                                  # 100,000 inputs
    python experiments/fuzz.py --inputs 2000 --targets policies --seed 1

A valid small file of every kind is changed, half of the time byte by byte (flipped bits, cut, repeated, moved, extreme
numbers) and half of the time in its structure (by hypothesis: other types, shapes, values, names, depths), and read by
the function that the commands read it with. A fault is any exception but ``UserError``, a crash, more than ten seconds
of computing or four GiB, and, of files that carry a checksum, other values than were written. Faults are kept in
``--faults``. Every input follows from the seed. Linux alone, whose /proc it reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hypothesis
import numpy as np
from hypothesis import strategies as st
from rich.table import Table

from iwsft_control import load_policy
from iwsft_control.base import console, files
from iwsft_control.base.errors import UserError, require
from iwsft_control.benchmark import checks, results, settings, stages
from iwsft_control.benchmark.store import Store
from iwsft_control.datasets import d4rl_files, load, minari_files, packed
from iwsft_control.datasets.types import Dataset, Episodes
from iwsft_control.learning.method import Artefact
from iwsft_control.methods import registry
from iwsft_control.report import figures, formats
from iwsft_control.report import runs as grouped

SECONDS, MEMORY = 10.0, 4 << 30  # that reading one input may take
OUTCOMES = ("refused", "equal", "other")
PATIENCE = 1800.0  # seconds without a word, on a machine that does other things
BLOCK = 500  # inputs of one kind of change in a row
FIGURES_EVERY = 500  # result files of which figures are drawn too, which takes a second
ID, ENVIRONMENT = "fuzz/car/small-v0", "MountainCarContinuous-v0"


@dataclasses.dataclass(frozen=True)
class FuzzConfig:
    """What to try."""

    inputs: int = 100_000
    """Inputs in all, shared equally by the targets."""
    seed: int = 0
    """Of every change."""
    targets: tuple[str, ...] = ()
    """Which readers; by default all: minari, arrow, packed, legacy, results, policies, stages, cache."""
    faults: Path = Path("fuzz-faults")
    """Folder where inputs that are faults are kept; made when there is one."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader and a valid file of its kind."""

    make: Callable[[Path], list[Path]]
    """Writes the valid files into a folder; gives those that are changed."""
    read: Callable[[Path, list[Path]], Any]
    """What the reader makes of the folder, comparable by :func:`same`; None where it takes a damaged file for none."""
    sealed: bool
    """Whether a checksum covers every value."""


# --- valid files -----------------------------------------------------------------------------------------------------


def car_episodes(lengths: tuple[int, ...] = (9, 4, 12), observations: int = 2, actions: int = 1) -> Episodes:
    """Random episodes, with states where observations are Hopper's."""
    rng = np.random.default_rng(0)
    n, e = sum(lengths), len(lengths)
    ends = np.zeros(n, bool)
    ends[np.cumsum(lengths) - 1] = True
    qpos, qvel = (rng.standard_normal((n + e, 6)).astype(np.float32) for _ in range(2))
    states = observations == 11
    return Episodes(
        observations=np.concatenate([qpos[:, 1:], qvel], axis=1)[:, :observations],
        actions=np.tanh(rng.standard_normal((n, actions))).astype(np.float32),
        rewards=rng.random(n).astype(np.float32),
        terminations=np.zeros(n, bool),
        truncations=ends,
        starts=np.cumsum([0, *lengths]),
        qpos=qpos if states else None,
        qvel=qvel if states else None,
    )


def make_minari(folder: Path) -> list[Path]:
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    minari_files.write_minari(ID, car_episodes(), ENVIRONMENT, {"ref_min_score": -20.0, "ref_max_score": 90.0})
    data = minari_files.minari_path(ID) / "data"
    return [data / "main_data.hdf5", data / "metadata.json"]


def read_minari(folder: Path, changed: list[Path]) -> Any:
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    data = load.load(None, ID, cache=Path(os.devnull) / "none", flatten_observations=True)
    checks.check_environment(data)
    return comparable(data)


def make_arrow(folder: Path) -> list[Path]:
    import pyarrow as pa
    import pyarrow.dataset

    make_minari(folder)
    data, whole = minari_files.minari_path(ID) / "data", car_episodes()
    (data / "main_data.hdf5").unlink()
    metadata = json.loads((data / "metadata.json").read_text(encoding="utf-8"))
    (data / "metadata.json").write_text(json.dumps(metadata | {"data_format": "arrow"}), encoding="utf-8")
    for e, (a, b) in enumerate(zip(whole.starts[:-1], whole.starts[1:], strict=True)):
        states = whole.observations[a + e : b + e + 1]

        def vectors(x: np.ndarray) -> Any:
            return pa.FixedSizeListArray.from_arrays(x.reshape(-1), x.shape[1])

        columns = {
            "observations": vectors(states),
            "actions": vectors(np.pad(whole.actions[a:b], ((0, 1), (0, 0)))),
            **{n: np.pad(getattr(whole, n)[a:b], (0, 1)) for n in ("rewards", "terminations", "truncations")},
        }
        pyarrow.dataset.write_dataset(pa.RecordBatch.from_pydict(columns), data / str(e), format="arrow")
    return [*sorted(data.glob("*/*.arrow")), data / "metadata.json"]


def make_packed(folder: Path) -> list[Path]:
    packed.pack(folder / "p.hdf5", car_episodes(observations=11, actions=3), {"ref_min_score": 0.0})
    return [folder / "p.hdf5"]


def make_legacy(folder: Path) -> list[Path]:
    rng, n = np.random.default_rng(0), 24
    arrays = {
        "observations": rng.standard_normal((n, 11)),
        "next_observations": rng.standard_normal((n, 11)),
        "actions": rng.uniform(-1, 1, (n, 3)),
        "rewards": rng.random(n),
        "terminals": np.arange(n) % 8 == 7,
        "timeouts": np.zeros(n, bool),
        "infos/qpos": rng.standard_normal((n, 6)),
        "infos/qvel": rng.standard_normal((n, 6)),
    }
    with h5py.File(folder / "l.hdf5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return [folder / "l.hdf5"]


def make_results(folder: Path) -> list[Path]:
    log = {"step": [10, 20], "loss": [2.0, 1.0], "q_loss": [1.0, 0.5]}
    for method, quality in (("bc", None), ("iw-sft-q", "q")):
        for seed in range(2):
            returns = [100.0 + seed, 200.0, 150.0]
            mean, error = results.score(np.array(returns), 0.0, 1000.0)
            result = results.RunResult(
                schema=results.SCHEMA, task="hopper-medium-replay", method=method, quality=quality, seed=seed,
                quick=False, episode_returns=returns, normalised_score=mean, standard_error=error,
                dataset={"id": "a/b-v0", "sha256": "0" * 64, "origin": "Minari", "transitions": 9, "episodes": 2},
                physics={"environment": "d4rl/Hopper-v2", "mujoco": "4.0.0", "corrections": []},
                evaluation={"first_reset_seed": 1, "ref_min_score": 0.0, "ref_max_score": 1000.0, "policy": "mean"},
                config={"policy": {"bc_steps": 20, "fine_tune_steps": 10}},
                diagnostics={"training": log, "critic": log, "bc_start": {"normalised_score": 1.0}},
                seconds={"bc": 1.0}, versions={"jax": "1"}, device="cpu", git_commit=None,
            )  # fmt: skip
            results.write(folder / "runs" / f"{method}-{seed}.json", result)
    files.write_json(folder / "runs/failures/x.json", {"task": "t", "method": "sft", "quality": None, "seeds": [0],
                                                       "error": "e", "trace": "", "mistake": False})  # fmt: skip
    return sorted((folder / "runs").rglob("*.json"))


def read_results(folder: Path, changed: list[Path]) -> Any:
    """The texts of a table; of some also the figures."""
    bc, iw = grouped.parse_row("bc"), grouped.parse_row("iw-sft-q")
    report = grouped.collect(grouped.find([folder / "runs"]), bc, iw, grouped.find_failures([folder / "runs"]))
    drawn: list[formats.Picture] = []
    if zlib.crc32(b"".join(path.read_bytes() for path in changed)) % FIGURES_EVERY == 0:
        for name, figure in (("scores", figures.scores(report)), ("t", figures.training(figures.pick(report, iw)))):
            drawn.append(formats.Picture(name, name, name, figures.save(figure, folder / "figures", name)))
    made = formats.to_markdown, formats.to_latex, formats.to_csv, lambda r: formats.to_json(formats.to_rliable(r))
    return [*(each(report) for each in made), formats.to_html(report, drawn) and ""]


def make_policies(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    net = {f"Dense_{i}": {"kernel": rng.standard_normal((4, 4)), "bias": np.zeros(4)} for i in range(2)}
    described = {"task": "t", "policy": {"kind": "tanh-mlp", "layout": {}}}
    files.save_pytree(folder / "p.safetensors", {"params": {"net": net}}, described)
    return [folder / "p.safetensors"]


def flat_data() -> Dataset:
    """A data set in memory, for the name of a stage."""
    whole = car_episodes()
    rows = np.arange(len(whole.rewards))
    return Dataset(
        id=ID, sha256="0" * 64, origin="Minari", environment=ENVIRONMENT, ref_min_score=0.0, ref_max_score=1.0,
        observations=whole.observations[rows], actions=whole.actions, rewards=whole.rewards,
        next_observations=whole.observations[rows], terminations=whole.terminations, starts=whole.starts,
    )  # fmt: skip


@functools.cache
def kept_stage() -> tuple[stages.Stage, Dataset]:
    """A stage and what it learned from."""
    return stages.Stage("bc", None, (0,), settings.make()), flat_data()


def make_stages(folder: Path) -> list[Path]:
    store, (stage, data) = Store(folder), kept_stage()
    arrays = {"params": {"net": {"kernel": np.arange(12.0).reshape(3, 4)}}}
    store.write(stage, data, Artefact(arrays, {"logs": [{"step": [1], "loss": [0.5]}], "returns": [[1.0, 2.0]]}))
    return [store.path(stage, data)]


def read_stages(folder: Path, changed: list[Path]) -> Any:
    found = Store(folder).read(*kept_stage())
    return None if found is None else [files.flatten(found.arrays), found.record]


def make_cache(folder: Path) -> list[Path]:
    make_minari(folder / "minari")
    load.load(None, ID, cache=folder / "cache")
    return list((folder / "cache").iterdir())


def read_cache(folder: Path, changed: list[Path]) -> Any:
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    return comparable(load.load(None, ID, cache=folder / "cache"))


def comparable(data: Dataset) -> Any:
    """What of a data set decides a result."""
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "starts")
    return [{n: getattr(data, n) for n in names}, data.env_id, data.ref_min_score, data.ref_max_score, data.sha256]


TARGETS = {
    "minari": Target(make_minari, read_minari, sealed=False),
    "arrow": Target(make_arrow, read_minari, sealed=False),
    "packed": Target(make_packed, lambda _, path: packed.unpack(path[0]), sealed=False),
    "legacy": Target(make_legacy, lambda _, path: d4rl_files.read_legacy(path[0]), sealed=False),
    "results": Target(make_results, read_results, sealed=False),
    "policies": Target(make_policies, lambda _, path: load_policy(path[0])(np.eye(4, dtype=np.float32)), sealed=True),
    "stages": Target(make_stages, read_stages, sealed=True),
    "cache": Target(make_cache, read_cache, sealed=True),
}


def same(a: Any, b: Any) -> bool:
    """Whether two results of a reader are equal, arrays element by element; what D4RL does not tell is NaN in both."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        first, second = np.asarray(a), np.asarray(b)
        return first.dtype == second.dtype and np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# --- changes ---------------------------------------------------------------------------------------------------------

EXTREMES = [
    b"\0",
    b"\xff",
    b"\xff" * 4,
    b"\xff" * 8,
    b"\0" * 8,
    b"\x7f\xff\xff\xff",
    b"\0\0\0\x80",
    b"\xff" * 7 + b"\x7f",
]
TEXTS = [b"NaN", b"1e999", b"-1", b"null", b"[" * 2000, b'{"a":' * 2000, b"9" * 400, b'"', b"}", b"]", b"\\u0000"]


def change_bytes(whole: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes of bytes."""
    found = bytearray(whole)
    for _ in range(rng.integers(1, 5)):
        n = len(found)
        at, length = int(rng.integers(n + 1)), int(min(n, 2 ** rng.uniform(0, 10)))
        match rng.integers(8):
            case 0 | 1 if n:
                found[at % n] ^= 1 << int(rng.integers(8))
            case 2:
                found[at : at + length] = rng.bytes(length)
            case 3:
                del found[at : at + length]
            case 4:
                found[at:at] = found[: int(rng.integers(n + 1))][-length:]
            case 5:
                piece = EXTREMES[rng.integers(len(EXTREMES))]
                found[at : at + len(piece)] = piece
            case 6:
                piece = TEXTS[rng.integers(len(TEXTS))]
                found[at:at] = piece
            case _:
                del found[at:]
    return bytes(found)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 3), st.floats(), st.text(max_size=20),
    st.sampled_from([10**400, 2**63, -(2**63) - 1, 1e308, "nan", "../x", "<b>", "$x_1", "\\input{a}", "a\nb", "é"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4), max_leaves=8
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON."""
    yield path
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(each, (*path, key))


def change_json(whole: bytes, draw: Callable[..., Any]) -> bytes:
    """JSON with one or two values replaced, taken out, renamed, added or exchanged, also within text that is JSON."""
    value = json.loads(whole)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            continue
        *parents, last = path
        place = value
        for key in parents:
            place = place[key]
        if isinstance(place[last], str) and place[last].startswith("{") and draw(st.integers(0, 4)):
            with contextlib.suppress(ValueError):  # text that only begins like JSON
                place[last] = change_json(place[last].encode(), draw).decode(errors="replace")
            continue
        match draw(st.integers(0, 4)):
            case 0:
                del place[last]
            case 1 if isinstance(place, dict):
                place[draw(st.text(max_size=8))] = place.pop(last)
            case 2:
                place[last] = [place[last], draw(VALUES)]
            case _:
                place[last] = draw(VALUES)
    return json.dumps(value).encode(errors="replace")


DTYPES = ["f4", "f8", "f2", "i1", "i8", "u8", "?", "c8", "S3"]
NUMBERS = [0.0, -1.0, 1.0, 2.0, 0.5, 1e30, 1e39, -1e300, float("nan"), float("inf")]


def change_hdf5(path: Path, draw: Callable[..., Any]) -> None:
    """An HDF5 file with one to three of its arrays retyped, reshaped, resized, taken out, moved or of other values."""
    with h5py.File(path, "r+") as file:
        for _ in range(draw(st.integers(1, 3))):
            names: list[str] = []
            file.visit(names.append)
            name = draw(st.sampled_from(names))
            if not isinstance(file[name], h5py.Dataset):
                match draw(st.integers(0, 3)):
                    case 0:
                        del file[name]
                    case 1:
                        file.move(name, draw(st.sampled_from(["episode_9", "episode_x", "é", f"{name}_"])))
                    case 2:
                        file.create_group(f"{name}/{draw(st.sampled_from(['a', 'b']))}/x{len(names)}")
                    case _:
                        file[name].attrs["id"] = draw(st.integers(-3, 10**6))
                continue
            kept = np.asarray(file[name][()] if file[name].size < 1000 else 0.0)  # what a change before has declared
            match draw(st.integers(0, 9)):
                case 0:
                    kept = kept[..., None] if draw(st.booleans()) else kept[None]
                case 1:
                    kept = kept[: draw(st.integers(0, len(kept)))] if kept.ndim else kept
                case 2:
                    kept = kept.reshape(-1)
                case 3:
                    kept = np.concatenate([kept, kept[:1]]) if kept.ndim else kept
                case 4:
                    with np.errstate(all="ignore"):
                        kept = np.abs(kept).astype(draw(st.sampled_from(DTYPES)))
                case 5:
                    del file[name]
                    continue
                case 6:
                    del file[name]
                    file.create_dataset(
                        name, (draw(st.sampled_from([0, 7, 10**6, 10**12, 2**60])),), "f4", chunks=(64,)
                    )
                    continue
                case 7:
                    del file[name]
                    file[name] = draw(
                        st.sampled_from([h5py.SoftLink("/"), h5py.SoftLink(name), h5py.ExternalLink("x.h5", "/a")])
                    )
                    continue
                case 8:
                    kept = kept[:, : draw(st.integers(0, kept.shape[1]))] if kept.ndim > 1 else kept.reshape(-1)[::-1]
                case _:
                    kept = kept.astype(float)
                    if kept.size:
                        kept.reshape(-1)[draw(st.integers(0, kept.size - 1))] = draw(st.sampled_from(NUMBERS))
            del file[name]
            file[name] = kept


def change_arrays(whole: bytes, draw: Callable[..., Any]) -> bytes:
    """A safetensors file whose header, JSON, was changed, with the old or the right length before it."""
    length = int.from_bytes(whole[:8], "little")
    header = change_json(whole[8 : 8 + length], draw)
    said = draw(st.sampled_from([len(header), length, 0, 2**63, len(header) + 1]))
    return said.to_bytes(8, "little") + header + whole[8 + length :]


def change_structure(path: Path, whole: bytes, draw: Callable[..., Any]) -> None:
    """Another structure for a file that holds ``whole``, by its kind."""
    path.write_bytes(whole)
    if path.suffix == ".hdf5":
        # As far as HDF5 lets it.
        with contextlib.suppress(OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError):
            change_hdf5(path, draw)
    elif path.suffix == ".json":
        path.write_bytes(change_json(whole, draw))
    elif path.suffix == ".safetensors":
        path.write_bytes(change_arrays(whole, draw))
    else:
        path.write_bytes(change_bytes(whole, np.random.default_rng(draw(st.integers(0, 2**32)))))


# --- trying ----------------------------------------------------------------------------------------------------------


def attempt(target: Target, folder: Path, changed: list[Path], original: Any) -> str:
    """What a reader does with what lies in the folder: "refused", "equal", "other", or a fault's traceback."""
    try:
        found = target.read(folder, changed)
    except UserError as error:
        return "refused" if str(error) else "a UserError that says nothing"
    except Exception:
        return traceback.format_exc(limit=-6)
    if found is None:
        return "refused"
    if same(found, original):
        return "equal"
    return "other values were accepted under a checksum" if target.sealed else "other"


def serve(pipe: Any, names: list[str], seed: int, counts: list[int], done: list[int], folder: Path) -> None:
    """Try the inputs of all targets that are not done, in a process of its own, and tell the outcome of each."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ |= {"XDG_CACHE_HOME": str(folder / "home"), "IWSFT_MAX_BYTES": str(1 << 28)}
    registry.every()
    np.seterr(all="ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for name, count, start in zip(names, counts, done, strict=True):
        target, place = TARGETS[name], folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        changed = target.make(place)
        whole = {path: path.read_bytes() for path in changed}
        original = target.read(place, changed)
        block, tried = 0, start

        def one(change: Callable[[], Any]) -> None:
            nonlocal tried
            for path, content in whole.items():  # noqa: B023 (used at once, here and below)
                if not path.is_file() or path.read_bytes() != content:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
            change()
            pipe.send("try")
            outcome = attempt(target, place, changed, original)  # noqa: B023
            pipe.send(outcome)
            if outcome not in OUTCOMES:
                pipe.recv()  # until the input is kept
            tried += 1

        while tried < count:
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), start, block])
            size = min(BLOCK, count - tried)
            if block % 2:
                for _ in range(size):
                    path = changed[rng.integers(len(changed))]
                    content = change_bytes(whole[path], rng)
                    one(functools.partial(path.write_bytes, content))
            else:
                _structures(int(rng.integers(2**32)), size, changed, whole, one)
            block += 1
        pipe.send(name)
    pipe.send(None)


def _structures(seed: int, size: int, changed: list[Path], whole: dict[Path, bytes], one: Callable[..., None]) -> None:
    """A block of changes in structure, as hypothesis draws them."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=size,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def block(data: Any) -> None:
        path = data.draw(st.sampled_from(changed))
        one(lambda: change_structure(path, whole[path], data.draw))

    block()


def main(config: FuzzConfig) -> int:
    """Try all inputs, print the table; returns the number of faults."""
    names = list(config.targets or TARGETS)
    unknown = sorted(set(names) - set(TARGETS))
    require(not unknown, f"no such target: {', '.join(unknown)}; choose among {', '.join(TARGETS)}.")
    readable = "arrow" not in names or importlib.util.find_spec("pyarrow") is not None
    require(readable, "the target arrow needs pyarrow; pip install 'minari[arrow]', or choose other --targets.")
    require(config.inputs >= len(names), f"--inputs must be at least {len(names)}, one for each target.")
    counts = [config.inputs // len(names) + (i < config.inputs % len(names)) for i in range(len(names))]
    found: dict[str, Counter[str]] = {name: Counter() for name in names}
    kept: Counter[str] = Counter()
    began, slowest = time.monotonic(), 0.0
    context = multiprocessing.get_context("spawn")
    # In memory: a disk waits whenever a file that was written is written over.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as temporary, console.progress_bar() as bar:
        lines = {name: bar.add_task(name, total=count) for name, count in zip(names, counts, strict=True)}
        current = 0
        while current < len(names):
            done = [found[name].total() for name in names]
            pipe, other = context.Pipe()
            folder = Path(temporary)
            rest = names[current:]
            process = context.Process(
                target=serve, args=(other, rest, config.seed, counts[current:], done[current:], folder), daemon=True
            )
            process.start()
            other.close()
            trying, since, cpu = False, time.monotonic(), 0.0
            while True:
                try:
                    if not pipe.poll(SECONDS):
                        patient = not trying or _cpu_seconds(process.pid) - cpu < SECONDS
                        if patient and time.monotonic() - since < PATIENCE:  # it starts, or the machine is busy
                            continue
                        message = "hang"
                    else:
                        message = pipe.recv()
                except EOFError:
                    process.join()
                    assert trying, "the fuzzer itself failed: see above"
                    message = f"crash: exit code {process.exitcode}"
                if message == "try":
                    trying, since, cpu = True, time.monotonic(), _cpu_seconds(process.pid)
                    continue
                if message is None or message in names:
                    current += 1 if message else 0
                    if message is None:
                        break
                    continue
                name = names[current]
                slowest = max(slowest, time.monotonic() - since)
                outcome = message if message in OUTCOMES else "fault"
                found[name][outcome] += 1
                bar.advance(lines[name])
                trying = False
                if outcome == "fault":
                    _keep(config.faults, name, folder / name, message, kept)
                    with contextlib.suppress(OSError):  # it has died of it
                        pipe.send("go on")
                if found[name].total() == counts[current]:  # said at once: the table is hours away on a busy machine
                    each = ", ".join(f"{found[name][x]:,} {x}" for x in (*OUTCOMES, "fault"))
                    console.console.print(f"{name}: {each}")
                if message == "hang" or message.startswith("crash"):
                    if process.is_alive():
                        os.kill(process.pid or 0, signal.SIGKILL)
                        process.join()
                    if found[name].total() >= counts[current]:
                        current += 1
                    break
            process.join()
    table = Table(
        "target", "inputs", "refused", "read as it was", "read as other data", "faults", title="damaged files"
    )
    for name, counter in found.items():
        other_data = "-" if TARGETS[name].sealed else f"{counter['other']:,}"
        row = [counter.total(), counter["refused"], counter["equal"]]
        table.add_row(name, *(f"{x:,}" for x in row), other_data, f"{counter['fault']:,}")
    totals = sum(found.values(), Counter())
    cells = [totals.total(), totals["refused"], totals["equal"], totals["other"], totals["fault"]]
    table.add_row("all", *(f"{x:,}" for x in cells))
    console.console.print(table)
    console.console.print(
        f"seed {config.seed}, {time.monotonic() - began:.0f} s, the slowest input {slowest:.1f} s; a dash: a checksum "
        "covers it, so that other data would be a fault."
    )
    return totals["fault"]


def _cpu_seconds(pid: int | None) -> float:
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _keep(folder: Path, name: str, place: Path, message: str, kept: Counter[str]) -> None:
    """Keep a fault's input and what it did; of the same kind at most three."""
    kind = f"{name} {message.strip().splitlines()[-1][:80]}"
    kept[kind] += 1
    if kept[kind] <= 3:
        target = folder / f"{name}-{sum(kept.values())}"
        shutil.copytree(place, target, dirs_exist_ok=True, symlinks=True)
        (target / "fault.txt").write_text(message, encoding="utf-8")
        console.console.print(f"fault: {kind} -> {target}")


def cli() -> None:
    """The command line; exit code 1 where there was a fault."""
    console.command(lambda: FuzzConfig, lambda config: sys.exit(min(1, main(config))), "fuzz.py", __doc__)


if __name__ == "__main__":
    cli()
