"""unifloral's own training loops, for the bench beside this: Jackson et al. 2025, github.com/EmptyJackson/unifloral.

Its algorithms are read from a checkout and run as they are. They import D4RL, Gym and Weights & Biases for evaluation
and logging; none of that is used here, so empty modules stand in for packages that no longer install. distrax, which
its policies are made of, must be there.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from iwsft_control.files import UserError

CRITIC_STEPS = {"iql": 1, "td3-bc": 2, "rebrac": 2}  # of one of its steps; ours are counted in critic steps


def case(checkout: Path, method: str, data: Any) -> tuple[Callable[[int], Any], Callable[[], Any], int]:
    """unifloral's loop of ``method`` with its own settings.

    Args:
        checkout: folder of a clone.
        data: ReBRACData: the transitions and the data's next actions.

    Returns:
        A function that takes n critic steps, its one-step program for counting, and the critic steps of that.

    Raises:
        UserError: no checkout there, or distrax is missing.
    """
    for name in ("d4rl", "gym", "wandb"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.path.insert(0, str(checkout / "algorithms"))
    try:
        module = importlib.import_module(method.replace("-", "_"))
    except ModuleNotFoundError as missing:
        raise UserError(
            f"{missing.name} is missing: --unifloral takes the folder of a clone of "
            "https://github.com/EmptyJackson/unifloral, and needs `pip install distrax`."
        ) from missing
    finally:
        sys.path.pop(0)
    arguments = module.Args()
    named = {
        "obs": data.observations,
        "action": data.actions,
        "reward": data.rewards,
        "next_obs": data.next_observations,
        "next_action": data.next_actions,
        "done": data.terminations,
    }
    dataset = module.Transition(**{k: named[k] for k in module.Transition._fields})
    observation, action = dataset.obs[0], dataset.action[0]
    mean, std = dataset.obs.mean(axis=0), dataset.obs.std(axis=0)
    policy_key, critic_key, value_key, key = jax.random.split(jax.random.key(0), 4)
    if method == "iql":
        policy = module.TanhGaussianActor(len(action), mean, std)
        critic, value = module.DualQNetwork(mean, std), module.StateValueFunction(mean, std)
        networks = [policy, critic, value]
    elif method == "td3-bc":
        policy, critic = module.DeterministicTanhActor(len(action), mean, std), module.DualQNetwork(mean, std)
        networks = [policy, critic]
    else:
        policy = module.DeterministicTanhActor(len(action), mean, std, arguments.actor_ln, arguments.norm_obs)
        critic = module.DualQNetwork(mean, std, arguments.critic_ln, arguments.norm_obs)
        networks = [policy, critic]

    def train_state(key: jax.Array, network: Any, *inputs: jax.Array) -> Any:
        return module.create_train_state(arguments, key, network, inputs)

    parts = {
        "actor": lambda: train_state(policy_key, policy, observation),
        "actor_target": lambda: train_state(policy_key, policy, observation),
        "dual_q": lambda: train_state(critic_key, critic, observation, action),
        "dual_q_target": lambda: train_state(critic_key, critic, observation, action),
        "value": lambda: train_state(value_key, networks[-1], observation),
    }
    state = module.AgentTrainState(**{k: parts[k]() for k in module.AgentTrainState._fields})
    step = module.make_train_step(arguments, *[network.apply for network in networks], dataset)
    loop = jax.jit(lambda n, carry: jax.lax.scan(step, carry, None, n), static_argnums=0)
    each = CRITIC_STEPS[method]
    return lambda n: loop(n // each, (key, state)), lambda: jax.make_jaxpr(step)((key, state), jnp.zeros(())), each
