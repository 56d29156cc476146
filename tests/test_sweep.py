"""Sweeps: shared stages once, failures alone, kills without loss, local processes and a Ray cluster."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from iwsft_control import sweep
from iwsft_control.base import children, console, files
from iwsft_control.base import snapshot as snapshots
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import export, grid, processes, ray_pool, results, settings, sources, stages, store
from iwsft_control.benchmark import jobs as benchmark_jobs
from iwsft_control.benchmark.board import EVALUATION_SECONDS, Board, Seen, seconds_left, seconds_of
from iwsft_control.benchmark.jobs import (
    DataSource,
    Failure,
    InProcessPool,
    Job,
    execute,
    unfinished,
    with_dependencies,
    write_results,
)
from iwsft_control.benchmark.perform import perform
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.envs import evaluation
from iwsft_control.envs.tasks import MEDIUM_REPLAY
from iwsft_control.learning import loop
from iwsft_control.methods import critic, iql
from tests.conftest import in_this_process, write_hopper

ROOT = Path(__file__).parents[1]

TASK = "hopper-medium-replay"
POLICY = PolicyConfig(hidden=(8,), bc_steps=20, fine_tune_steps=10, batch_size=16)
CRITIC = critic.CriticConfig(steps=20, hidden=(8,), batch_size=16)
SETTINGS = settings.make(quick=True, policy=POLICY, critic=CRITIC)
OPTIONS = "--quick --policy.hidden 8 --policy.bc-steps 20 --policy.fine-tune-steps 10 --policy.batch-size 16".split()
CRITIC_OPTIONS = "--critic.steps 20 --critic.hidden 8 --critic.batch-size 16".split()


ORPHAN_SECONDS = 5  # that a worker may outlive its parent: 0.1 to 0.3 on an idle machine


pytestmark = pytest.mark.usefixtures("imported_hopper")


def plan(tmp_path, name="a", **changes):
    values = {
        "quick": True,
        "policy": POLICY,
        "critic": CRITIC,
        "tasks": (TASK,),
        "seeds": (0,),
        "results": tmp_path / name,
        "stages": tmp_path / f"{name}-stages",
        "workers": 1,
    }
    return sweep.Plan(**values | changes)


def found(folder: Path) -> dict[str, dict]:
    """Result files and policies of a sweep without what may differ between two: times."""
    return {
        str(p.relative_to(folder)): {k: v for k, v in json.loads(p.read_text()).items() if k != "seconds"}
        | {"policy": files.sha256(p.with_suffix(".safetensors"))}
        for p in sorted(folder.rglob("*.json"))
    }


def test_data_sets_of_ones_own_are_swept_over(tmp_path, one_process):
    """Alone, or beside tasks; what is not named is not run."""
    names = [[job.source.task for job in grid.plan_jobs(each, SETTINGS)] for each in (
        sweep.Plan(methods=("bc",), seeds=(0,)),
        sweep.Plan(methods=("bc",), seeds=(0,), datasets=("my/a-v0", "my/b-v0")),
        sweep.Plan(methods=("bc",), seeds=(0,), datasets=("my/a-v0",), tasks=(TASK,)),
    )]  # fmt: skip
    assert names == [list(MEDIUM_REPLAY), ["my/a-v0", "my/b-v0"], [TASK, "my/a-v0"]]
    write_hopper("my/hopper/small-v0")
    scores = {"ref_min_score": 1.0, "ref_max_score": 11.0}
    sweep.main(plan(tmp_path, tasks=None, datasets=("my/hopper/small-v0",), methods=("bc",), **scores))
    (path,) = (tmp_path / "a").rglob("*.json")
    found = results.read(path)
    assert found.task == found.dataset["id"] == "my/hopper/small-v0"
    assert found.normalised_score == pytest.approx(10 * (np.mean(found.episode_returns) - 1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"datasets": ("a/b", "a/b")}, "--datasets must name one or more different data sets"),
        ({"datasets": ()}, "--datasets must name one or more different data sets"),
        (
            {"datasets": ("D4RL/hopper/medium-replay-v2",)},
            "of one of --tasks and named with --datasets",
        ),
        ({"datasets": ("a/b", "a/c"), "ref_min_score": 0.0, "ref_max_score": 1.0}, "for a single data set"),
        ({"ref_min_score": 0.0, "ref_max_score": 1.0}, "for a single data set of --datasets"),
        ({"ref_min_score": 0.0}, "give both --ref-min-score and --ref-max-score"),
        ({"tasks": ("my/hopper/noisy-v0",)}, r"a data set is named with --dataset \(of a sweep --datasets\)"),
    ],
)
def test_data_sets_that_are_not_told_rightly(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        sweep.main(plan(tmp_path, **changes))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--seeds", "0-2", "7"], ["--seeds", "0", "1", "2", "7"]),
        (["task", "--seeds=3-4", "--quick"], ["task", "--seeds", "3", "4", "--quick"]),
        (["--seeds", "0", "--env", "1-2", "--iql.beta=1-2"], ["--seeds", "0", "--env", "1-2", "--iql.beta=1-2"]),
    ],
)
def test_a_range_of_seeds_is_every_one_of_them(given, meant):
    assert console.with_ranges(given) == meant


@pytest.mark.parametrize(
    ("given", "sentence"),
    [("2-1", "ends before it begins; give the lower"), ("0-999999999", "are 1,000,000,000 seeds")],
)
def test_a_range_that_is_none_is_told(given, sentence):
    with pytest.raises(UserError, match=f"--seeds {given} {sentence}"):
        console.with_ranges([f"--seeds={given}"])


def test_shared_stages_are_made_once():
    jobs = grid.plan_jobs(sweep.Plan(tasks=(TASK,), seeds=(0, 1)), SETTINGS)
    everything = with_dependencies(jobs)
    names = [job.stage.name for job in everything]
    assert len(jobs) == 2 * 8  # six methods, two of them by two qualities
    assert names.count("bc") == names.count("critic") == 2
    assert len(everything) == 2 * 9
    place = {job: i for i, job in enumerate(everything)}
    assert all(place[need] < place[job] for job in everything for need in job.dependencies())


def test_data_are_named_once_unless_quiet_and_folders_opened(tmp_path, capsys):
    source, out, kept = DataSource(TASK), tmp_path / "results", tmp_path / "stages"
    assert benchmark_jobs.begin([source, DataSource(TASK)], out, kept).folder == kept
    assert capsys.readouterr().out.count("data: D4RL/hopper/medium-replay-v2") == 1
    assert (
        out.is_dir() and benchmark_jobs.begin([source], out, None, quiet=True).folder == files.cache_home() / "stages"
    )
    assert capsys.readouterr().out == ""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write into .*: it is a file"):
        benchmark_jobs.begin([source], tmp_path / "file", kept)


def test_the_time_left_is_that_of_the_longest_chain():
    """One run is not faster on sixteen cores: its fine-tuning waits for BC and the critic, which are side by side."""
    jobs = with_dependencies([Job(DataSource(TASK), stages.method_stage("iw-sft-q", "q", (0,), settings.make(), TASK))])
    seconds = {job.stage.method: seconds_of(job, Seen()) for job in jobs}
    assert seconds_left(jobs, 1, Seen()) == pytest.approx(sum(seconds.values()))
    assert seconds_left(jobs, 16, Seen()) == pytest.approx(seconds["critic"] + seconds["iw-sft-q"])
    assert seconds_left([], 2, Seen()) == 0.0


def test_the_time_left_follows_what_runs(monkeypatch):
    """What was under way for a while says how long its kind takes, also the kind that no card foresaw."""
    chosen = SETTINGS.replace(policy=dataclasses.replace(POLICY, bc_steps=1_000))
    wanted = [Job(DataSource(TASK), stages.method_stage("bc", None, (s,), chosen, TASK)) for s in (0, 1)]
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    board = Board(wanted, 1, 0, quiet=True)
    board.started(wanted[0])
    board.progress(wanted[0], "bc", 1_000, 400, {})  # a kill was between
    now = 600.0
    board.progress(wanted[0], "bc", 1_000, 100, {})
    evaluating = EVALUATION_SECONDS * 0.05  # 5 episodes, since the settings are those of a trial
    assert seconds_of(wanted[0], board.seen) == pytest.approx(6 * 500 + evaluating)
    assert seconds_of(wanted[1], board.seen) == pytest.approx(6 * 1_000 + evaluating)
    assert board.bar.tasks[0].description == "running 1, failed 0, about 2.5 h left"
    board.progress(wanted[0], "bc evaluation", 100, 0, {})
    board.finished(wanted[0], None)  # part of a training is not what a whole one takes
    assert seconds_of(wanted[1], board.seen) == pytest.approx(6 * 1_000 + evaluating)
    board.started(wanted[1])
    now = 5_000.0
    board.finished(wanted[1], None)
    assert seconds_of(wanted[0], board.seen) == 4_400.0
    assert board.bar.tasks[0].description == "running 0, failed 0, about 0 s left"


def test_the_released_recipe_is_no_matter_of_a_minute():
    """Whole trajectories cost a hundred times what single transitions do, which an estimate has to foresee."""
    plain, whole = SETTINGS, SETTINGS.replace(preset="released")
    seconds = [
        seconds_of(Job(DataSource(TASK), stages.method_stage("bc", None, (0,), each, TASK)), Seen())
        for each in (plain, whole)
    ]
    assert seconds[1] > 20 * seconds[0]


def test_keys_name_everything_that_matters_and_nothing_else(monkeypatch):
    data = DataSource(TASK).load()

    def key(method="iw-sft-q", quality="q", seeds=(0,), **changes):
        return store.key(stages.method_stage(method, quality, seeds, SETTINGS.replace(**changes), TASK), data)

    faster = dataclasses.replace(POLICY, fine_tune_learning_rate=1.0)
    longer = dataclasses.replace(POLICY, bc_steps=21)
    deeper = dataclasses.replace(CRITIC, steps=21)
    narrower = CurationConfig(strata=(95,))
    assert key() == key()
    assert len({key(), key(seeds=(1,)), key(quality="return"), key("sft-q"), key("sft"), key("bc")}) == 6
    for change in ({"policy": faster}, {"policy": longer}, {"critic": deeper}, {"curation": narrower}):
        assert key(**change) != key()
    assert key("bc", policy=faster) == key("bc")  # a fine-tune's setting leaves BC alone
    assert key("bc", policy=longer) != key("bc")
    assert key("critic", policy=longer) == key("critic")
    assert key("critic", critic=deeper) != key("critic")
    assert key("sft-q", "return", critic=deeper) == key("sft-q", "return")
    further = iql.IQLConfig(steps=7)
    assert key("iql", iql=further) != key("iql") == key("iql", critic=deeper, policy=longer)
    assert key("bc", iql=further) == key("bc") and key("td3-bc", iql=further) == key("td3-bc")
    assert key("iql", iql=iql.IQLConfig(average_decay=0.5)) != key("iql", iql=iql.IQLConfig())
    before = {m: key(m) for m in ("bc", "critic")}
    other = dataclasses.replace(data, sha256="1" * 64)
    assert store.key(stages.method_stage("bc", "q", (0,), SETTINGS, TASK), other) != before["bc"]
    monkeypatch.setattr(sources, "code_version", lambda paths: str(any(p.name == "curation.py" for p in paths)))
    curating = {m: key(m) for m in ("bc", "critic")}
    monkeypatch.setattr(sources, "code_version", lambda paths: "False")
    assert key("bc") != curating["bc"] and key("critic") == curating["critic"]


def test_the_code_version_is_of_what_code_does(tmp_path):
    def version(source):
        (tmp_path / "m.py").write_text(source)
        sources._text.cache_clear()
        return sources.code_version.__wrapped__((tmp_path / "m.py",))

    plain = version("def f(x):\n    return x + 1\n")
    assert version('"""Doc."""\n\ndef f(x):\n    """Adds."""\n    return x + 1  # one\n') == plain
    assert version("def f(x):\n    return x + 2\n") != plain


@pytest.mark.slow
def test_a_sweep_is_the_runs_alone(tmp_path):
    """Local processes give what each run alone in this process gives, bit for bit."""
    chosen = {"methods": ("iw-sft-q",), "qualities": ("return",)}  # BC first
    sweep.main(plan(tmp_path, "a", seeds=(0, 1), workers=2, **chosen))
    with_processes = found(tmp_path / "a")
    kept = store.Store(tmp_path / "here-stages")
    finished = {}
    jobs = grid.plan_jobs(plan(tmp_path, seeds=(1,), **chosen), SETTINGS)
    pool = InProcessPool(kept, lambda *event: None)
    execute(jobs, pool, kept, lambda job: None, finished.__setitem__)
    assert all(outcome is None for outcome in finished.values())
    for job in jobs:
        write_results(tmp_path / "here", kept, job)
    alone = found(tmp_path / "here")
    assert len(alone) == 1 and len(with_processes) == 2
    assert all(with_processes[name] == result for name, result in alone.items())
    read = [results.read(path) for path in (tmp_path / "a").rglob("*.json")]
    assert {(r.method, r.quality, r.seed) for r in read} == {("iw-sft-q", "return", 0), ("iw-sft-q", "return", 1)}


@pytest.mark.slow
def test_a_group_of_seeds_is_the_seeds_alone(tmp_path):
    """What an accelerator runs as one program: the same as each seed alone, up to rounding."""
    data = DataSource(TASK).load()

    def returns(name, seeds):
        kept = store.Store(tmp_path / name)
        stage = stages.method_stage("iw-sft-q", "q", seeds, SETTINGS, TASK)
        artefact = perform(stage, data, kept)
        inputs = kept.inputs(stage, data)
        read = export.run_results(stage, data, TASK, inputs, artefact)
        assert [r.seed for r in read] == list(seeds)
        return {r.seed: r for r in read}

    together, alone = returns("both", (0, 1)), returns("one", (1,))
    np.testing.assert_allclose(together[1].episode_returns, alone[1].episode_returns, rtol=1e-3)
    assert together[0].episode_returns != together[1].episode_returns
    assert together[1].diagnostics["bc_start"] == pytest.approx(alone[1].diagnostics["bc_start"], rel=1e-3)


def test_finished_stages_are_not_repeated(tmp_path, monkeypatch, capsys):
    sweep.main(plan(tmp_path, methods=("sft",)))
    before = found(tmp_path / "a")
    files = {p: p.stat().st_mtime_ns for n in ("a", "a-stages") for p in (tmp_path / n).rglob("*.safetensors")}
    assert len(files) == 3  # bc and sft among the stages, sft among the results
    monkeypatch.setattr(processes.Processes, "submit", lambda *_: pytest.fail("a finished stage was done again"))
    sweep.main(plan(tmp_path, methods=("sft",)))
    assert found(tmp_path / "a") == before
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert "other settings" not in capsys.readouterr().out
    # The same runs with other settings would stand beside these: it is told before they are trained.
    others = dataclasses.replace(POLICY, fine_tune_steps=9)
    sweep.main(plan(tmp_path, methods=("bc", "sft"), policy=others, dry_run=True))
    told = capsys.readouterr().out
    assert "of the same methods and seeds with other settings are there (1, as " in told and "sft-seed0-" in told
    assert ".json, first in policy.fine_tune_steps (" in told.replace("\n", "")
    # A policy that was damaged is written again, from the stage.
    (policy,) = (tmp_path / "a").rglob("*.safetensors")
    whole = policy.read_bytes()
    policy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    sweep.main(plan(tmp_path, methods=("sft",)))
    assert policy.read_bytes() == whole


def test_a_stage_that_is_gone_is_made_again_though_what_came_of_it_is_there(tmp_path, one_process):
    """A result tells of both: a sweep that took the last one for all of it ended in an error, each time."""
    sweep.main(plan(tmp_path, methods=("bc", "sft")))
    before = found(tmp_path / "a")
    job = next(job for job in grid.plan_jobs(plan(tmp_path), SETTINGS) if job.stage.name == "sft")
    kept = store.Store(tmp_path / "a-stages")
    kept.path(job.dependencies()[0].stage, job.source.load()).unlink()
    assert [each.stage.name for each in unfinished([job], kept)] == ["bc", "sft"]
    for path in (tmp_path / "a" / TASK).iterdir():
        path.unlink()
    sweep.main(plan(tmp_path, methods=("sft",)))
    assert found(tmp_path / "a").items() <= before.items() and len(found(tmp_path / "a")) == 1


@pytest.mark.slow
def test_a_damaged_stage_is_made_again(tmp_path):
    sweep.main(plan(tmp_path, methods=("bc",)))
    before = found(tmp_path / "a")
    (path,) = (tmp_path / "a-stages").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    sweep.main(plan(tmp_path, methods=("bc",)))
    assert found(tmp_path / "a") == before


@pytest.mark.slow
def test_a_killed_baseline_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "SNAPSHOT_SECONDS", 0)
    small = settings.make(quick=True, iql=iql.IQLConfig(steps=1000, hidden=(8,), batch_size=16))
    data, stage = DataSource(TASK).load(), stages.method_stage("iql", "q", (0,), small, TASK)
    call, firsts = loop._call, []

    def dying(*arguments):
        firsts.append(arguments[2])
        if len(firsts) == 2:
            raise KeyboardInterrupt
        return call(*arguments)

    killed = store.Store(tmp_path / "killed")
    monkeypatch.setattr(loop, "_call", dying)
    with pytest.raises(KeyboardInterrupt):
        perform(stage, data, killed)
    (kept,) = killed.folder.glob("*.unfinished")
    resumed = perform(stage, data, killed)
    assert len(firsts) == 3 and not kept.exists()
    whole = perform(stage, data, store.Store(tmp_path / "whole"))
    assert resumed.record["returns"] == whole.record["returns"] and resumed.record["logs"] == whole.record["logs"]


class Scripted:
    """A pool whose jobs end as a script says, without doing anything."""

    slots = 2

    def __init__(self, kept, failing, seed=0):
        self.kept, self.failing, self.seed, self.jobs, self.order = kept, failing, seed, [], []

    def submit(self, job):
        assert len(self.jobs) < self.slots
        self.jobs.append(job)
        self.order.append(job.stage.name)

    def wait(self):
        job = self.jobs.pop()
        fails = job.stage.name in self.failing and self.seed in job.stage.seeds
        return [(job, Failure("broken") if fails else None)]

    def close(self):
        pass


def test_a_failure_stops_only_what_needs_it(tmp_path):
    kept = store.Store(tmp_path / "stages")
    jobs = grid.plan_jobs(plan(tmp_path), SETTINGS)
    pool, outcomes = Scripted(kept, {"critic"}), {}
    execute(jobs, pool, kept, lambda job: None, outcomes.__setitem__)
    failed = {job.stage.name for job, outcome in outcomes.items() if outcome}
    assert failed == {"critic", "sft-q by q", "iw-sft-q by q"}
    assert len(outcomes) == 9
    assert pool.order.count("bc") == 1
    assert not failed & set(pool.order) - {"critic"}
    blocked = next(o for j, o in outcomes.items() if j.stage.name == "sft-q by q")
    assert "critic" in blocked.error


def test_seeds_that_fail_together_are_tried_alone(tmp_path, monkeypatch):
    """As an accelerator trains them: what one seed does costs the others nothing."""
    kept = store.Store(tmp_path / "stages")
    monkeypatch.setattr(benchmark_jobs, "groups", lambda seeds, accelerator: [tuple(seeds)])
    wanted = grid.plan_jobs(plan(tmp_path, seeds=(0, 1, 2), methods=("bc", "sft")), SETTINGS)
    assert [job.stage.seeds for job in wanted] == [(0, 1, 2)] * 2
    pool, outcomes = Scripted(kept, {"sft"}, seed=1), {}
    execute(wanted, pool, kept, lambda job: None, outcomes.__setitem__)
    failed = {(job.stage.name, job.stage.seeds) for job, outcome in outcomes.items() if outcome}
    assert failed == {("sft", (0, 1, 2)), ("sft", (1,))}
    done = {(job.stage.name, job.stage.seeds) for job, outcome in outcomes.items() if not outcome}
    assert done >= {("bc", (0, 1, 2)), ("sft", (0,)), ("sft", (2,))}


def test_a_failed_run_is_recorded_and_tried_again(tmp_path, one_process, monkeypatch, capsys):
    """An error in one method's evaluation: a file that says why, exit code 1, the other runs done."""
    whole = evaluation.evaluate

    def evaluate(*arguments, name, **options):
        if name.startswith("sft "):
            raise evaluation.PolicyError("sft: the action at step 3 is [nan]; actions must be finite.")
        return whole(*arguments, name=name, **options)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    with pytest.raises(SystemExit) as error:
        sweep.main(plan(tmp_path, methods=("bc", "sft", "filtered-bc")))
    assert error.value.code == 1
    (failure,) = (tmp_path / "a" / "failures").glob("*.json")
    assert "step 3" in json.loads(failure.read_text())["error"]
    assert {p.name.split("-seed")[0] for p in (tmp_path / "a" / TASK).glob("*.json")} == {"bc", "filtered-bc"}
    monkeypatch.setattr(evaluation, "evaluate", whole)
    sweep.main(plan(tmp_path, methods=("bc", "sft", "filtered-bc")))
    assert not list((tmp_path / "a" / "failures").glob("*.json"))
    assert len(list((tmp_path / "a" / TASK).glob("*.json"))) == 3


