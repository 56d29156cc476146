"""The reconstruction: SAC's losses, whole episodes, resuming, acceptance, and the data sets it writes."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import minari
import numpy as np
import pytest

from iwsft_control import collect
from iwsft_control.base import files
from iwsft_control.base.errors import UserError
from iwsft_control.datasets import facts, load, minari_files, packed, transitions, types
from iwsft_control.envs import evaluation, tasks
from iwsft_control.networks.policies import TanhGaussianPolicy
from iwsft_control.reconstruction import collection, levels, pool, portraits, sac
from tests.conftest import make_episodes

TINY = sac.SACConfig(updates_per_step=0.02, batch_size=32, hidden=(16, 16), first_steps=1000)

HOPPER = tasks.parse_task("hopper-medium-replay")


@pytest.fixture
def tiny(monkeypatch):
    """Collections that take seconds: 3,000 SAC steps and 2,000 of each fixed policy."""
    monkeypatch.setattr(levels, "ROLLOUT_STEPS", 2000)
    monkeypatch.setattr(levels, "SAC", TINY)
    short = {k: dataclasses.replace(v, transitions=3000) for k, v in facts.D4RL_MEDIUM_REPLAY.items()}
    monkeypatch.setattr(facts, "D4RL_MEDIUM_REPLAY", short)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_resumed_run_is_the_same_run(tmp_path):
    whole = collection.Run("d4rl/Hopper-v2", TINY, 3, 3000)
    for _ in range(3):
        whole.iterate()
    first = collection.Run("d4rl/Hopper-v2", TINY, 3, 2000)
    for _ in range(2):
        first.iterate()
    first.save(tmp_path / "x.safetensors")
    second = collection.Run("d4rl/Hopper-v2", TINY, 3, 3000)
    second.load(tmp_path / "x.safetensors")
    second.iterate()
    same(whole.record, second.record)
    same(whole.learner, second.learner)


def test_the_best_policy_tried_is_kept(tmp_path, monkeypatch):
    """SAC's return rises and falls: the expert is the best policy tried, not the last; trying changes no run."""
    trials = iter([[3.0, 5.0], [9.0, 1.0], [4.0, 4.0]])  # mean returns 4, 5, 4
    monkeypatch.setattr(collection, "evaluate", lambda *_, **__: np.array(next(trials)))
    run, alone = (collection.Run("d4rl/Hopper-v2", TINY, 3, 4000) for _ in range(2))
    policies = []
    for _ in range(3):
        run.iterate()
        policies.append(jax.tree.map(np.asarray, run.learner.policy))
        run.try_policy()
        alone.iterate()
    same(run.record, alone.record)
    same(run.learner, alone.learner)
    assert (run.best.mean_return, run.best.steps) == (5.0, 2000)
    same(run.best.policy, policies[1])
    run.save(tmp_path / "x.safetensors")
    again = collection.Run("d4rl/Hopper-v2", TINY, 3, 4000)
    again.load(tmp_path / "x.safetensors")
    assert again.best[1:] == run.best[1:]
    same(again.best.policy, run.best.policy)
    same(again.learner, run.learner)


def test_a_trial_plays_sampled_actions():
    """Ten episodes of the untrained policy, whose mean hardly moves: its return comes from the samples' spread."""
    run = collection.Run("d4rl/Hopper-v2", TINY, 3, 1000)
    run.try_policy()
    first = run.best.mean_return
    run.best = None
    run.try_policy()
    assert run.best.mean_return == first
    still = evaluation.evaluate(lambda o: np.zeros((len(o), 3), np.float32), "d4rl/Hopper-v2", 10, first_seed=2_000_000)
    assert abs(first - still.mean()) > 5


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run = collection.Run("d4rl/Hopper-v2", TINY, 3, 1000)
    run.iterate()
    run.save(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="another configuration"):
        collection.Run("d4rl/Hopper-v2", TINY, 4, 1000).load(tmp_path / "x.safetensors")


def test_seeds_differ_and_episodes_are_whole():
    runs = [collection.Run("d4rl/Hopper-v2", TINY, seed, 2000) for seed in (0, 1)]
    for run in runs:
        run.iterate()
        run.iterate()
    assert not np.array_equal(runs[0].record["observations"], runs[1].record["observations"])
    episodes = runs[0].episodes()
    types.check(episodes, "run")
    rows = types.state_rows(episodes.starts)
    np.testing.assert_array_equal(episodes.observations[rows], runs[0].record["observations"])
    np.testing.assert_array_equal(episodes.observations[rows + 1], runs[0].record["next_observations"])
    np.testing.assert_allclose(episodes.observations[:, :5], episodes.qpos[:, 1:], rtol=1e-6)
    np.testing.assert_array_equal(episodes.observations[:, 5:], np.clip(episodes.qvel, -10, 10))
    assert 1000 in episodes.starts  # rlkit cuts paths at the end of an iteration
    assert np.diff(episodes.starts).max() <= 1000


