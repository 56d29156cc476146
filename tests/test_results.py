"""Result files: written, read back, and refused when they are not what they say."""

import dataclasses
import json

import numpy as np
import pytest

from iwsft_control.base import files
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import results
from iwsft_control.envs.tasks import normalise, parse_task


@pytest.fixture
def result():
    returns = [100.0, 300.0, 200.0]
    mean, error = results.score(np.array(returns), 0.0, 1000.0)
    return results.RunResult(
        schema=results.SCHEMA,
        task="hopper-medium-replay",
        method="bc",
        quality=None,
        seed=0,
        quick=False,
        dataset={"id": "x", "sha256": "0", "origin": "Minari", "transitions": 1, "episodes": 1},
        physics={"environment": "E", "mujoco": "4", "corrections": []},
        evaluation={"ref_min_score": 0.0, "ref_max_score": 1000.0},
        episode_returns=returns,
        normalised_score=mean,
        standard_error=error,
        config={},
        diagnostics={"training": {"step": [1], "loss": [0.0]}},
        seconds={"bc": 1.0},
        versions=results.versions(),
        device="cpu",
        git_commit=None,
    )


def test_score():
    assert results.score(np.array([100.0, 300.0, 200.0]), 0.0, 1000.0) == pytest.approx((20.0, 10 / np.sqrt(3)))
    assert results.score(np.array([500.0]), 0.0, 1000.0) == (50.0, 0.0)
    assert normalise(3234.3, -20.272305, 3234.3) == pytest.approx(100.0)
    assert normalise(-20.272305, -20.272305, 3234.3) == pytest.approx(0.0)


def test_round_trip(result, tmp_path):
    results.write(tmp_path / "deep/er/x.json", result)
    assert results.read(tmp_path / "deep/er/x.json") == result
    assert [p.name for p in (tmp_path / "deep/er").iterdir()] == ["x.json"]  # no temporary file is left


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 99}, "schema"),
        ({"normalised_score": 21.0}, "not that of its episode returns"),
        ({"episode_returns": [1.0, None]}, "finite"),
        ({"episode_returns": []}, "finite"),
        ({"physics": {}}, "physics lacks corrections, environment, mujoco"),
        ({"seed": "zero"}, "seed should be int"),
        ({"quality": 3}, "quality should be"),
        ({"dataset": []}, "dataset should be"),
        ({"evaluation": {}}, "evaluation lacks ref_max_score, ref_min_score"),
        ({"evaluation": {"ref_min_score": "0", "ref_max_score": 1.0}}, "ref_min_score of evaluation should be float"),
        ({"surprise": 1}, "unknown fields .surprise"),
    ],
)
def test_what_is_refused(result, tmp_path, change, sentence):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(dataclasses.asdict(result) | change))
    with pytest.raises(UserError, match=sentence):
        results.read(path)


def test_broken_files(result, tmp_path):
    results.write(tmp_path / "x.json", result)
    text = (tmp_path / "x.json").read_text()
    (tmp_path / "x.json").write_text(text[:-50])
    with pytest.raises(UserError, match="not a result file"):
        results.read(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != "seed"}))
    with pytest.raises(UserError, match=r"missing or unknown fields .seed"):
        results.read(tmp_path / "x.json")
    with pytest.raises(UserError, match="cannot read"):
        results.read(tmp_path / "none.json")


def test_atomic_write_leaves_the_old_file_on_an_error(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.glob(".x*")) == []


def test_pytrees_round_trip_and_damage_is_one_sentence(tmp_path):
    tree = {"a": {"b": np.arange(3.0), "c": np.ones((2, 2), np.float32)}, "d": (np.int32(4),)}
    files.save_pytree(tmp_path / "x", tree, {"k": [1]})
    again, metadata = files.load_pytree(tmp_path / "x", tree)
    np.testing.assert_array_equal(again["a"]["b"], tree["a"]["b"])
    assert again["d"][0] == 4
    assert metadata == {"k": [1]}
    with pytest.raises(UserError, match="other arrays"):
        files.load_pytree(tmp_path / "x", {"a": np.zeros(3)})
    (tmp_path / "x").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="damaged"):
        files.load_pytree(tmp_path / "x", tree)


@pytest.mark.parametrize("name", ["hopper-medium-replay", "hopper_medium_replay-v2", "Hopper-Medium-Replay"])
def test_task_names(name):
    task = parse_task(name)
    assert (task.name, task.d4rl_id) == ("hopper-medium-replay", "D4RL/hopper/medium-replay-v2")


def test_unknown_task_lists_near_ones():
    with pytest.raises(UserError, match="walker2d-medium-replay"):
        parse_task("walker-medium-replay")