def start_sweep(tmp_path, name, *options, count="2"):
    command = [sys.executable, "-m", "experiments.sweep", "--tasks", TASK, "--workers", count, *OPTIONS, *options]
    command += ["--results", str(tmp_path / name), "--stages", str(tmp_path / f"{name}-stages")]
    with (tmp_path / f"{name}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)


def children_of(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(x) for x in listing.read_text().split()] if listing.exists() else []


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the worker processes in /proc")
@pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_killed_sweeps_end_as_an_uninterrupted_one(more, tmp_path, monkeypatch):
    """Killed with -9; with ``more`` a worker first, and then two sweeps on one folder: the same files in the end."""
    options = ("--seeds", "0", "--methods", "bc", "sft", "iw-sft")
    process = start_sweep(tmp_path, "killed", *options, count="1")
    kept = tmp_path / "killed-stages"
    wait_for(lambda: len(list(kept.glob("*.safetensors"))) >= 1)
    if more:
        servers = [p for p in children_of(process.pid) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
        os.kill(servers[-1], signal.SIGKILL)
        wait_for(lambda: len(list(kept.glob("*.safetensors"))) >= 2)
        assert not (tmp_path / "killed" / "failures").exists()  # the worker was replaced, its stage done again
    servers = children_of(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: all(map(ended, servers)), ORPHAN_SECONDS)
    again = [start_sweep(tmp_path, "killed", *options, count="1") for _ in range(1 + more)]
    assert not any(process.wait(timeout=300) for process in again)
    monkeypatch.setattr(processes, "Processes", in_this_process)
    sweep.main(plan(tmp_path, "whole", methods=("bc", "sft", "iw-sft"), workers=1))
    killed, whole = found(tmp_path / "killed"), found(tmp_path / "whole")
    assert killed == whole
    assert len(whole) == 3


BEGINS_JAX = """
import dataclasses
import jax.numpy as jnp
from iwsft_control.configs.td3_bc import TD3BCConfig
from iwsft_control.methods import td3_bc

SCALE = jnp.log(2.0)
METHOD = dataclasses.replace(td3_bc.METHOD, name="mine", option="mine", stream=None)
"""


@pytest.mark.slow
def test_a_method_file_that_begins_jax_is_trained_with_one_thread(tmp_path):
    """Else its stages would have one name in the sweep and another one in its workers."""
    (tmp_path / "mine.py").write_text(BEGINS_JAX)
    small = ("--mine.steps", "2", "--mine.hidden", "8", "--mine.batch-size", "8", "--seeds", "0", "--quick")
    options = (
        "--tasks",
        TASK,
        "--workers",
        "1",
        "--method-file",
        str(tmp_path / "mine.py"),
        "--methods",
        "mine",
        *small,
    )
    folders = ("--results", str(tmp_path / "a"), "--stages", str(tmp_path / "b"))
    environment = {k: v for k, v in os.environ.items() if k not in ("PJRT_NPROC", "NPROC")}
    command = [sys.executable, "-m", "iwsft_control.sweep", *options, *folders]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "a").rglob("mine*.json"))) == 1


