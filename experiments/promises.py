"""``python experiments/promises.py``: the figures of docs/trust.md that a test would take too long for.

    python experiments/promises.py kills       # every command killed at random moments, and started again
    python experiments/promises.py soak        # the quick sweep again and again in one process
    python experiments/promises.py constant    # when policies answer every state with one action

Everything runs on small data in a temporary folder. Damaged files have a command of their own
(``experiments/fuzz.py``), and so have versions (``.ci/versions``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table

from iwsft_control import sweep
from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import NOT_NEGATIVE, POSITIVE
from iwsft_control.base.console import cache_compiled_programs
from iwsft_control.base.errors import near, require
from iwsft_control.benchmark import perform
from iwsft_control.configs.critic import CriticConfig
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.datasets import minari_files
from iwsft_control.datasets.types import Dataset, Episodes
from iwsft_control.learning import loop
from iwsft_control.learning.method import Inputs
from iwsft_control.methods import registry
from iwsft_control.networks import policies

TASK, ID = "hopper-medium-replay", "D4RL/hopper/medium-replay-v2"
SMALL = (
    "--quick --policy.hidden 8 --policy.bc-steps 20 --policy.fine-tune-steps 10 --policy.batch-size 16 "
    "--critic.steps 20 --critic.hidden 8 --critic.batch-size 16"
).split()
SCORES = {"ref_min_score": -20.272305, "ref_max_score": 3234.3}


@dataclasses.dataclass(frozen=True)
class Kills:
    """Kill every command with -9 at random moments, start it again, and compare with a run that nobody killed."""

    kills: Annotated[int, POSITIVE] = 20
    """Of each command."""
    commands: tuple[str, ...] = ("collect", "import", "run", "sweep", "table", "finetune")
    """Which."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Of the moments, each uniform over the time that the command takes."""


@dataclasses.dataclass(frozen=True)
class Soak:
    """The quick sweep again and again in one process, on small data and networks, each time from nothing."""

    rounds: Annotated[int, POSITIVE] = 50
    """How often."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """How far actions differ from state to state, of policies that learned and of policies that learned too fast."""

    steps: Annotated[int, POSITIVE] = 3000
    """Of each training."""


Command = (
    Annotated[Kills, tyro.conf.subcommand("kills", prefix_name=False)]
    | Annotated[Soak, tyro.conf.subcommand("soak", prefix_name=False)]
    | Annotated[Constant, tyro.conf.subcommand("constant", prefix_name=False)]
)


# --- kills -----------------------------------------------------------------------------------------------------------

# The real commands, but that their data are small, and that fine-tuning keeps how far it is after every update.
COLLECT = """
import dataclasses
from iwsft_control import collect
from iwsft_control.datasets import facts
from iwsft_control.reconstruction import pool
known = facts.D4RL_MEDIUM_REPLAY["hopper"]
facts.D4RL_MEDIUM_REPLAY["hopper"] = dataclasses.replace(known, transitions=8000)
pool.CHECKPOINT_STEPS = 1000
collect.cli()
"""
IMPORT = """
from pathlib import Path
from iwsft_control import d4rl
from iwsft_control.base import files
from iwsft_control.datasets import d4rl_files, facts
path = Path("hopper_medium_replay-v2.hdf5")
facts.D4RL_MEDIUM_REPLAY.clear()
d4rl.official_files = lambda: {path.name: d4rl_files.OfficialFile(path.stat().st_size, files.sha256(path))}
d4rl.cli()
"""
FINETUNE = """
from iwsft_control import finetune
from iwsft_control.base import snapshot
snapshot.SNAPSHOT_SECONDS = 0.0
finetune.cli()
"""


@dataclasses.dataclass(frozen=True)
class Work:
    """A command, what it needs, and where its results are."""

    arguments: list[str]
    results: str
    """Folder of what must not be lost."""
    prepare: Callable[[Path], None] = lambda folder: None


def small_data(folder: Path) -> None:
    """A small D4RL/hopper/medium-replay-v2, which the task takes before the embedded data."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    lengths = np.random.default_rng(0).integers(5, 40, 30)
    minari_files.write_minari(ID, hopper_episodes(lengths), "d4rl/Hopper-v2", SCORES)


