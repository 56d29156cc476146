"""Many environments stepped as a batch: one vectorised observation and reward, physics by a lean ``mj_step`` loop.

Step by step it equals the Gymnasium environments exactly. (``mujoco.rollout`` called one control step at a time does
not: it drops the solver's warm start.)
"""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.registration import EnvSpec

from iwsft_control.base.errors import UserError, require
from iwsft_control.envs import physics, specs
from iwsft_control.envs.actions import ActionBox, action_box
from iwsft_control.envs.registration import MAX_EPISODE_STEPS

# What a step gives: observations (K, O), rewards (K,), and whether the episode terminated, or was truncated, (K,) each.
Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def bounds_of(environment: str | EnvSpec, dim: int) -> ActionBox:
    """The box of an environment's ``dim`` actions; D4RL's is [-1, 1].

    Raises:
        UserError: it has no bounded vectors for actions.
    """
    env_id = specs.id_of(environment)
    return ActionBox.unit(dim) if env_id in physics.ENVIRONMENTS else make_batch(environment, 1).action_box


class Batch(Protocol):
    """N environments that are reset together and stepped by index."""

    observation_dim: int
    action_dim: int
    max_steps: int
    action_box: ActionBox

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Reset environment i with ``seeds[i]``; returns observations (N, O)."""
        ...

    def step(self, active: np.ndarray, actions: np.ndarray) -> Step:
        """Step the environments ``active`` (K,) with ``actions`` (K, A)."""
        ...


class D4RLBatch:
    """N copies of ``d4rl/Hopper-v2``, ``d4rl/HalfCheetah-v2`` or ``d4rl/Walker2d-v2``.

    Different environments of a batch may be stepped from different threads: MuJoCo releases the GIL.
    """

    def __init__(self, spec: str | EnvSpec, n: int):
        env = gym.make(spec)
        assert env.spec is not None
        self.max_steps = env.spec.max_episode_steps or MAX_EPISODE_STEPS
        unwrapped: Any = env.unwrapped
        self._env = unwrapped  # resets and constants come from it, so they cannot differ
        model = unwrapped.model
        self.model, self.data = model, [mujoco.MjData(model) for _ in range(n)]
        self.observation_dim, self.action_dim = model.nq - 1 + model.nv, model.nu
        self.action_box = ActionBox.unit(model.nu)
        # Views are made once: an attribute of MjData builds a new array each time.
        self._ctrl = [d.ctrl for d in self.data]
        self._qpos = [d.qpos for d in self.data]
        self._qvel = [d.qvel for d in self.data]
        self._x, self._elapsed = np.zeros(n), np.zeros(n, int)
        self._terminates = not isinstance(self._env, physics.HalfCheetahEnv)

    def reset(self, seeds: list[int]) -> np.ndarray:
        return np.array([self.reset_one(i, seed) for i, seed in enumerate(seeds)])

    def reset_one(self, i: int, seed: int) -> np.ndarray:
        """Reset environment i alone; its observation (O,)."""
        observation, _ = self._env.reset(seed=int(seed))
        self.set_state(i, self._env.data.qpos, self._env.data.qvel)
        return observation

    def set_state(self, i: int, qpos: np.ndarray, qvel: np.ndarray, elapsed: int = 0) -> np.ndarray:
        """Put environment i into a state in the middle of an episode; its observation (O,).

        Args:
            qpos: positions (nq,); qvel: velocities (nv,), not clipped.
            elapsed: steps of the episode that are over; it is truncated when ``max_steps`` are.
        """
        data = self.data[i]
        mujoco.mj_resetData(self.model, data)
        data.qpos[:], data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.model, data)
        self._x[i], self._elapsed[i] = data.qpos[0], elapsed
        return self._observe(data.qpos[None], data.qvel[None])[0]

    def step(self, active: np.ndarray, actions: np.ndarray) -> Step:
        env, model = self._env, self.model
        actions = np.clip(actions.astype(np.float64), -1.0, 1.0)
        for i, action in zip(active.tolist(), actions, strict=True):
            self._ctrl[i][:] = action
            mujoco.mj_step(model, self.data[i], env.frame_skip)
        self._elapsed[active] += 1
        truncated = self._elapsed[active] >= self.max_steps
        qpos, qvel = self.state(active)
        x_velocity = (qpos[:, 0] - self._x[active]) / env.dt
        self._x[active] = qpos[:, 0]
        control_cost = env._ctrl_cost_weight * np.square(actions).sum(axis=-1)
        forward_reward = env._forward_reward_weight * x_velocity
        terminated = self.terminal(qpos, qvel)
        if not self._terminates:
            return self._observe(qpos, qvel), forward_reward - control_cost, terminated, truncated
        # The -v4 rule: the alive bonus is paid on the falling step too.
        rewards = (forward_reward + env._healthy_reward) - control_cost
        return self._observe(qpos, qvel), rewards, terminated, truncated

    def state(self, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions (K, nq) and velocities (K, nv) of the environments ``active``, float64, not clipped."""
        indices = active.tolist()
        return np.array([self._qpos[i] for i in indices]), np.array([self._qvel[i] for i in indices])

    def terminal(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Whether an episode ends in states (K, nq), (K, nv), (K,)."""
        return ~self._healthy(qpos, qvel) if self._terminates else np.zeros(len(qpos), bool)

    def _observe(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        velocity = np.clip(qvel, -10, 10) if self._terminates else qvel
        return np.concatenate([qpos[:, 1:], velocity], axis=1)

    def _healthy(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        env = self._env
        z, angle = qpos[:, 1], qpos[:, 2]
        (min_z, max_z), (min_angle, max_angle) = env._healthy_z_range, env._healthy_angle_range
        healthy = (min_z < z) & (z < max_z) & (min_angle < angle) & (angle < max_angle)
        if isinstance(env, physics.HopperEnv):
            low, high = env._healthy_state_range
            rest = np.concatenate([qpos[:, 2:], qvel], axis=1)
            healthy &= ((low < rest) & (rest < high)).all(axis=1)
        return healthy


class GymnasiumBatch:
    """N copies of any Gymnasium environment with vector observations, one Python call a step each.

    Actions are given in [-1, 1] and scaled to the environment's own box.

    Raises:
        UserError: its observations or actions are no vectors, or its actions are not bounded.
    """

    def __init__(self, spec: str | EnvSpec, n: int, max_steps: int | None = None):
        self._envs = [gym.make(spec) for _ in range(n)]
        env = self._envs[0]
        limit = env.spec.max_episode_steps if env.spec else None
        self.max_steps = max_steps or limit or MAX_EPISODE_STEPS
        observed, acted = env.observation_space, env.action_space
        self.observation_parts: dict[str, int] = {}
        if isinstance(env, gym.wrappers.FlattenObservation):
            self.observation_parts = specs.parts(env.env.observation_space)
        name = specs.id_of(spec)
        for what, space in (("observations", observed), ("actions", acted)):
            require(
                isinstance(space, gym.spaces.Box) and len(space.shape) == 1,
                f"the {what} of {name} are no vectors ({space}); that is not supported: choose another data set.",
            )
        assert isinstance(observed, gym.spaces.Box) and isinstance(acted, gym.spaces.Box)
        self.observation_dim, self.action_dim = observed.shape[0], acted.shape[0]
        self.action_box, self._dtype = action_box(acted.low, acted.high, name), acted.dtype
        self._elapsed = np.zeros(n, int)

    def reset(self, seeds: list[int]) -> np.ndarray:
        self._elapsed[:] = 0
        return np.array([e.reset(seed=int(s))[0] for e, s in zip(self._envs, seeds, strict=True)])

    def step(self, active: np.ndarray, actions: np.ndarray) -> Step:
        if not self.action_box.is_unit:
            actions = self.action_box.from_unit(actions).astype(self._dtype)
        results = [self._envs[i].step(a) for i, a in zip(active.tolist(), actions, strict=True)]
        observations, rewards, terminations, truncations, _ = zip(*results, strict=True)
        self._elapsed[active] += 1
        truncated = np.array(truncations, bool) | (self._elapsed[active] >= self.max_steps)
        return np.array(observations), np.array(rewards, np.float64), np.array(terminations, bool), truncated


def make_batch(spec: str | EnvSpec, n: int) -> Batch:
    """The fastest batch of N copies of an environment that is exact.

    Raises:
        UserError: the environment cannot be made, or has no vectors for observations and bounded actions.
    """
    try:
        return _make_batch(spec, n)
    except UserError:
        raise
    except Exception as error:  # whatever Gymnasium or an environment's package raises
        absent = isinstance(error, ImportError | gym.error.DependencyNotInstalled)
        remedy = "correct its name or arguments, or the data set's env_spec"
        env_id = specs.id_of(spec)
        raise UserError(
            f"the environment {env_id} cannot be made ({error}); "
            f"{'install the package it comes from' if absent else remedy}."
        ) from error


def _make_batch(spec: str | EnvSpec, n: int) -> Batch:
    plain = isinstance(spec, str) or not (spec.kwargs or spec.additional_wrappers)
    env_id = specs.id_of(spec)
    if plain and env_id in physics.ENVIRONMENTS and env_id != "d4rl/Ant-v2":
        return D4RLBatch(spec, n)
    return GymnasiumBatch(spec, n)