POOL = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
import jax
from iwsft_control.base import children

def work(path):
    open(path, "w").write(str(os.getpid()))
    jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 2, lambda x: x * 0.5, x))(1.0).block_until_ready()

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), children.end_with_parent) as pool:
        pool.submit(work, sys.argv[1]).result()
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for a process in /proc")
def test_a_worker_ends_with_the_process_that_started_it(tmp_path):
    """Also in the middle of a compiled call, here of one that never returns."""
    (tmp_path / "pool.py").write_text(POOL)
    pid = tmp_path / "pid"
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "pool.py"), str(pid)], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    wait_for(lambda: pid.exists() and pid.read_text())
    time.sleep(2)  # until it computes
    process.kill()
    process.wait()
    wait_for(lambda: ended(pid.read_text()), ORPHAN_SECONDS)


def ended(pid):
    """Whether a process has ended, or has and only its parent does not know yet."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
def test_a_worker_that_dies_while_it_has_nothing_to_do_is_replaced(tmp_path):
    kept = store.Store(tmp_path / "stages")
    pool = processes.Processes(kept, lambda *event: None, 1)
    try:
        for seed in (0, 1):
            job = Job(DataSource(TASK), stages.method_stage("bc", "q", (seed,), SETTINGS, TASK))
            pool.submit(job)
            over = []
            while not over:
                over = pool.wait()
            assert over == [(job, None)]
            (worker,) = pool.idle
            worker.process.kill()
            worker.process.join()
    finally:
        pool.close()


@pytest.mark.slow
@pytest.mark.skipif(children.usable_cores() < 2, reason="one core gives no other number of cores to compare with")
def test_results_do_not_depend_on_the_number_of_cores():
    """One thread of XLA, as it is by default, on one core and on all; and several threads, as one may ask for: each the
    same bits however many there are, so stages may be shared."""
    program = """