def hopper_episodes(lengths: np.ndarray) -> Episodes:
    """Random episodes of Hopper's shape."""
    rng, n, e = np.random.default_rng(0), int(lengths.sum()), len(lengths)
    ends = np.zeros(n, bool)
    ends[np.cumsum(lengths) - 1] = True
    return Episodes(
        observations=rng.standard_normal((n + e, 11)).astype(np.float32),
        actions=np.tanh(rng.standard_normal((n, 3))).astype(np.float32),
        rewards=rng.random(n).astype(np.float32),
        terminations=np.zeros(n, bool),
        truncations=ends,
        starts=np.cumsum([0, *lengths]),
    )


def legacy_file(folder: Path) -> None:
    """A file of D4RL's layout, large enough to be killed while it is converted."""
    import h5py

    rng, n = np.random.default_rng(0), 100_000
    qpos, qvel = rng.standard_normal((n, 6)), rng.standard_normal((n, 6))
    seen = np.concatenate([qpos[:, 1:], qvel], axis=1)
    with h5py.File(folder / "hopper_medium_replay-v2.hdf5", "w") as file:
        arrays = {
            "observations": seen,
            "next_observations": seen,
            "actions": np.tanh(qpos[:, :3]),
            "rewards": qvel[:, 0],
        }
        arrays |= {"terminals": np.arange(n) % 100 == 99, "timeouts": np.zeros(n, bool)}
        for name, array in (arrays | {"infos/qpos": qpos, "infos/qvel": qvel}).items():
            file[name] = array


def finished_sweep(folder: Path) -> None:
    """Results for a table."""
    small_data(folder)
    command = [*WORKS["sweep"].arguments, "--seeds", "0", "1", "--methods", "bc", "sft", "iw-sft-q"]
    subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, check=True)


MODULE = [sys.executable, "-m"]
WORKS = {
    "collect": Work(
        [sys.executable, "-c", COLLECT, "--env", TASK, "--seeds", "3", "--updates-per-step", "0.02", "--work", "work"],
        "work",
    ),
    "import": Work([sys.executable, "-c", IMPORT, "import", "hopper_medium_replay-v2.hdf5"], "minari", legacy_file),
    "run": Work(
        [*MODULE, "iwsft_control.run", "--env", TASK, "--method", "bc", "sft-q", "iw-sft-q", *SMALL,
         "--results", "results", "--stages", "stages"],
        "results", small_data,
    ),
    "sweep": Work(
        [*MODULE, "iwsft_control.sweep", "--tasks", TASK, *SMALL, "--seeds", "0", "--results", "results",
         "--stages", "stages", "--workers", "2"],
        "results", small_data,
    ),
    "table": Work(
        [*MODULE, "iwsft_control.table", "results", "--quick", "--focus", "iw-sft-q", "--out", "out"],
        "out", finished_sweep,
    ),
    "finetune": Work(
        [sys.executable, "-c", FINETUNE, "--env", TASK, "--method", "uft", "rl", "--reward", "sparse", "--quick",
         "--ppo.groups", "1", "--ppo.group-size", "2", "--ppo.minibatch", "64", "--ppo.critic-hidden", "8",
         "--ppo.spread-steps", "5", "--policy.hidden", "8", "--policy.bc-steps", "20", "--results", "results",
         "--stages", "stages"],
        "results",
    ),
}  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """The environment of a command whose data and caches lie in a folder; compiled programs are shared."""
    own = {"MINARI_DATASETS_PATH": str(folder / "minari"), "XDG_CACHE_HOME": str(folder / "cache")}
    shared = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"), "PYTHONPATH": os.pathsep.join(sys.path)}
    return os.environ | own | shared


