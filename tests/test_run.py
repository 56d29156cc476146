"""The run command, end to end on small data, and its answers to what cannot be meant."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from iwsft_control import load_policy, run
from iwsft_control.base import children, console, files
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import processes, results, settings, stages
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.supervised import KINDS, PolicyConfig
from iwsft_control.datasets import minari_files
from iwsft_control.envs import evaluation
from iwsft_control.learning import loop, objectives
from iwsft_control.methods import awac, cql, iql, rebrac, registry, td3_bc
from iwsft_control.methods.critic import CriticConfig
from tests.conftest import make_episodes, write_hopper

ID = "test/hopper/small-v0"
POLICY = PolicyConfig(hidden=(8,), bc_steps=20, fine_tune_steps=10, batch_size=16)
CRITIC = CriticConfig(steps=20, hidden=(8,), batch_size=16)


def small():
    write_hopper(ID)


def config(tmp_path, **changes):
    options = {"dataset": ID, "quick": True, "results": tmp_path / "results", "policy": POLICY, "critic": CRITIC}
    return run.RunConfig(**options | changes)


SMALL = {"hidden": (8,), "steps": 20, "batch_size": 16}
BASELINE_CONFIGS = {
    "iql": iql.IQLConfig(**SMALL),
    "td3_bc": td3_bc.TD3BCConfig(**SMALL),
    "awac": awac.AWACConfig(**SMALL),
    "cql": cql.CQLConfig(**SMALL),
    "rebrac": rebrac.ReBRACConfig(**SMALL),
}


def test_all_baselines(tmp_path, one_process):
    small()
    methods = ("iql", "td3-bc", "awac", "cql", "rebrac")
    run.main(config(tmp_path, method=methods, seeds=(4,), **BASELINE_CONFIGS))
    found = {p: results.read(p) for p in (tmp_path / "results").rglob("*.json")}
    assert sorted(r.method for r in found.values()) == sorted(methods)
    for path, result in found.items():
        own = BASELINE_CONFIGS[result.method.replace("-", "_")]
        assert result.config == json.loads(json.dumps(dataclasses.asdict(own)))
        averaged = result.method not in ("td3-bc", "rebrac")
        assert (result.config["average_decay"] == 0) != averaged
        assert ("last parameters" in result.evaluation["policy"]) != averaged
        assert result.quality is None and result.seed == 4
        assert result.diagnostics["training"]["step"] == [20]
        assert list(result.seconds) == [result.method, f"{result.method} evaluation"]
        again = evaluation.evaluate(load_policy(path.with_suffix(".safetensors")), "d4rl/Hopper-v2", 5)
        # Up to the rounding of matrix products: the parameters lie elsewhere in memory.
        np.testing.assert_allclose(again, result.episode_returns, rtol=1e-8)


def test_rebrac_tuned_takes_its_settings_from_the_task(tmp_path):
    chosen = settings.validate(settings.make())
    for task, (policy, critic) in rebrac.TUNED.items():
        stage = stages.method_stage("rebrac-tuned", "q", (0,), chosen, task)
        tuned = stages.configuration(stage)
        assert (tuned["beta_policy"], tuned["beta_critic"]) == (policy, critic)
    plain = stages.configuration(stages.method_stage("rebrac", "q", (0,), chosen, task))
    assert (plain["beta_policy"], plain["beta_critic"]) != (policy, critic)
    with pytest.raises(UserError, match=r"--rebrac\.beta-policy has no effect on rebrac-tuned"):
        stages.method_stage(
            "rebrac-tuned", "q", (0,), chosen.replace(rebrac=rebrac.ReBRACConfig(beta_policy=0.3)), task
        )
    small()
    with pytest.raises(UserError, match="rebrac-tuned is for --env hopper-medium-replay"):
        run.main(config(tmp_path, method=("rebrac-tuned",)))


@pytest.mark.parametrize(("quality", "methods"), [("q", tuple(KINDS)), ("return", ("sft-q", "iw-sft-q"))])
def test_all_methods(tmp_path, one_process, capsys, quality, methods):
    small()
    run.main(config(tmp_path, method=methods, quality=quality))
    found = {p: results.read(p) for p in (tmp_path / "results").rglob("*.json")}
    assert sorted(r.method for r in found.values()) == sorted(methods)
    for path, result in found.items():
        assert len(result.episode_returns) == 5
        assert result.quick
        assert result.quality == (quality if result.method.endswith("-q") else None)
        assert result.dataset["id"] == ID
        assert result.physics["corrections"]
        assert result.config["policy"]["bc_steps"] == 20
        assert ("fine_tune_steps" in result.config["policy"]) == KINDS[result.method].fine_tunes
        assert ("critic" in result.config) == (result.quality == "q")
        assert ("importance" in result.config) == KINDS[result.method].importance_weighted
        assert ("bc_start" in result.diagnostics) == KINDS[result.method].fine_tunes
        assert ("critic" in result.seconds) == (quality == "q" and result.method.endswith("-q"))
        policy = load_policy(path.with_suffix(".safetensors"))
        again = evaluation.evaluate(policy, "d4rl/Hopper-v2", 5)
        np.testing.assert_array_equal(again, result.episode_returns)
        assert policy(np.zeros(11)).shape == (3,)
    printed = capsys.readouterr().out
    assert "test/hopper/small-v0 (a Minari data set)" in printed
    assert "trial, not a score" in printed


def test_the_same_seed_gives_the_same_file_bit_for_bit(tmp_path, monkeypatch):
    """With BC and the critic in processes of their own, and with one after the other in this one."""
    small()
    began: list[int] = []

    class Counted(processes.Processes):
        def __init__(self, store, progress, workers):
            began.append(workers)
            super().__init__(store, progress, workers)

    monkeypatch.setattr(processes, "Processes", Counted)
    for name, cores in (("a", 4), ("b", 1)):
        monkeypatch.setattr(children, "usable_cores", lambda cores=cores: cores)
        folders = {"results": tmp_path / name, "stages": tmp_path / f"stages-{name}"}
        run.main(config(tmp_path, method=("iw-sft-q",), **folders))
    assert began == [2]
    weights = [next((tmp_path / n).rglob("*.safetensors")).read_bytes() for n in ("a", "b")]
    assert weights[0] == weights[1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be kept on cores here")
def test_cores_are_those_that_the_process_may_use():
    """As Slurm and taskset give them, not those of the machine."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert children.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert children.usable_cores() == len(before)