import hashlib, jax, numpy as np
from iwsft_control.benchmark import jobs, store
from iwsft_control.learning import loop
from iwsft_control.methods import critic
from tests.conftest import make_data, prepared
data, config = make_data(tuple(range(40, 240))), critic.CriticConfig(steps=100)
states = loop.train(critic.METHOD, config, prepared(critic.METHOD, config, data), [0]).state
kept = critic.values(config, data, states)
found = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves((states, kept)))
print(store.device_kind(), hashlib.sha256(found).hexdigest())
"""
    every = os.sched_getaffinity(0)

    def digest(cores, **variables):
        os.sched_setaffinity(0, cores)  # the process inherits them
        try:
            run = subprocess.run(
                [sys.executable, "-c", program],
                env={k: v for k, v in os.environ.items() if k not in ("PJRT_NPROC", "NPROC")} | variables,
                capture_output=True,
                text=True,
                cwd=ROOT,
                check=True,
            )
        finally:
            os.sched_setaffinity(0, every)
        return run.stdout.strip()

    one, several = digest(every), digest(every, PJRT_NPROC="2")
    assert one.startswith("cpu, one thread ")
    assert several.startswith("cpu, several threads ")
    assert digest({min(every)}) == one
    assert digest(every, NPROC="8") == one  # as some clusters set it
    assert digest(every, PJRT_NPROC="16") == several


@pytest.mark.slow
def test_three_kills_at_random_moments(tmp_path):
    """The whole quick sweep, killed with -9 at three random moments, gives the table of an uninterrupted one."""
    rng = np.random.default_rng()
    options = ("--seeds", "0", "1", *CRITIC_OPTIONS)
    for _ in range(3):
        process = start_sweep(tmp_path, "killed", *options)
        time.sleep(rng.uniform(3, 20))
        process.kill()
        process.wait()
    assert start_sweep(tmp_path, "killed", *options).wait(timeout=600) == 0
    assert start_sweep(tmp_path, "whole", *options).wait(timeout=600) == 0
    assert found(tmp_path / "killed") == found(tmp_path / "whole")
    assert len(found(tmp_path / "whole")) == 16


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_with_a_node_killed_half_way(tmp_path, monkeypatch):
    """Two nodes, one more that joins late, one killed when half of the runs are done: none is lost or counts twice."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's workers yield to everything else; a test should not wait
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    doomed = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    kept = store.Store(tmp_path / "ray-stages")
    outcomes: list[tuple[Job, Failure | None]] = []
    slots = []
    jobs = grid.plan_jobs(plan(tmp_path, seeds=(0, 1), methods=("bc", "sft-q", "iw-sft-q"), qualities=("q",)), SETTINGS)
    total = len(with_dependencies(jobs))
    try:
        pool = ray_pool.RayCluster(kept, cluster.address)
        assert pool.slots == 2

        def finished(job, outcome):
            outcomes.append((job, outcome))
            slots.append(pool.slots)
            if len(outcomes) == 1:
                cluster.add_node(num_cpus=1)
            if len(outcomes) == total // 2:
                cluster.remove_node(doomed, allow_graceful=False)

        execute(jobs, pool, kept, lambda job: None, finished)
        pool.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert [o for _, o in outcomes if o] == []
    assert slots[0] == 2 and max(slots) == 3
    assert len(outcomes) == len({job for job, _ in outcomes}) == total
    for job in jobs:
        write_results(tmp_path / "ray", kept, job)
    sweep.main(plan(tmp_path, "a", seeds=(0, 1), methods=("bc", "sft-q", "iw-sft-q"), qualities=("q",), workers=2))
    assert found(tmp_path / "ray") == found(tmp_path / "a")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_node_without_the_package_is_one_sentence(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")

    def not_there():
        raise ModuleNotFoundError("No module named 'iwsft_control'")

    monkeypatch.setattr(ray_pool, "device_kind", not_there)
    try:
        with pytest.raises(UserError, match=r"can't run iwsft_control .*No module named.*; install the same version"):
            ray_pool.RayCluster(store.Store(tmp_path), "local")
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tasks": ("hopper-medium-reply",)}, "did you mean hopper-medium-replay"),
        ({"methods": ("iwsft",)}, "did you mean iw-sft"),
        ({"seeds": ()}, "one or more different seeds"),
        ({"workers": 0}, "--workers must be positive"),
        ({"qualities": ()}, "--qualities"),
        ({"ray": "127.0.0.1:1"}, "no Ray cluster answers"),
    ],
)
def test_user_errors(tmp_path, changes, sentence):
    if "ray" in changes:
        pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    with pytest.raises(UserError, match=sentence):
        sweep.main(plan(tmp_path, **changes))


def test_a_dry_run_does_nothing(tmp_path, capsys):
    sweep.main(plan(tmp_path, dry_run=True))
    printed = capsys.readouterr().out
    assert "8 runs in 9 stages" in printed
    assert "estimate" in printed
    assert not list((tmp_path / "a-stages").rglob("*.safetensors"))