def digests(folder: Path) -> dict[str, str]:
    """What every result file holds, but for the times that a run took; unfinished and temporary files aside."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or "-current" in name or any(part.startswith(".") for part in Path(name).parts):
            continue
        content = path.read_bytes()
        if path.suffix == ".json" and b'"seconds"' in content:
            content = json.dumps(json.loads(content) | {"seconds": None}).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def kills(config: Kills) -> int:
    """Kill, start again, compare; returns the number of results that were lost or differ."""
    for name in config.commands:
        require(name in WORKS, f"unknown command {name!r}: {near(name, list(WORKS))}")
    different = len(set(config.commands)) == len(config.commands) > 0
    require(different, "--commands must name one or more different commands.")
    rng = np.random.default_rng(config.seed)
    table = Table("command", "seconds", "kills", "starts", "results", "lost", "other than unkilled", title="kill -9")
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in config.commands:
            work, rounds = WORKS[name], 0
            whole, seconds = _whole(work, Path(temporary) / name)
            done = starts = lost = other = 0
            while done < config.kills:
                folder = Path(temporary) / f"{name}-{rounds}"
                folder.mkdir()
                work.prepare(folder)
                seen: dict[str, str] = {}
                for _ in range(min(3, config.kills - done)):
                    starts += 1
                    killed = _start_and_kill(work, folder, rng.uniform(0, seconds))
                    done += killed
                    now = digests(folder / work.results)
                    lost += sum(now.get(key) != value for key, value in seen.items())
                    seen = now
                starts += 1
                _finish(work, folder)
                now = digests(folder / work.results)
                lost += sum(now.get(key) != value for key, value in seen.items())
                other += sum(now.get(key) != whole.get(key) for key in now.keys() | whole.keys())
                rounds += 1
            table.add_row(name, f"{seconds:.0f}", *map(str, (done, starts, len(whole), lost, other)))
            console.console.print(
                f"{name}: {done} kills, {starts} starts, {len(whole)} results, {lost} lost, {other} other than unkilled"
            )
            bad += lost + other
    console.console.print(table)
    return bad


def _whole(work: Work, folder: Path) -> tuple[dict[str, str], float]:
    """The results of a run that nobody kills, and its seconds: of the second, whose programs are compiled."""
    for each in (folder.with_name(f"{folder.name}-warm"), folder):
        each.mkdir()
        work.prepare(each)
        began = time.monotonic()
        _finish(work, each)
        seconds = time.monotonic() - began
    return digests(folder / work.results), seconds


def _finish(work: Work, folder: Path) -> None:
    answer = subprocess.run(work.arguments, cwd=folder, env=environment(folder), capture_output=True, text=True)
    already = answer.returncode == 2 and "already in" in answer.stderr  # an import that was killed after its end
    assert answer.returncode == 0 or already, answer.stderr


def _start_and_kill(work: Work, folder: Path, seconds: float) -> bool:
    """Start a command and kill it after some seconds, unless it has ended by then."""
    process = subprocess.Popen(
        work.arguments, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


# --- soak ------------------------------------------------------------------------------------------------------------


def soak(config: Soak) -> int:
    """Sweep again and again; returns 1 where memory or open files grow, or a worker passes 1 GiB."""
    memory, open_files = [], []
    with tempfile.TemporaryDirectory() as temporary, _watch_children() as peak:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        small_data(Path(temporary))
        policy = PolicyConfig(hidden=(8,), bc_steps=20, fine_tune_steps=10, batch_size=16)
        small = {"policy": policy, "critic": CriticConfig(steps=20, hidden=(8,), batch_size=16)}
        for i in range(config.rounds):
            folders = {"results": Path(temporary) / f"{i}", "stages": Path(temporary) / f"{i}-stages"}
            sweep.main(sweep.Plan(quick=True, tasks=(TASK,), seeds=(0,), workers=1, **small, **folders))
            memory.append(_status("self", "VmRSS") / 1024)
            open_files.append(len(list(Path("/proc/self/fd").iterdir())))
    first, last = (float(np.mean(part)) for part in (memory[len(memory) // 5 :][:10], memory[-10:]))
    console.console.print(
        f"{config.rounds} quick sweeps of 8 runs: memory {first:.0f} MiB after the first fifth, {last:.0f} MiB in the "
        f"end; open files {open_files[0]} after the first, {open_files[-1]} after the last; largest worker "
        f"{peak[0] / 1024:.0f} MiB."
    )
    return int(last > 1.05 * first or open_files[-1] > open_files[0] or peak[0] >= 1 << 20)


def _status(process: str, field: str) -> int:
    """A field of /proc/.../status, in KiB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


