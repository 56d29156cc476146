"""D4RL's locomotion physics on today's MuJoCo.

D4RL was recorded on a MuJoCo older than 2.1.2. Two later changes inside MuJoCo are the whole difference between
those recordings and Gymnasium's ``-v4`` models on a current MuJoCo, and this module takes both back:

1. *Capsule inertia* (changed in MuJoCo 2.1.2). A capsule of radius r and half-length h used to count as a solid
   cylinder of length L = 2h + r: m = rho pi r^2 L, I_zz = m r^2 / 2, I_xx = I_yy = m (3 r^2 + L^2) / 12.
2. *Contact margin* (changed in MuJoCo 3.5.0). The margins of two touching geoms used to be combined by their
   maximum and are now summed; all geoms of a model share one margin here, so halving each restores the maximum.

What remains of ``v2`` is in the environments: they are Gymnasium's ``-v4`` classes (the alive bonus also on the
falling step, Walker2d's unequal feet) with actions clipped to [-1, 1] before the step and before the control cost,
as rlkit's ``NormalizedBoxEnv`` did for D4RL. They are registered as ``d4rl/Hopper-v2``, ``d4rl/HalfCheetah-v2``,
``d4rl/Walker2d-v2`` and ``d4rl/Ant-v2`` by :mod:`.registration`; ``env.metadata["physics_corrections"]`` lists the
active corrections.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import ant_v4, half_cheetah_v4, hopper_v4, mujoco_env, walker2d_v4
from gymnasium.envs.registration import EnvSpec

from iwsft_control.envs import specs


def mujoco_version() -> tuple[int, int]:
    """The major and minor version of the MuJoCo that is running."""
    major, minor = mujoco.__version__.split(".")[:2]
    return int(major), int(minor)


def active_corrections() -> tuple[str, ...]:
    """Names of the corrections that the running MuJoCo needs, e.g. ``("capsule-inertia", "contact-margin")``."""
    return ("capsule-inertia", "contact-margin") if mujoco_version() >= (3, 5) else ("capsule-inertia",)


def restore_d4rl_physics(model: mujoco.MjModel, total_mass: float | None = None) -> None:
    """Give a freshly compiled locomotion model the masses, inertias and margins that D4RL was recorded with.

    Args:
        model: changed in place; moving bodies may hold capsules and spheres (whose rule never changed).
        total_mass: kg; all masses and inertias are scaled to it afterwards (``settotalmass`` of the XML).

    Raises:
        ValueError: a moving body holds a geom of another type.
    """
    for body in range(1, model.nbody):
        _restore_body_inertia(model, body)
    if total_mass is not None:
        scale = total_mass / model.body_mass[1:].sum()
        model.body_mass[1:] *= scale
        model.body_inertia[1:] *= scale
    if mujoco_version() >= (3, 5):
        model.geom_margin[:] *= 0.5
    # Derived constants (invweight0, subtreemass, meaninertia) follow from the new masses.
    mujoco.mj_setConst(model, mujoco.MjData(model))


def _geom_volume_and_inertia(model: mujoco.MjModel, geom: int, old_rule: bool) -> tuple[float, np.ndarray]:
    """Volume (m^3) and principal inertia (3,) per unit density of a geom, today or before MuJoCo 2.1.2."""
    radius, half_length = model.geom_size[geom, :2]
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_SPHERE:
        volume = 4 / 3 * np.pi * radius**3
        return volume, np.full(3, 0.4 * volume * radius**2)
    if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_CAPSULE:
        raise ValueError(f"geom {geom} is neither a capsule nor a sphere: its D4RL inertia is unknown")
    length = 2 * half_length + (radius if old_rule else 4 / 3 * radius)
    volume = np.pi * radius**2 * length
    across = volume * (3 * radius**2 + length**2) / 12
    return volume, np.array([across, across, volume * radius**2 / 2])


def _rotation(quat: np.ndarray) -> np.ndarray:
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)


def _restore_body_inertia(model: mujoco.MjModel, body: int) -> None:
    geoms = [g for g in range(model.ngeom) if model.geom_bodyid[g] == body]
    # The XML's density is not in a compiled model; mass and today's volume give it back.
    density = model.body_mass[body] / sum(_geom_volume_and_inertia(model, g, old_rule=False)[0] for g in geoms)
    old = [_geom_volume_and_inertia(model, g, old_rule=True) for g in geoms]
    masses, inertias = [density * volume for volume, _ in old], [density * inertia for _, inertia in old]
    mass = sum(masses)
    model.body_mass[body] = mass
    if len(geoms) == 1:
        # The inertial frame is the geom's own and stays: only the principal moments change.
        frame = _rotation(model.geom_quat[geoms[0]]).T @ _rotation(model.body_iquat[body])
        model.body_inertia[body] = np.diag(frame.T @ np.diag(inertias[0]) @ frame)
        return
    centre = sum(m * model.geom_pos[g] for m, g in zip(masses, geoms, strict=True)) / mass
    tensor = np.zeros((3, 3))
    for m, principal, g in zip(masses, inertias, geoms, strict=True):
        rotation, offset = _rotation(model.geom_quat[g]), model.geom_pos[g] - centre
        tensor += rotation @ np.diag(principal) @ rotation.T
        tensor += m * (offset @ offset * np.eye(3) - np.outer(offset, offset))  # parallel-axis rule
    moments, axes = np.linalg.eigh(tensor)
    if np.linalg.det(axes) < 0:
        axes[:, 0] *= -1
    # Collision boxes were compiled in the old inertial frame, and on MuJoCo 3.2 to 3.5 a contact of the torso would be
    # missed: make them large enough for any frame. They only choose which pairs of geoms are looked at.
    nodes = slice(model.body_bvhadr[body], model.body_bvhadr[body] + model.body_bvhnum[body])
    boxes = model.bvh_aabb[nodes]  # centre and half-sizes
    reach = np.linalg.norm(boxes[:, :3], axis=1) + np.linalg.norm(boxes[:, 3:], axis=1)
    boxes[:, :3] = 0
    boxes[:, 3:] = (reach + np.linalg.norm(centre - model.body_ipos[body]))[:, None]
    model.body_ipos[body] = centre
    model.body_inertia[body] = moments
    mujoco.mju_mat2Quat(model.body_iquat[body], axes.ravel())


class _D4RLPhysics(mujoco_env.MujocoEnv):
    """Mixed in before a ``-v4`` class: corrected model, clipped actions."""

    def __init__(self, **kwargs: Any):
        self.metadata = {**self.metadata, "physics_corrections": active_corrections()}
        super().__init__(**kwargs)

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        # half_cheetah.xml's deprecated settotalmass is applied here, after the old inertias: MuJoCo 4 warns of it on
        # stderr at each load, and a later one will refuse it.
        xml = Path(self.fullpath).read_text(encoding="utf-8")
        total_mass = re.search(r' settotalmass="([^"]+)"', xml)
        model = mujoco.MjModel.from_xml_string(xml.replace(total_mass[0], "") if total_mass else xml)
        restore_d4rl_physics(model, float(total_mass[1]) if total_mass else None)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)

    def step(self, action):
        return super().step(np.clip(np.asarray(action, np.float64), -1.0, 1.0))


class HopperEnv(_D4RLPhysics, hopper_v4.HopperEnv):
    """``d4rl/Hopper-v2``: 11 observations, 3 actions, 125 Hz, at most 1,000 steps."""


class Walker2dEnv(_D4RLPhysics, walker2d_v4.Walker2dEnv):
    """``d4rl/Walker2d-v2``: 17 observations, 6 actions, 125 Hz, at most 1,000 steps."""


class HalfCheetahEnv(_D4RLPhysics, half_cheetah_v4.HalfCheetahEnv):
    """``d4rl/HalfCheetah-v2``: 17 observations, 6 actions, 20 Hz, at most 1,000 steps, never terminates."""


class AntEnv(_D4RLPhysics, ant_v4.AntEnv):
    """``d4rl/Ant-v2``: 111 observations, of which 27.. (contact forces) were always zero under mujoco-py; 8 actions."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (111,), np.float64)

    def _get_obs(self):
        return np.concatenate([super()._get_obs(), np.zeros(84)])


