"""D4RL's physics: against real rows where they are at hand, against known constants everywhere."""

import dataclasses
import importlib
import re
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest

import iwsft_control  # noqa: F401 (registers the environments)
from experiments import fidelity
from iwsft_control.base.errors import UserError
from iwsft_control.datasets import load
from iwsft_control.envs import physics, tasks
from tests.conftest import SHARED, real_piece

# Body masses (kg) under the rule before MuJoCo 2.1.2, from the geometry by hand: rho pi r^2 (2h + r).
MASSES = {
    "d4rl/Hopper-v2": [3.53429174, 3.92699082, 2.71433605, 5.0893801],
    "d4rl/Walker2d-v2": [3.53429174, *2 * [3.92699082, 2.71433605, 2.94053072]],
}


@pytest.mark.parametrize("env_id", MASSES)
def test_masses(env_id):
    np.testing.assert_allclose(gym.make(env_id).unwrapped.model.body_mass[1:], MASSES[env_id], rtol=1e-7)


def test_half_cheetah_keeps_its_total_and_redistributes_it():
    mass = gym.make("d4rl/HalfCheetah-v2").unwrapped.model.body_mass
    assert mass.sum() == pytest.approx(14.0, rel=1e-9)
    assert mass[1] == pytest.approx(6.360, abs=5e-4)
    assert gym.make("HalfCheetah-v5").unwrapped.model.body_mass[1] == pytest.approx(6.250, abs=5e-4)


def test_inertia_is_a_cylinders():
    model = gym.make("d4rl/Hopper-v2").unwrapped.model
    r, length, mass = 0.05, 2 * 0.225 + 0.05, 3.92699082  # the thigh
    expected = sorted([mass * r**2 / 2, *2 * [mass * (3 * r**2 + length**2) / 12]])
    np.testing.assert_allclose(sorted(model.body_inertia[2]), expected, rtol=1e-7)


def test_composite_inertia_by_brute_force():
    """HalfCheetah's torso is two capsules: mass, centre and inertia against a cloud of points in two cylinders."""
    model = gym.make("d4rl/HalfCheetah-v2").unwrapped.model
    rng = np.random.default_rng(0)
    points, volumes = [], []
    for g in np.flatnonzero(model.geom_bodyid == 1):
        r, half = model.geom_size[g, :2]
        n, length = 400_000, 2 * half + r
        disc = r * np.sqrt(rng.random(n))[:, None] * np.array([np.cos(a := 2 * np.pi * rng.random(n)), np.sin(a)]).T
        local = np.column_stack([disc, length * (rng.random(n) - 0.5)])
        points.append(local @ physics._rotation(model.geom_quat[g]).T + model.geom_pos[g])
        volumes.append(np.full(n, r**2 * length / n))
    cloud, weight = np.concatenate(points), np.concatenate(volumes)
    weight *= model.body_mass[1] / weight.sum()
    centre = weight @ cloud / weight.sum()
    np.testing.assert_allclose(model.body_ipos[1], centre, atol=2e-3)
    offset = cloud - centre
    tensor = (
        np.einsum("n,nij->ij", weight, (offset**2).sum(1)[:, None, None] * np.eye(3)) - (offset.T * weight) @ offset
    )
    frame = physics._rotation(model.body_iquat[1])
    np.testing.assert_allclose(frame @ np.diag(model.body_inertia[1]) @ frame.T, tensor, atol=5e-3)


def test_margins():
    halved = physics.mujoco_version() >= (3, 5)
    assert np.unique(gym.make("d4rl/Hopper-v2").unwrapped.model.geom_margin[1:]) == (0.0005 if halved else 0.001)
    for env_id in ("d4rl/HalfCheetah-v2", "d4rl/Walker2d-v2"):
        assert not gym.make(env_id).unwrapped.model.geom_margin.any()


def test_feet_differ():
    model = gym.make("d4rl/Walker2d-v2").unwrapped.model
    assert model.geom("foot_geom").friction[0] == 0.9
    assert model.geom("foot_left_geom").friction[0] == 1.9


@pytest.mark.parametrize("env_id", physics.ENVIRONMENTS)
def test_declares_its_corrections(env_id):
    env = gym.make(env_id)
    assert env.metadata["physics_corrections"] == physics.active_corrections()
    assert "capsule-inertia" in env.metadata["physics_corrections"]
    assert physics.describe(env_id)["corrections"] == list(physics.active_corrections())
    assert env.spec.max_episode_steps == 1000


@pytest.mark.parametrize("env_id", ["d4rl/Hopper-v2", "d4rl/HalfCheetah-v2", "d4rl/Walker2d-v2"])
def test_actions_are_clipped_before_step_and_cost(env_id):
    a, b = gym.make(env_id).unwrapped, gym.make(env_id).unwrapped
    a.reset(seed=1)
    b.reset(seed=1)
    wild = np.resize([3.0, -2.0, 0.5], a.action_space.shape)
    one, two = a.step(wild), b.step(np.clip(wild, -1, 1))
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1]