@pytest.mark.parametrize(
    ("variables", "threads", "name"),
    [
        pytest.param({}, 1, "cpu, one thread", marks=pytest.mark.slow),
        ({"NPROC": "8"}, 1, "cpu, one thread"),  # as some clusters set it
        pytest.param({"PJRT_NPROC": "4"}, 4, "cpu, several threads", marks=pytest.mark.slow),
    ],
)
def test_xla_has_one_thread_unless_told_otherwise(variables, threads, name):
    """In a fresh process, counted where the system tells them; keys of stages say which."""
    program = """
import contextlib
from iwsft_control.benchmark import jobs, store
from iwsft_control.base import children
from pathlib import Path
kind, tasks = store.device_kind(), Path("/proc/self/task")
names = []
for task in tasks.iterdir() if tasks.is_dir() else []:
    with contextlib.suppress(OSError):  # a thread that has just ended
        names.append((task / "comm").read_text())
print(children.xla_threads(), sum("XLAEigen" in name for name in names) if names else children.xla_threads(), kind)
"""
    outside = {k: v for k, v in os.environ.items() if k not in ("PJRT_NPROC", "NPROC")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=outside | variables, capture_output=True, text=True, check=True
    )
    said, counted, kind = done.stdout.strip().split(" ", 2)
    assert (int(said), int(counted), kind) == (threads, threads, name)


def test_where_jax_has_begun_its_threads_are_as_they_are(monkeypatch):
    """Here it has: nothing is set, so that the keys of stages stay true."""
    jax.devices()
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.delenv("NPROC", raising=False)
    children.one_thread()
    assert "PJRT_NPROC" not in os.environ
    assert children.xla_threads() == children.usable_cores()


