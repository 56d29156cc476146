"""unifloral's own training loops (Jackson et al. 2025), for the speed bench beside this and for scores on our data.

    git clone https://github.com/EmptyJackson/unifloral && pip install distrax
    python experiments/bench/unifloral.py --checkout unifloral --tasks hopper-medium-replay --methods iql

Where a baseline lands far from its paper, this tells a mistake of ours from a property of the data: another group's
program, its own settings (but ReBRAC's batch, learning rate and weights, which are ours), on the same transitions,
evaluated like ours. Curves go to results/curves beside those of experiments/learning_curve.py; a curve that is whole is
not made again, one that was killed begins anew.

unifloral's algorithms are read from a clone and run as they are. They import D4RL, Gym and Weights & Biases for
evaluation and logging; none of that is used here, so empty modules stand in for packages that no longer install.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.base import bounds, console
from iwsft_control.base.bounds import POSITIVE
from iwsft_control.base.errors import UserError, require
from iwsft_control.benchmark import checks, settings
from iwsft_control.benchmark.jobs import DataSource
from iwsft_control.datasets.types import Dataset
from iwsft_control.envs import tasks
from iwsft_control.learning.method import Inputs
from iwsft_control.methods import rebrac, td3_bc
from iwsft_control.networks.policies import Exported
from iwsft_control.report import curves

Method = Literal["iql", "td3-bc", "rebrac"]


@dataclasses.dataclass(frozen=True)
class PeerConfig:
    """What to train."""

    checkout: Path
    """Folder of a clone of unifloral."""
    tasks: tuple[str, ...] = ("hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay")
    """Tasks."""
    methods: tuple[Method, ...] = ("iql", "td3-bc")
    """Its algorithms."""
    steps: Annotated[int, POSITIVE] = 200_000
    """Gradient steps of the critics."""
    every: int = 10_000
    """Steps between two evaluations."""
    seed: int = 100
    episodes: Annotated[int, POSITIVE] = 25
    out: Path = Path("results/curves")


class Loop(NamedTuple):
    """One of unifloral's algorithms, ready to run."""

    step: Callable[[Any, Any], Any]  # for lax.scan
    carry: Any
    critic_steps: int  # of one step
    settings: dict[str, Any]

    def run(self, n: int, carry: Any) -> Any:
        """The carry after ``n`` critic steps."""
        return _scan(self.step, n // self.critic_steps, carry)


@partial(jax.jit, static_argnums=(0, 1))
def _scan(step: Any, n: int, carry: Any) -> Any:
    return jax.lax.scan(step, carry, None, n)[0]


def load(checkout: Path, method: str, data: Any, steps: int = 1_000_000, seed: int = 0, **settings: float) -> Loop:
    """unifloral's loop of ``method``.

    Args:
        checkout: folder of a clone.
        data: FollowedTransitions: the transitions and the data's next actions.
        steps: critic steps of the whole training, which its learning rates may depend on.
        settings: of its ``Args``, in place of its own.

    Raises:
        UserError: no clone there, or distrax is missing.
    """
    for name in ("d4rl", "gym", "wandb"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.path.insert(0, str(checkout / "algorithms"))
    try:
        module = importlib.import_module(method.replace("-", "_"))
    except ModuleNotFoundError as missing:
        raise UserError(
            f"No module {missing.name}: unifloral is read from the folder of a clone of "
            "https://github.com/EmptyJackson/unifloral, and needs `pip install distrax`."
        ) from missing
    finally:
        sys.path.pop(0)
    arguments = module.Args(**settings)
    critic_steps = getattr(arguments, "num_critic_updates_per_step", 1)  # of one of its steps; ours are the critics'
    arguments.num_updates = steps // critic_steps
    named = {
        "obs": data.observations,
        "action": data.actions,
        "reward": data.rewards,
        "next_obs": data.next_observations,
        "next_action": data.next_actions,
        "done": data.terminations,
    }
    dataset = module.Transition(**{k: jnp.asarray(named[k]) for k in module.Transition._fields})
    observation, action = dataset.obs[0], dataset.action[0]
    mean, std = dataset.obs.mean(axis=0), dataset.obs.std(axis=0)
    policy_key, critic_key, value_key, key = jax.random.split(jax.random.key(seed), 4)
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
    return Loop(step, (key, state), critic_steps, dataclasses.asdict(arguments))


def _critic_steps(its: Mapping[str, Any]) -> Any:
    """Of a whole training, by its settings."""
    return its.get("num_updates", 0) * its.get("num_critic_updates_per_step", 1)


def _with_next_actions(config: Any, data: Dataset) -> Any:
    return rebrac.prepare(config, Inputs(data, {}, None, (0,))).shared


def curve(config: PeerConfig, task: str, method: str) -> None:
    """Train one of its algorithms on one task, evaluating as it goes."""
    task = tasks.parse_task(task).name
    data = DataSource(task).load()
    name = f"{method} (unifloral)"
    defaults = settings.make()
    ours = defaults["rebrac"]
    changes = {}
    if method == "rebrac":  # its own are those of one task
        changes = {
            "batch_size": ours.batch_size,
            "lr": ours.learning_rate,
            "actor_bc_coef": ours.beta_policy,
            "critic_bc_coef": ours.beta_critic,
        }
    loop = load(config.checkout, method, _with_next_actions(ours, data), config.steps, config.seed, **changes)
    theirs = {k: v for k, v in loop.settings.items() if k not in ("dataset", "log") and "wandb" not in k}
    record = curves.begin(task, name, config.seed, theirs, data, config.episodes)
    path = config.out / f"{task}-unifloral-{method}-seed{config.seed}.json"
    if curves.is_there(path, record, _critic_steps):
        console.console.print(f"{path} is there")
        return
    carry = loop.carry
    for step in range(config.every, config.steps + 1, config.every):
        carry = loop.run(config.every, carry)
        layers = {k: v for k, v in carry[1].actor.params["params"].items() if k.startswith("Dense_")}
        exported = Exported(jax.tree.map(np.asarray, {"params": {"net": layers}}))
        if method != "rebrac":  # which does not normalise observations
            exported = td3_bc.export(defaults["td3_bc"], data, exported.params)
        score, error = curves.score(record, exported, data)
        curves.add_point(path, record, step=step, normalised_score=score, standard_error=error)
        console.console.print(f"{task} {name}: {step:,} steps, normalised score {score:.1f} +- {error:.1f}")


def main(config: PeerConfig) -> None:
    """Every curve that is missing, one after another, then the figure of all that are there."""
    checks.check_seeds((config.seed,), "--seed")
    checks.check_tasks(config.tasks)
    bounds.check(config, "")
    require(config.every % 2 == 0 < config.every, "--every must be even: its steps are of two critic steps.")
    require(config.steps % config.every == 0, "--steps must be a multiple of --every.")
    console.writable(config.out)
    for method in config.methods:
        for task in config.tasks:
            curve(config, task, method)
    curves.draw(config.out)


if __name__ == "__main__":
    console.command(lambda: PeerConfig, main, "python experiments/bench/unifloral.py", __doc__)
