"""Data on disk: Minari round trips, the packed form, caches, damaged files, and which data a run uses."""

import json
import time
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest

from iwsft_control import collect
from iwsft_control.base import files
from iwsft_control.base.errors import UserError
from iwsft_control.datasets import facts, load, minari_files, packed, types
from iwsft_control.envs import tasks
from iwsft_control.reconstruction import pool
from tests.conftest import make_episodes

SCORES = {"ref_min_score": -20.0, "ref_max_score": 3000.0}
EMBEDDED = sorted(dataset_id.split("/")[1] for dataset_id in packed.embedded_manifest())
HOPPER = tasks.parse_task("hopper-medium-replay")


def write(dataset_id="test/hopper/small-v0", **kwargs):
    episodes = make_episodes(**kwargs)
    minari_files.write_minari(dataset_id, episodes, "d4rl/Hopper-v2", SCORES)
    return episodes


def test_minari_reads_what_is_written():
    episodes = write()
    found = minari.load_dataset("test/hopper/small-v0")
    assert (found.total_episodes, found.total_steps) == (4, 92)
    assert minari.get_normalized_score(found, np.array([3000.0])) == pytest.approx(1.0)
    assert found.env_spec.id == "d4rl/Hopper-v2"
    for e, episode in enumerate(found.iterate_episodes()):
        steps = slice(episodes.starts[e], episodes.starts[e + 1])
        states = slice(episodes.starts[e] + e, episodes.starts[e + 1] + e + 1)
        np.testing.assert_array_equal(episode.observations, episodes.observations[states])
        np.testing.assert_array_equal(episode.actions, episodes.actions[steps])
        np.testing.assert_array_equal(episode.rewards, episodes.rewards[steps])
        np.testing.assert_array_equal(episode.terminations, episodes.terminations[steps])
        np.testing.assert_array_equal(episode.truncations, episodes.truncations[steps])
        np.testing.assert_array_equal(episode.infos["qvel"], episodes.qvel[states])
        repr(episode)
    assert found.recover_environment().spec.id == "d4rl/Hopper-v2"


def test_flat_arrays():
    episodes = write()
    data = load.load(None, "test/hopper/small-v0")
    assert data.origin == "Minari"
    np.testing.assert_array_equal(data.lengths, [30, 5, 17, 40])
    for e in range(4):
        rows = slice(data.starts[e], data.starts[e + 1])
        states = episodes.observations[data.starts[e] + e : data.starts[e + 1] + e + 1]
        np.testing.assert_array_equal(data.observations[rows], states[:-1])
        np.testing.assert_array_equal(data.next_observations[rows], states[1:])
        assert data.returns[e] == pytest.approx(episodes.rewards[rows].sum(), rel=1e-5)
    np.testing.assert_array_equal(data.episode_of, np.repeat(range(4), [30, 5, 17, 40]))


def test_cache_gives_the_same_and_follows_the_file():
    write()
    first, second = load.load(None, "test/hopper/small-v0"), load.load(None, "test/hopper/small-v0")
    for name in ("observations", "actions", "rewards", "next_observations", "terminations", "starts"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.sha256 == second.sha256
    cached = list((files.cache_home() / "datasets").iterdir())
    assert len(cached) == 1
    write("test/hopper/other-v0", seed=1)
    assert load.load(None, "test/hopper/other-v0").sha256 != first.sha256


def test_pack_is_lossless_and_has_the_same_content_hash(tmp_path):
    episodes = make_episodes()
    assert (np.abs(episodes.qvel) > 10).any()  # so that the clip matters
    packed.pack(tmp_path / "x.hdf5", episodes, {"a": 1})
    again, metadata = packed.unpack(tmp_path / "x.hdf5")
    assert metadata == {"a": 1}
    for name in types.Episodes._fields:
        np.testing.assert_array_equal(getattr(again, name), getattr(episodes, name))
    assert types.content_sha256(again) == types.content_sha256(episodes)


def test_pack_refuses_what_it_cannot_restore(tmp_path):
    episodes = make_episodes()
    with pytest.raises(ValueError, match="do not determine"):
        packed.pack(tmp_path / "x.hdf5", episodes._replace(qpos=episodes.qpos + 1), {})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: f.__delitem__("episode_2/rewards"), "damaged"),
        (lambda f: f["episode_1/actions"].write_direct(np.full((5, 3), np.nan, np.float32)), "actions hold a NaN"),
        (lambda f: f.move("episode_3", "elsewhere"), "damaged"),
    ],
)
def test_damaged_minari_data(change, sentence):
    write()
    with h5py.File(minari_files.minari_path("test/hopper/small-v0") / "data/main_data.hdf5", "a") as file:
        change(file)
    with pytest.raises(UserError, match=sentence):
        load.load(None, "test/hopper/small-v0")


def test_truncated_minari_file():
    write()
    path = minari_files.minari_path("test/hopper/small-v0") / "data/main_data.hdf5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="damaged"):
        load.load(None, "test/hopper/small-v0")


@pytest.mark.parametrize("field", ["starts", "actions", "observations", "rewards"])
def test_lengths_that_disagree_are_refused(field):
    episodes = make_episodes()
    with pytest.raises(UserError, match="lengths"):
        types.check(episodes._replace(**{field: getattr(episodes, field)[:-1]}), "data")