def test_fingerprint():
    run = collection.Run("d4rl/Hopper-v2", TINY, 0, 1000)
    run.iterate()
    found = portraits.fingerprint(run.episodes())
    returns = run.returns()
    assert (found.transitions, found.episodes) == (1000, len(returns))
    assert found.mean == pytest.approx(returns.mean(), rel=1e-6)


@pytest.mark.parametrize(
    "level", ["random", *(pytest.param(x, marks=pytest.mark.slow) for x in ("medium", "expert", "medium-expert"))]
)
def test_fixed_policies(level, tiny, tmp_path):
    name = f"hopper-{level}"
    trained = {"expert_steps": 4000} if "expert" in level else {}
    collect.main(collect.CollectConfig(name, work=tmp_path / "work", **trained))
    data = minari.load_dataset(f"iwsft/hopper/{level}-v1")
    assert data.total_steps == (4000 if level == "medium-expert" else 2000)
    assert load.load(tasks.parse_task(name)).origin == "reconstruction"
    assert (data.storage.metadata.get("expert", {}).get("steps") == 4000) == ("expert" in level)
    if level == "random":
        actions = load.load(tasks.parse_task(name)).actions
        assert actions.min() < -0.99
        assert abs(actions.mean()) < 0.05
        assert data.storage.metadata["algorithm_name"] == "uniform"
        assert "generation_config" not in data.storage.metadata
    with pytest.raises(UserError, match="exists already"):
        collect.main(collect.CollectConfig(name, work=tmp_path / "work"))


def test_an_expert_that_is_none_is_told():
    """SAC's return rises and falls: the best policy of a run may be far from D4RL's expert."""
    episodes, task = make_episodes((1000,)), tasks.parse_task("hopper-medium-expert")
    for mean, level, said in (
        (3200.0, "expert", "expert policy: mean return 3200, D4RL's 3511"),
        (1381.0, "expert", "expert policy: mean return 1381, D4RL's 3511: NO EXPERT."),
        (900.0, "medium", "medium policy: mean return 900, D4RL's 1422"),
        (18.0, "random", "random policy: mean return 18"),
    ):
        episodes.rewards[:] = mean / 1000
        line = levels.beside_d4rl(task, level, episodes)
        assert line.startswith(said) and ("--expert-steps" in line) == ("NO EXPERT" in said)


def choose(record, chosen):
    """What accept writes of its choice."""
    files.write_json(record / "hopper-medium-replay.json", {"chosen": chosen.name})
    pool.write(record / "pool", chosen)


@pytest.mark.slow  # what only the makers of embedded data do
def test_only_the_chosen_replay_is_packed(tiny, tmp_path):
    """By default the chosen replay's seed and updates are used; the embedded folder takes no other replay."""
    seed, updates = collect.CHOSEN["hopper"]
    work, record = tmp_path / "work", tmp_path / "record"
    config = collect.CollectConfig("hopper-medium-replay", work=work, embed=tmp_path / "packed", record=record)
    with pytest.raises(UserError, match="names no chosen candidate"):
        collect.main(config)
    candidate = pool.Candidate("hopper", 3, 1.0, "0", portraits.portrait(make_episodes((30,)), None))
    choose(record, candidate)
    with pytest.raises(
        UserError, match=r"names seed3-u1, not seed2-u0\.4; give --seed 3 --updates-per-step 1, or leave"
    ):
        collect.main(config)
    assert not work.exists() and not (tmp_path / "packed").exists()  # both were said before anything was made
    choose(record, dataclasses.replace(candidate, seed=seed, updates_per_step=updates))
    with pytest.raises(UserError, match=r"this replay is not seed2-u0\.4 of"):
        collect.main(config)
    assert not list((tmp_path / "packed").iterdir()) and not minari_files.minari_path(HOPPER.reconstruction_id).exists()
    run = pool.begin("d4rl/Hopper-v2", dataclasses.replace(TINY, updates_per_step=updates), seed, 3000, work)
    assert run.steps == 3000  # the replay itself is kept
    choose(record, pool.candidate(run))
    collect.main(config)
    entry = json.loads((tmp_path / "packed/manifest.json").read_text())[HOPPER.reconstruction_id]
    assert (tmp_path / "packed" / entry["file"]).stat().st_size == entry["bytes"]