ENVIRONMENTS = {
    "d4rl/Hopper-v2": HopperEnv,
    "d4rl/HalfCheetah-v2": HalfCheetahEnv,
    "d4rl/Walker2d-v2": Walker2dEnv,
    "d4rl/Ant-v2": AntEnv,
}


_uses_mujoco: dict[str, bool] = {}


def describe(environment: str | EnvSpec) -> dict[str, Any]:
    """What a result has to say of its physics: environment, MuJoCo version and active corrections.

    Of an environment that is not this package's, also its specification: who makes it, the limit of an episode, keyword
    arguments and wrappers.
    """
    env_id = specs.id_of(environment)
    corrections = list(active_corrections()) if env_id in ENVIRONMENTS else []
    if isinstance(environment, str) and environment in ENVIRONMENTS:
        return {"environment": env_id, "mujoco": mujoco.__version__, "corrections": corrections}
    whole = specs.describe(specs.spec_of(environment))
    asked = json.dumps(whole)
    if asked not in _uses_mujoco:
        made = gym.make(environment)
        parts = [*getattr(made.unwrapped, "__dict__", {}).values()]
        parts += [x for e in parts if isinstance(e, gym.Env) for x in getattr(e.unwrapped, "__dict__", {}).values()]
        _uses_mujoco[asked] = any("mujoco" in type(part).__module__.split(".") for part in parts)
        with contextlib.suppress(Exception):  # whatever it holds goes with the process
            made.close()
    names = ("entry_point", "max_episode_steps", "kwargs", "wrappers")
    return {
        "environment": env_id,
        "mujoco": mujoco.__version__ if _uses_mujoco[asked] else specs.NO_MUJOCO,
        "corrections": corrections,
        "specification": dict(zip(names, whole[1:], strict=True)),
    }