def test_nothing_is_overwritten():
    write()
    with pytest.raises(UserError, match="already"):
        write()


def test_unknown_id_lists_near_ones():
    write()
    with pytest.raises(UserError, match="did you mean test/hopper/small-v0"):
        load.load(None, "test/hopper/smal-v0")


def test_reference_scores_are_asked_for():
    minari_files.write_minari("test/hopper/scoreless-v0", make_episodes(), "d4rl/Hopper-v2", {})
    with pytest.raises(UserError, match="--ref-min-score"):
        load.load(None, "test/hopper/scoreless-v0")
    assert load.load(None, "test/hopper/scoreless-v0", (1.0, 2.0)).ref_max_score == 2.0


def test_d4rl_goes_before_the_reconstruction():
    assert load.resolve(HOPPER) == "iwsft/hopper/medium-replay-v1"
    write(HOPPER.d4rl_id)
    assert load.resolve(HOPPER) == "D4RL/hopper/medium-replay-v2"
    assert load.load(HOPPER).origin == "Minari"  # only what was imported from D4RL's own file is D4RL's (test_d4rl.py)
    assert load.resolve(HOPPER, "iwsft/hopper/medium-replay-v1") == "iwsft/hopper/medium-replay-v1"


def test_no_data_says_how_to_get_it():
    with pytest.raises(UserError, match=r"d4rl download hopper-expert' .*collect --env hopper-expert'"):
        load.resolve(tasks.parse_task("hopper-expert"))
    for name in ("ant-medium", "hopper-full-replay"):  # what collect would refuse is not advised
        with pytest.raises(UserError, match=rf"d4rl download {name}' \(D4RL's own\)\.$"):
            load.resolve(tasks.parse_task(name))


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_reconstruction(name):
    """Verified, the chosen replay, of D4RL's size, says what it is, loads in time."""
    task = tasks.parse_task(f"{name}-medium-replay")
    episodes, metadata = packed.read_embedded(task.reconstruction_id)
    types.check(episodes, task.name)
    wanted = facts.D4RL_MEDIUM_REPLAY[name]
    chosen = pool.chosen(
        Path(__file__).parents[1] / "results/reconstruction", task
    )  # by the rule that is written there
    assert types.content_sha256(episodes) == chosen.sha256
    assert (metadata["seed"], metadata["generation_config"]["updates_per_step"]) == collect.CHOSEN[name]
    assert (chosen.seed, chosen.updates_per_step) == collect.CHOSEN[name]
    assert metadata["reconstruction"] is True
    assert metadata["physics"]["environment"] == task.environment.env_id
    assert {"seed", "generation_config", "versions", "fingerprint", "env_spec"} <= set(metadata)
    began = time.process_time()  # seconds of computing: others may use the machine too
    first = load.load(task)
    loading, began = time.process_time() - began, time.process_time()
    second = load.load(task)
    cached = time.process_time() - began
    assert first.origin == "reconstruction"
    assert first.sha256 == second.sha256 == types.content_sha256(episodes)
    assert len(first.rewards) == wanted.transitions
    assert loading < 4  # measured: see the README
    assert cached < 1


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_states_replay(name):
    """One step from the recorded states gives the recorded next observation and reward: the states are whole."""
    import gymnasium as gym
    import mujoco

    task = tasks.parse_task(f"{name}-medium-replay")
    episodes, _ = packed.read_embedded(task.reconstruction_id)
    env = gym.make(task.environment.env_id).unwrapped
    env.reset(seed=0)
    rows = types.state_rows(episodes.starts)
    errors = []
    for t in np.random.default_rng(0).choice(len(rows), 300, replace=False):
        mujoco.mj_resetData(env.model, env.data)
        env.set_state(episodes.qpos[rows[t]].astype(float), episodes.qvel[rows[t]].astype(float))
        observation, reward, *_ = env.step(episodes.actions[t])
        errors.append(
            max(np.abs(observation - episodes.observations[rows[t] + 1]).max(), abs(reward - episodes.rewards[t]))
        )
    # States are stored in float32, and the solver's warm start is not: a few stiff contacts show it.
    assert np.median(errors) < 1e-4
    assert np.percentile(errors, 95) < 1e-2


def test_damaged_embedded_file(monkeypatch, tmp_path):
    name = "iwsft/hopper/medium-replay-v1"
    entry = packed.embedded_manifest()[name]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / entry["file"]).write_bytes(b"not the data")
    files.write_json(tmp_path / "data" / "manifest.json", {name: entry})
    monkeypatch.setattr(packed, "EMBEDDED", tmp_path / "data")
    with pytest.raises(UserError, match="sha256"):
        load.load(HOPPER)


def test_unpacked_reconstruction_is_the_embedded_one():
    task = tasks.parse_task("halfcheetah-medium-replay")  # the one of the fewest episodes, each of which takes its time
    embedded = load.load(task)
    collect.main(collect.CollectConfig(task.name, unpack=True))
    assert load.load(task).sha256 == embedded.sha256
    metadata = json.loads((minari_files.minari_path(embedded.id) / "data/metadata.json").read_text())
    assert metadata["dataset_id"] == embedded.id
    assert "not D4RL's own data" in metadata["description"]
    assert minari.load_dataset(embedded.id).total_steps == 202_000