def test_a_replay_that_is_not_the_embedded_one_has_an_id_of_its_own(tiny, tmp_path, monkeypatch, capsys):
    """It would stand in the place of the embedded data in every later run."""
    made = [{"physics": {"environment": "d4rl/Hopper-v2"}, "versions": {"jax": v}, "device": "x"} for v in "12"]
    monkeypatch.setattr(collection, "provenance", lambda env_id: made[0])
    pool.grow("d4rl/Hopper-v2", TINY, 3, 2000, tmp_path).save(tmp_path / "Hopper-v2-seed3-u0.02-current.safetensors")
    monkeypatch.setattr(collection, "provenance", lambda env_id: made[1])
    collect.main(collect.CollectConfig("hopper-medium-replay", seed=3, updates_per_step=0.02, work=tmp_path))
    name = "iwsft/hopper/medium-replay-seed3-u0.02-v1"
    assert f"--dataset {name}" in capsys.readouterr().out.replace("\n", "")
    assert load.resolve(HOPPER) == HOPPER.reconstruction_id and minari_files.local_ids() == [name]
    assert minari.load_dataset(name).total_steps == 3000
    metadata = minari_files.read_metadata(name)
    assert metadata["replay_sha256"] == load.load(None, name).sha256
    assert metadata["versions"] == {"jax": "1"} and metadata["run"]["continued"] == [made[1]]  # begun by other versions
    run = collection.Run("d4rl/Hopper-v2", TINY, 3, 3000)
    run.made = made[0] | {"physics": {"environment": "d4rl/Hopper-v3"}}
    with pytest.raises(UserError, match=r"belongs to a run in \{'environment': 'd4rl/Hopper-v2'\}"):
        run.load(tmp_path / "Hopper-v2-seed3-u0.02-3000.safetensors")


def test_only_the_embedded_replay_made_again_takes_the_embedded_id(tmp_path, monkeypatch):
    """Beside it another replay has its own id, and may be made while the embedded one lies unpacked."""

    def begins(*_):
        raise InterruptedError

    monkeypatch.setattr(levels, "_collect", begins)
    minari_files.minari_path(HOPPER.reconstruction_id).mkdir(parents=True)
    config = collect.CollectConfig("hopper-medium-replay", seed=77, work=tmp_path)
    with pytest.raises(InterruptedError):
        collect.main(config)
    with pytest.raises(UserError, match=r"medium-replay-v1 exists already; delete it"):
        collect.main(dataclasses.replace(config, seed=None))
    minari_files.minari_path("iwsft/hopper/medium-replay-seed77-u1-v1").mkdir()
    with pytest.raises(UserError, match=r"medium-replay-seed77-u1-v1 exists already; delete it"):
        collect.main(config)


def test_data_are_written_and_packed_alike(tiny, tmp_path, monkeypatch):
    record = tmp_path / "record"
    choose(record, pool.candidate(pool.grow("d4rl/Hopper-v2", TINY, 0, 3000, tmp_path / "work")))
    options = {"work": tmp_path / "work", "embed": tmp_path / "packed", "record": record}
    collect.main(collect.CollectConfig("hopper-medium-replay", seed=0, **options))
    monkeypatch.setattr(packed, "EMBEDDED", tmp_path / "packed")
    unpacked, metadata = packed.read_embedded(HOPPER.reconstruction_id)
    assert (metadata["seed"], metadata["generation_config"]["updates_per_step"]) == (0, 0.02)
    assert types.content_sha256(unpacked) == load.load(HOPPER).sha256


def test_what_cannot_be_written_is_said_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write into .*iwsft/hopper"):
        collect.main(collect.CollectConfig("hopper-random", work=tmp_path / "work"))


@pytest.mark.parametrize("env", ["ant-medium-replay", "hopper-full-replay"])
def test_what_is_not_reconstructed(env):
    with pytest.raises(UserError, match="not reconstructed"):
        collect.main(collect.CollectConfig(env))


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({"seeds": (0, 1), "seed": 7}, "--seed has no effect with --seeds"),
        ({"seeds": (0,), "embed": Path("x")}, "--embed has no effect with --seeds"),
        ({"unpack": True, "updates_per_step": 0.5}, "--updates-per-step has no effect with --unpack"),
        ({"unpack": True, "env": "hopper-expert", "expert_steps": 5000}, "--expert-steps has no effect with --unpack"),
        ({"unpack": True, "expert_steps": 5000}, "--expert-steps is for expert and medium-expert; leave it out"),
        ({"seeds": (0,), "expert_steps": 5000}, "--expert-steps is for expert"),
        ({"env": "hopper-random", "expert_steps": 5000}, "--expert-steps is for expert"),
        ({"unpack": True, "work": Path("x")}, "--work has no effect with --unpack"),
        ({"record": Path("x")}, "--record is for --embed"),
        ({"env": "hopper-random", "updates_per_step": 0.5}, "--updates-per-step has no effect on random"),
        ({"env": "hopper-expert", "expert_steps": 0}, "--expert-steps must be a positive multiple of 1000"),
        ({"seed": -1}, "--seed must lie between"),
        ({"seeds": (-1,)}, "--seeds must lie between"),
    ],
)
def test_an_option_without_an_effect_is_refused(changes, idle):
    with pytest.raises(UserError, match=idle):
        collect.main(collect.CollectConfig(**{"env": "hopper-medium-replay"} | changes))