@pytest.mark.slow
def test_several_seeds_in_processes_are_the_seeds_alone(tmp_path):
    if children.usable_cores() < 2:
        pytest.skip("one core: seeds run one after the other")
    small()
    run.main(config(tmp_path, seeds=(0, 1), method=("bc",)))
    run.main(config(tmp_path, seeds=(1,), method=("bc",), results=tmp_path / "alone"))
    both = {r.seed: r for r in map(results.read, (tmp_path / "results").rglob("*.json"))}
    alone = results.read(next((tmp_path / "alone").rglob("*.json")))
    assert set(both) == {0, 1}
    np.testing.assert_allclose(both[1].episode_returns, alone.episode_returns, rtol=1e-3)
    assert both[0].episode_returns != both[1].episode_returns


def test_another_configuration_does_not_overwrite(tmp_path):
    small()
    run.main(config(tmp_path, method=("bc",)))
    run.main(config(tmp_path, method=("bc",), policy=PolicyConfig(hidden=(8,), bc_steps=5)))
    assert len(list((tmp_path / "results").rglob("*.json"))) == 2


def test_the_released_recipe(tmp_path, one_process):
    small()
    plain = {
        "policy": PolicyConfig(hidden=(8,)),
        "importance": objectives.ImportanceConfig(),
        "preset": "released",
    }
    run.main(config(tmp_path, method=("bc", "iw-sft"), **plain))
    found = {r.method: r for r in map(results.read, (tmp_path / "results").rglob("*.json"))}
    assert found["iw-sft"].config["preset"] == found["bc"].config["preset"] == "released"
    assert found["iw-sft"].config["importance"]["high"] == 1000.0 and found["bc"].config["policy"]["average_decay"] == 0
    assert found["iw-sft"].config["curation"] == {"filter_percentile": 90}
    chosen = settings.validate(settings.make(**plain)).of(registry.card("iw-sft-q")).curation
    assert (chosen.strata, chosen.strata_of) == ((90, 95, 98), "units")
    assert len(found["iw-sft"].diagnostics["training"]["effective_sample_size"]) == 200
    with pytest.raises(UserError, match="sets the options --importance itself"):
        run.main(config(tmp_path, method=("iw-sft",), **plain | {"importance": objectives.ImportanceConfig(lag=0.5)}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"env": "hopper-medium-reply", "dataset": None}, "did you mean hopper-medium-replay"),
        ({"env": None, "dataset": None}, "say what to run"),
        ({"method": ("iw-stf",)}, "did you mean iw-sft"),
        ({"method": ("bc", "bc")}, "different methods"),
        ({"method": ()}, "one or more"),
        ({"seeds": ()}, "one or more"),
        ({"seeds": (-1,)}, "--seeds must lie"),
        ({"dataset": "test/hopper/smal-v0"}, "did you mean test/hopper/small-v0"),
        ({"policy": PolicyConfig(bc_steps=-5)}, "--policy.bc-steps must be positive, not -5"),
        ({"critic": CriticConfig(steps=0)}, "--critic.steps must be positive"),
        ({"critic": CriticConfig(expectile=1.5)}, r"--critic.expectile must lie in \[0, 1\], not 1.5"),
        ({"ref_min_score": 3.0}, "both --ref-min-score"),
        ({"ref_min_score": 3.0, "ref_max_score": 2.0}, "must be below"),
        ({"curation": CurationConfig(strata=(90, 100))}, r"strata must lie in \[0, 100\)"),
        ({"curation": CurationConfig(strata=())}, "must not be empty"),
        ({"importance": objectives.ImportanceConfig(low=2000.0)}, "low must not be above --importance.high"),
        ({"iql": iql.IQLConfig(beta=float("nan"))}, "--iql.beta must not be negative, not nan"),
        ({"cql": cql.CQLConfig(hidden=(256, 0))}, "--cql.hidden must be positive"),
        ({"method": ("critic",)}, "critic has no policy"),
        ({"method_file": (Path("nowhere.py"),)}, "nowhere.py does not exist"),
        ({"preset": "released", "policy": PolicyConfig()}, "--preset released is for"),
        ({"preset": "released"}, "sets the options --policy itself"),
        ({"preset": "relaesed"}, "--preset must be 'released' or '', not 'relaesed'"),
        ({"importance": objectives.ImportanceConfig(temperature=3.0)}, "--importance.temperature has no effect"),
        ({"curation": CurationConfig(segment_steps=10)}, "--curation.segment-steps has no effect"),
        ({"env": "walker2d-medium-replay", "dataset": "iwsft/hopper/medium-replay-v1"}, "leave one out"),
    ],
)
def test_user_errors(tmp_path, changes, sentence):
    small()
    with pytest.raises(UserError, match=sentence) as error:
        run.main(config(tmp_path, **changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "results").exists()


def test_unwritable_results(tmp_path):
    small()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into"):
        run.main(config(tmp_path, results=tmp_path / "file" / "below"))


def test_an_environment_that_cannot_be_made(tmp_path):
    small()
    path = minari_files.minari_path(ID) / "data/metadata.json"
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["env_spec"])
    spec |= {"id": "Nowhere-v0", "entry_point": "nowhere:Env"}
    path.write_text(json.dumps(metadata | {"env_spec": json.dumps(spec)}))
    with pytest.raises(UserError, match="Nowhere-v0"):
        run.main(config(tmp_path))