def test_alive_bonus_on_the_falling_step():
    env = gym.make("d4rl/Hopper-v2").unwrapped
    env.reset(seed=0)
    for _ in range(200):
        _, reward, terminated, _, info = env.step(np.ones(3))
        if terminated:
            break
    assert terminated
    assert reward == pytest.approx(info["x_velocity"] + 1.0 - 1e-3 * 3)


def test_one_step_from_real_rows(piece):
    name, rows = piece
    observation, reward = fidelity.one_step_errors(tasks.ENVIRONMENTS[name].env_id, name, rows)
    assert len(observation) == {"hopper": 761, "halfcheetah": 2000, "walker2d": 1419}[name]
    assert observation.max() <= 1e-4
    assert reward.max() <= 1e-4


def test_ant_is_only_approximate():
    """What docs/physics.md says of it: right in most rows, far off in a few (contacts)."""
    observation, _ = fidelity.one_step_errors("d4rl/Ant-v2", "ant", real_piece("ant"))
    assert len(observation) == 1628
    assert np.median(observation) < 1e-5 and (observation < 1e-3).mean() > 0.9
    assert 0.1 < observation.max() < 1


@pytest.mark.slow
def test_fidelity_command(tmp_path):
    """All figures of the fidelity command, its 400 episodes included."""
    if not (SHARED / "d4rl").is_dir():
        pytest.skip("no real D4RL rows beside the repository")
    fidelity.main(fidelity.FidelityConfig(SHARED / "d4rl", out=tmp_path))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"episodes": 1}, "--episodes must be at least 2"),
        ({}, "holds no hopper_medium-v2.hdf5; 'iwsft d4rl download hopper-medium --folder"),
    ],
)
def test_fidelity_of_nothing_is_refused(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        fidelity.main(fidelity.FidelityConfig(tmp_path, out=tmp_path, **changes))


def test_a_whole_file_of_d4rl_does_as_well_as_a_piece_of_it(tmp_path):
    path, rows = tmp_path / "hopper_medium-v2.hdf5", np.arange(fidelity.ROWS + 5.0)
    with h5py.File(path, "w") as file:
        for key in (*fidelity.ROW_KEYS, *fidelity.POLICY_KEYS):
            file[key] = rows
    piece = fidelity.load_piece(tmp_path, "hopper")
    assert {key: len(x) for key, x in piece.items()} == {
        **dict.fromkeys(fidelity.ROW_KEYS, fidelity.ROWS),
        **dict.fromkeys(fidelity.POLICY_KEYS, fidelity.ROWS + 5),
    }
    path.write_bytes(b"no HDF5")
    with pytest.raises(UserError, match="is not HDF5"):
        fidelity.load_piece(tmp_path, "hopper")


def test_data_of_a_recorded_policy_are_draws_from_it(tmp_path, monkeypatch, capsys):
    """Actions are tanh(mean + std noise) of the recorded weights: undone, they leave standard normal noise."""
    monkeypatch.syspath_prepend(str(Path(fidelity.__file__).parent))
    d4rl_medium = importlib.import_module("d4rl_medium")
    rng = np.random.default_rng(0)
    layers = {
        name: (0.3 * rng.standard_normal(shape).astype(np.float32), np.full(shape[0], bias, np.float32))
        for name, shape, bias in [
            ("fc0", (8, 11), 0.1),
            ("fc1", (8, 8), 0.1),
            ("last_fc", (3, 8), 0.0),
            ("last_fc_log_std", (3, 8), -1.0),
        ]
    }
    arrays = {
        f"metadata/policy/{name}/{key}": values
        for name, layer in layers.items()
        for key, values in zip(("weight", "bias"), layer, strict=True)
    }
    np.savez(tmp_path / "hopper_medium-v2_subset.npz", **arrays)
    config = d4rl_medium.MediumConfig(tmp_path, "hopper", transitions=4_000)
    d4rl_medium.main(config)
    assert re.search(r"4,000 transitions, .* \(D4RL's 1422\)", capsys.readouterr().out)
    data = load.load(tasks.parse_task("hopper-medium"), "d4rl-policy/hopper/medium-v0")

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ layers[name][0].T + layers[name][1]

    hidden = np.maximum(linear("fc1", np.maximum(linear("fc0", data.observations), 0)), 0)
    exact = (np.abs(data.actions) < 0.99).all(axis=1)  # near the bounds float32 tells little of the noise
    raw, mean, log_std = np.arctanh(data.actions[exact]), linear("last_fc", hidden), linear("last_fc_log_std", hidden)
    noise = (raw - mean[exact]) / np.exp(np.clip(log_std[exact], -20, 2))
    assert len(noise) > 2_000
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=0.1)
    with pytest.raises(UserError, match="exists already; delete it to play hopper's policy again"):
        d4rl_medium.main(config)
    with pytest.raises(UserError, match="--transitions must be a multiple of 40"):
        d4rl_medium.main(dataclasses.replace(config, transitions=100))