# --- SAC ---------------------------------------------------------------------------------------------------------


def test_log_prob_of_a_squashed_gaussian_by_change_of_variables():
    net = TanhGaussianPolicy((8,), 2)
    observation = jnp.array([[0.3, -0.5]])
    params = net.init(jax.random.key(1), observation)
    mean, log_std = net.apply(params, observation)
    action, log_prob = sac.sample(net, params, observation, jax.random.key(0))
    u = np.arctanh(np.asarray(action, np.float64))
    std = np.exp(np.asarray(log_std))
    density = np.exp(-0.5 * ((u - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi)) / (1 - np.tanh(u) ** 2)
    assert float(log_prob[0]) == pytest.approx(float(np.log(density).sum()), rel=1e-4)


def test_numpy_action_is_the_networks():
    net = TanhGaussianPolicy((16, 16), 3)
    o = np.random.default_rng(0).standard_normal((7, 11)).astype(np.float32)
    params = net.init(jax.random.key(0), o)
    noise = np.random.default_rng(1).standard_normal((7, 3)).astype(np.float32)
    mean, log_std = net.apply(params, o)
    ours = sac.act(jax.tree.map(np.asarray, params), o, noise)
    np.testing.assert_allclose(ours, np.tanh(mean + np.exp(log_std) * noise), rtol=1e-4, atol=1e-5)


def test_networks_start_as_rlkit_starts_them():
    state = jax.jit(sac.create, static_argnums=(0, 1, 2))(sac.SACConfig(), 11, 3, jax.random.key(0))
    for params, last in ((state.policy, 1e-3), (state.critic, 3e-3)):
        layers = params["params"]["net"]
        for name in ("Dense_0", "Dense_1"):
            kernel = np.abs(layers[name]["kernel"])
            assert 0.99 / 16 < kernel.max() <= 1 / 16  # 1 / sqrt(256): rlkit takes a layer's width for its fan-in
            assert kernel.mean() == pytest.approx(0.5 / 16, rel=0.05)
            np.testing.assert_array_equal(layers[name]["bias"], np.float32(0.1))
        assert 0.9 * last < np.abs(layers["Dense_2"]["kernel"]).max() <= last
        assert 0 < np.abs(layers["Dense_2"]["bias"]).max() <= last
    kernels = state.critic["params"]["net"]["Dense_0"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1])


def test_the_first_rows_are_the_untrained_policys_and_learning_begins_after_the_next_block():
    run = collection.Run("d4rl/Hopper-v2", TINY, 0, 2000)
    before = jax.tree.map(np.array, run.learner.policy)
    run.iterate()
    same(before, run.learner.policy)
    actions = run.record["actions"][:1000]
    assert np.abs(np.arctanh(np.clip(actions, -0.999999, 0.999999))).mean() == pytest.approx(0.8, abs=0.1)  # N(0, 1)
    run.iterate()
    assert not np.array_equal(jax.tree.leaves(before)[0], jax.tree.leaves(run.learner.policy)[0])


@pytest.mark.slow
def test_sac_solves_a_bandit():
    """One-step episodes whose reward is -(a - 0.6)^2: the policy's mean goes there."""
    config = sac.SACConfig(hidden=(32, 32), learning_rate=3e-3, batch_size=128)
    rng = np.random.default_rng(0)
    n = 2000
    actions = rng.uniform(-1, 1, (n, 1)).astype(np.float32)
    replay = transitions.Transitions(
        np.ones((n, 2), np.float32), actions, -10 * (actions[:, 0] - 0.6) ** 2, np.ones((n, 2), np.float32), np.ones(n)
    )
    replay = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), replay)
    state = sac.create(config, 2, 1, jax.random.key(0))
    state = sac.train(config, 800, state, replay, np.int32(n), jax.random.key(1))
    mean, _ = TanhGaussianPolicy(config.hidden, 1).apply(state.policy, jnp.ones((1, 2)))
    assert float(jnp.tanh(mean[0, 0])) == pytest.approx(0.6, abs=0.15)