def test_another_minari_data_set_in_its_own_environment(tmp_path):
    """A data set such as mujoco/hopper/medium-v0: stock physics, no reference scores of its own."""
    import gymnasium as gym

    minari_files.write_minari("mujoco/hopper/medium-v0", make_episodes(), "Hopper-v5", {})
    assert gym.spec("Hopper-v5")
    with pytest.raises(UserError, match="--ref-min-score"):
        run.main(config(tmp_path, dataset="mujoco/hopper/medium-v0"))
    scores = {"ref_min_score": 0.0, "ref_max_score": 3000.0}
    run.main(config(tmp_path, dataset="mujoco/hopper/medium-v0", method=("bc",), **scores))
    result = results.read(next((tmp_path / "results").rglob("*.json")))
    assert result.physics["environment"] == "Hopper-v5"
    assert result.physics["corrections"] == []
    assert result.task == "mujoco/hopper/medium-v0"


def command(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "iwsft_control.run", *arguments], capture_output=True, text=True, cwd=cwd, timeout=300
    )


def test_exit_codes_of_the_command():
    wrong = command("--env", "hoper-medium-replay")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: unknown task")
    assert "Traceback" not in wrong.stderr
    assert wrong.stderr.count("\n") == 1
    helped = command("--help")
    assert helped.returncode == 0
    for option in ("--env", "--method", "--seeds", "--quality", "--results", "--quick", "--critic.expectile"):
        assert option in helped.stdout


def test_a_keyboard_interrupt_is_not_a_stack_trace(capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    sys.argv, before = ["run"], sys.argv
    try:
        with pytest.raises(SystemExit) as error:
            console.command(lambda: run.RunConfig, interrupted, "run", "")
    finally:
        sys.argv = before
    assert error.value.code == 130
    assert "kept" in capsys.readouterr().err


def test_policies_that_are_not(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_policy(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        load_policy(tmp_path / "x.safetensors")
    files.save_pytree(tmp_path / "y.safetensors", {"a": np.zeros(3)})
    with pytest.raises(UserError, match="does not hold a policy"):
        load_policy(tmp_path / "y.safetensors")


def test_what_a_failure_stops_is_not_tried(tmp_path, one_process, monkeypatch, capsys):
    """BC diverges: it is trained once, sft and iw-sft are not begun, what does not need it is done."""
    small()
    trained, train = [], loop.train

    def failing(method, *arguments, **options):
        trained.append(method.name)
        if method.name == "bc":
            raise loop.DivergedError("bc (seed 0) diverged by step 20: a parameter or a loss is not finite.")
        return train(method, *arguments, **options)

    monkeypatch.setattr(loop, "train", failing)
    with pytest.raises(SystemExit) as error:
        run.main(config(tmp_path, method=("bc", "sft", "iw-sft", "filtered-bc")))
    assert error.value.code == 1 and "diverged by step 20" in capsys.readouterr().err
    assert trained == ["bc", "filtered-bc"]
    assert [p.name.split("-seed")[0] for p in (tmp_path / "results").rglob("*.json")] == ["filtered-bc"]
