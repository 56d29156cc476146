"""The pool of candidates and their acceptance: portraits, the rule, and the command from replay to choice."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from iwsft_control import accept, collect
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import acceptance, settings
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.datasets import facts
from iwsft_control.envs import tasks
from iwsft_control.methods import iql, registry, td3_bc
from iwsft_control.reconstruction import collection, levels, pool, portraits, sac
from iwsft_control.report.published import PUBLISHED_TASKS
from tests.conftest import SHARED, make_episodes

TINY = sac.SACConfig(updates_per_step=0.02, batch_size=32, hidden=(16, 16))
HOPPER = tasks.ENVIRONMENTS["hopper"]


@pytest.fixture
def tiny(monkeypatch):
    """Replays of 3,000 steps by a small learner; reference methods of a few steps."""
    monkeypatch.setattr(levels, "SAC", TINY)
    monkeypatch.setattr(pool.sac, "SACConfig", lambda **changes: dataclasses.replace(TINY, **changes))
    short = {k: dataclasses.replace(v, transitions=3000) for k, v in facts.D4RL_MEDIUM_REPLAY.items()}
    monkeypatch.setattr(facts, "D4RL_MEDIUM_REPLAY", short)


def test_the_portrait_of_known_episodes():
    episodes = make_episodes((1000, 10, 30, 20))
    p = portraits.portrait(episodes, None)
    returns = [episodes.rewards[a:b].sum() for a, b in zip(episodes.starts[:-1], episodes.starts[1:], strict=True)]
    assert (p.transitions, p.episodes, p.full_length) == (1060, 4, 1)
    assert p.best_length == 1000 and p.best_return == pytest.approx(max(returns), rel=1e-5)
    assert p.last_tenth == pytest.approx(returns[-1], rel=1e-5)
    assert p.length_quantiles == pytest.approx(np.percentile([1000, 10, 30, 20], portraits.QUANTILES))
    assert p.state_shift is None and p.state_spread is None


def test_the_distance_of_states():
    """Zero from its own moments; one shift of a standard deviation and one doubled spread are seen as such."""
    episodes = make_episodes((30, 5, 17))
    rows = np.concatenate([np.arange(31)[:-1], 31 + np.arange(5), 37 + np.arange(17)])
    states = episodes.observations[rows].astype(np.float64)
    mean, std = states.mean(axis=0), states.std(axis=0)
    own = facts.StateMoments(tuple(mean), tuple(std))
    assert portraits.state_distance(episodes, own) == pytest.approx((0.0, 0.0), abs=1e-6)
    moved, half = mean.copy(), std.copy()
    moved[0] -= std[0]
    half[1] /= 2
    shift, spread = portraits.state_distance(episodes, facts.StateMoments(tuple(moved), tuple(half)))
    assert shift == pytest.approx(1 / math.sqrt(11), rel=1e-5)
    assert spread == pytest.approx(math.log(2) / math.sqrt(11), rel=1e-5)


def test_the_published_moments_are_those_at_hand():
    path = SHARED / "d4rl" / "medium_replay_state_stats.json"
    if not path.is_file():
        pytest.skip(f"no published moments to compare with: {path} is not there (it is not part of the repository)")
    for name, moments in json.loads(path.read_text()).items():
        ours = facts.D4RL_MEDIUM_REPLAY_STATES[name]
        np.testing.assert_allclose(ours.mean, moments["mean"], rtol=1e-3)
        np.testing.assert_allclose(ours.std, moments["std"], rtol=1e-3)


def test_distances_from_what_is_published():
    assert acceptance.distance("bc", 25.0, "hopper-medium-replay") == 0.0
    assert acceptance.distance("bc", 39.8, "hopper-medium-replay") == pytest.approx(1.0)
    assert acceptance.distance("td3-bc", 45.9, "hopper-medium-replay") == pytest.approx(1.0)
    scores = {"bc": {200: 20.0, 201: 30.0}, "filtered-bc": {200: 50.4, 201: 50.4}}
    assert acceptance.behaviour_distance(scores, "hopper-medium-replay") == pytest.approx(1.0)
    p = portraits.portrait(make_episodes((30,)), None)
    good = dataclasses.replace(p, mean=467.3, max=3000.0, state_shift=0.3, state_spread=0.15)
    assert acceptance.portrait_distance(good, HOPPER) == pytest.approx(2 / 3, rel=1e-6)
    assert acceptance.portrait_distance(dataclasses.replace(good, max=2500.0), HOPPER) == math.inf
    assert facts.published_range("hopper-medium-replay", "awac", 37.2) == (37.2, 98.9)
    assert facts.published_range("halfcheetah-medium-replay", "filtered-bc") == (40.6, 40.6)  # CORL's is none
    for i, task in enumerate(PUBLISHED_TASKS):  # the paper's figure stands with the method too
        papers = tuple(registry.card(method).published.scores[i] for method in facts.REFERENCE_METHODS)
        assert papers == facts.PAPER[task]
    for task, published in facts.PUBLISHED_SCORES.items():
        assert tasks.parse_task(task).name == task and all(low <= high for low, high in published.values())


def test_a_pool_is_made_kept_and_read(tiny, tmp_path, capsys):
    arguments = {"env": "hopper-medium-replay", "updates_per_step": 0.02, "work": tmp_path}
    collect.main(collect.CollectConfig(seeds=(3,), **arguments))
    collect.main(collect.CollectConfig(seeds=(3, 4), **arguments))
    printed = capsys.readouterr().out
    assert "D4RL" in printed and "seed4-u0.02" in printed
    first, second = pool.read(tmp_path, "hopper")
    assert (first.name, second.name) == ("seed3-u0.02", "seed4-u0.02")
    assert first.portrait.transitions == 3000 and first.sha256 != second.sha256
    assert len(pool.load_episodes(tmp_path, HOPPER, first).rewards) == 3000
    with pytest.raises(UserError, match="another replay than the portrait"):
        pool.load_episodes(tmp_path, HOPPER, dataclasses.replace(first, sha256="0"))
    (tmp_path / "hopper-seed9-u1.json").write_text("{}")
    with pytest.raises(UserError, match="not a candidate's portrait"):
        pool.read(tmp_path, "hopper")
    with pytest.raises(UserError, match="--seeds is for medium-replay"):
        collect.main(collect.CollectConfig("hopper-expert", seeds=(1,)))


@pytest.mark.slow
def test_seeds_that_grow_together(tmp_path, monkeypatch):
    """Their blocks are those of seeds alone as long as their policies are, and a stop between two checkpoints of one
    moment is made up for."""
    env_id, before = HOPPER.env_id, os.environ.get("OMP_NUM_THREADS")
    alone = [pool.grow(env_id, TINY, seed, 2000, tmp_path / "alone") for seed in (3, 4)]
    together = pool.grow_together(env_id, TINY, (3, 4), 2000, tmp_path / "together", 2)
    for one, other in zip(alone, together, strict=True):
        for name, column in one.record.items():
            np.testing.assert_array_equal(other.record[name], column, err_msg=name)  # no update before row 2,000
        for one_leaf, other_leaf in zip(jax.tree.leaves(one.learner), jax.tree.leaves(other.learner), strict=True):
            np.testing.assert_allclose(other_leaf, one_leaf, rtol=1e-4, atol=1e-5)
    told: list[int] = []
    monkeypatch.setattr(pool, "CHECKPOINT_SECONDS", 0.0)
    pool.grow_together(env_id, TINY, (3,), 1000, tmp_path / "stopped", 1)
    (tmp_path / "stopped" / "Hopper-v2-seed3-u0.02-1000.safetensors").rename(
        tmp_path / "stopped" / "Hopper-v2-seed3-u0.02-current.safetensors"
    )  # as if seed 4 had not been written
    again = pool.grow_together(env_id, TINY, (3, 4), 3000, tmp_path / "stopped", 2, told.append)
    assert told == [1000, 2000, 3000]  # seed 4 alone, then both
    whole = pool.grow_together(env_id, TINY, (3, 4), 3000, tmp_path / "together", 2)
    for one, other in zip(whole, again, strict=True):
        for name, column in one.record.items():
            np.testing.assert_allclose(other.record[name][:2000], column[:2000], rtol=1e-3, atol=1e-3)
        assert pool.candidate(other).portrait.transitions == 3000
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_a_shorter_run_leaves_the_checkpoint_of_a_longer_one(tmp_path):
    run = collection.Run(HOPPER.env_id, TINY, 3, 3000)
    current = pool.checkpoint(tmp_path, run)
    for steps, there in ((2000, 2000), (1000, 2000), (3000, 3000)):
        run.steps = steps
        pool._save(run, tmp_path, kept=False)
        assert pool.steps_of(current) == there
    run.steps = 1000
    pool._save(run, tmp_path, kept=True)
    assert pool.steps_of(pool.checkpoint(tmp_path, run, 1000)) == 1000 and pool.steps_of(current) == 3000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"env": "hopper-medium", "first": 1}, "--first is for medium-replay; leave it out"),
        ({"env": "hopper-medium", "second_seeds": (200,)}, "--second-seeds is for medium-replay"),
        ({"candidates": ("x",), "first": 1}, "--first has no effect with --candidates"),
        ({"only_first": True, "second": 1}, "--second has no effect with --only-first"),
        ({"second_seeds": (300,)}, "--second-seeds must be among --seeds"),
        ({"second_seeds": (-1,)}, "--second-seeds must lie between"),
        ({"second_seeds": (1, 1)}, "--second-seeds must name one or more different seeds"),
    ],
)
def test_options_of_acceptance_that_cannot_be(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        accept.main(accept.AcceptConfig(**{"env": "hopper-medium-replay", "work": tmp_path} | changes))


def test_a_record_of_acceptance_loses_nothing(tmp_path):
    task = tasks.parse_task("hopper-medium-replay")
    committed = Path(__file__).parents[1] / "results/reconstruction/hopper-medium-replay.json"
    config = accept.AcceptConfig(task.name, tmp_path / "work", out=tmp_path)
    assert acceptance._known(config, task) == {}
    shutil.copy(committed, tmp_path)
    known, record = acceptance._known(config, task), json.loads(committed.read_text())
    assert {n: {m: {str(k): x for k, x in of.items()} for m, of in each.items()} for n, each in known.items()} == (
        record["scores"]
    )
    for changes in ({"seeds": (200,)}, {"only_first": True}):
        with pytest.raises(UserError, match="holds more seeds or methods than this would write; choose another --out"):
            acceptance._known(dataclasses.replace(config, **changes), task)
    published = acceptance.PUBLISHED_SCORES[task.name]
    perfect = {method: {200: published[method][0]} for method in acceptance.TOLERANCE}
    for left_out, accepted in ((None, True), ("iql", False), ("bc", False)):  # too few methods accept nothing
        scores = {"x": {m: of for m, of in perfect.items() if m != left_out}}
        assert acceptance.write_record(config, task, scores, {}, "x") == accepted
        assert json.loads((tmp_path / committed.name).read_text())["accepted"] == accepted
    assert not acceptance.write_record(config, task, {"x": perfect | {"bc": {200: 90.0}}}, {}, "x")
    (tmp_path / committed.name).write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        acceptance._known(config, task)


@pytest.mark.slow
def test_from_candidates_to_a_choice(tiny, tmp_path, monkeypatch, capsys):
    """Every step of the rule, on replays and methods so small that nothing is learned."""
    work, out = tmp_path / "work", tmp_path / "out"
    collect.main(collect.CollectConfig("hopper-medium-replay", seeds=(0, 1), updates_per_step=0.02, work=work))
    small = {"hidden": (8,), "batch_size": 16, "steps": 20}
    made = settings.make(
        policy=PolicyConfig(hidden=(8,), bc_steps=20, batch_size=16),
        iql=iql.IQLConfig(**small),
        td3_bc=td3_bc.TD3BCConfig(**small),
    )
    monkeypatch.setattr(settings, "make", lambda: made)
    monkeypatch.setattr(acceptance, "portrait_distance", lambda portrait, environment: portrait.mean)
    config = accept.AcceptConfig("hopper-medium-replay", work, seeds=(200, 201), second=1, out=out, workers=1)
    accept.main(config)
    record = json.loads((out / "hopper-medium-replay.json").read_text())
    assert set(record["scores"]) == {"seed0-u0.02", "seed1-u0.02"}
    tried = {name: set(found) for name, found in record["scores"].items()}
    assert sorted(map(len, tried.values())) == [2, 4]  # only the nearer one meets IQL and TD3+BC
    assert record["chosen"] == next(name for name, found in tried.items() if len(found) == 4)
    assert {len(by_seed) for found in record["scores"].values() for by_seed in found.values()} == {2}
    assert not record["accepted"]
    assert len(list((out / "pool").glob("hopper-seed*.json"))) == 2
    assert "the nearest, but not accepted" in capsys.readouterr().out
    for changes, sentence in (
        ({"candidates": ("seed7-u1",)}, "no candidate seed7-u1"),
        ({"work": tmp_path / "empty"}, "no candidates in"),
        ({"env": "ant-medium-replay"}, "--env must be one of hopper-medium-replay"),
        ({"workers": 0}, "--workers must be positive"),
        ({"first": 0}, "--first must be positive"),
    ):
        with pytest.raises(UserError, match=sentence):
            accept.main(dataclasses.replace(config, **changes))


@pytest.mark.slow
def test_the_data_of_another_level_are_compared(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(levels, "ROLLOUT_STEPS", 2000)
    small = {"hidden": (8,), "batch_size": 16}
    made = settings.make(policy=PolicyConfig(bc_steps=20, **small))
    monkeypatch.setattr(settings, "make", lambda: made)
    config = accept.AcceptConfig("hopper-medium", tmp_path, seeds=(200,), out=tmp_path / "out", only_first=True)
    with pytest.raises(UserError, match="hopper/medium-v1 is not there; run"):
        accept.main(config)
    collect.main(collect.CollectConfig("hopper-medium", work=tmp_path))
    accept.main(config)
    record = json.loads((tmp_path / "out" / "hopper-medium.json").read_text())
    assert record["dataset"]["id"] == "iwsft/hopper/medium-v1" and not record["accepted"]
    assert set(record["scores"]["iwsft/hopper/medium-v1"]) == {"bc", "filtered-bc"}
    assert "52.9" in capsys.readouterr().out