@contextlib.contextmanager
def _watch_children() -> Iterator[list[int]]:
    """The largest resident memory, in KiB, that any child of this process has had."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            for task in Path("/proc/self/task").iterdir():
                with contextlib.suppress(OSError):
                    for child in (task / "children").read_text().split():
                        peak[0] = max(peak[0], _status(child, "VmHWM"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield peak
    over.set()
    thread.join()


# --- policies of one action ------------------------------------------------------------------------------------------

DATA = {
    "the best action depends on the state": lambda s, a: -((a - np.tanh(s[:, :2])) ** 2).sum(1),
    "one action is best, at the bounds": lambda s, a: a.sum(1),
    "one action is best, inside": lambda s, a: -((a - 0.5) ** 2).sum(1),
    "the data hold one action alone": None,
}


def bandit_data(reward: Callable[[np.ndarray, np.ndarray], np.ndarray] | None) -> Dataset:
    """4,000 random states (3,) and actions (2,), uniform in [-1, 1], or all 1 where there is no reward to tell them."""
    rng, n = np.random.default_rng(0), 4000
    states, after = (rng.standard_normal((n, 3)).astype(np.float32) for _ in range(2))
    actions = np.ones((n, 2), np.float32) if reward is None else rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    rewards = actions.sum(1) if reward is None else reward(states, actions)
    return Dataset(
        id="bandit", sha256="0" * 64, origin="Minari", environment="d4rl/Hopper-v2", ref_min_score=0.0,
        ref_max_score=1.0, observations=states, actions=actions, rewards=rewards.astype(np.float32),
        next_observations=after, terminations=np.zeros(n, bool), starts=np.arange(0, n + 1, 40),
    )  # fmt: skip


def spread(method: str, data: Dataset, steps: int, learning_rate: float | None = None) -> float:
    """Largest distance, over action dimensions, between the smallest and the largest action over all states."""
    found = registry.get(method)
    config: Any = dataclasses.replace(found.config(), steps=steps, hidden=(64, 64))
    if learning_rate is not None:
        rates = [f.name for f in dataclasses.fields(config) if "learning_rate" in f.name]
        config = dataclasses.replace(config, **dict.fromkeys(rates, learning_rate))
    trained = loop.train(found, config, found.prepare(config, Inputs(data, {}, None, (0,))), (0,))
    assert found.export is not None
    policy = policies.make(perform.export(found.export, config, data, trained.policy)[0])
    actions, _ = policy.act(policy.initial(len(data.actions)), data.observations, np.random.default_rng(0))
    return float(np.ptp(actions, axis=0).max())


def constant(config: Constant) -> int:
    """Train on data whose best policy is, and is not, one action; then too fast."""
    cache_compiled_programs()
    methods = ("td3-bc", "awac", "iql")
    table = Table("data", *methods, title="largest difference of actions over all states")
    for name, reward in DATA.items():
        table.add_row(name, *(f"{spread(m, bandit_data(reward), config.steps):.3f}" for m in methods))
    data = bandit_data(DATA["the best action depends on the state"])
    for rate in (0.01, 0.1, 1.0):
        cells = []
        for method in methods:
            try:
                cells.append(f"{spread(method, data, config.steps, rate):.3g}")
            except loop.DivergedError:
                cells.append("not finite")
        table.add_row(f"the first, learning rate {rate:g}", *cells)
    console.console.print(table)
    return 0


def main(config: Kills | Soak | Constant) -> int:
    """Measure one figure; returns what to exit with."""
    bounds.check(config, "")
    if isinstance(config, Kills):
        return min(1, kills(config))
    return soak(config) if isinstance(config, Soak) else constant(config)


def cli() -> None:
    """The command line; exit code 1 where a promise is broken."""
    console.command(lambda: Command, lambda config: sys.exit(main(config)), "promises.py", __doc__)


if __name__ == "__main__":
    cli()
