"""The bench against unifloral: its loops are driven as its own script would drive them."""

import dataclasses
import json
import sys
import textwrap
import types

import numpy as np
import pytest

from experiments.bench import unifloral
from iwsft_control.base.errors import UserError
from tests.conftest import make_data

DATA = unifloral.rebrac.FollowedTransitions(
    *(np.random.default_rng(0).standard_normal(shape, np.float32) for shape in ((9, 4), (9, 2), (9,))),
    *(np.zeros(shape, np.float32) for shape in ((9, 4), 9, (9, 2), 9)),
)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder laid out like unifloral's, with an algorithm that counts; its modules are gone afterwards."""
    for name in ("d4rl", "gym", "wandb"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms" / "td3_bc.py").write_text(
        textwrap.dedent(
            """
            import collections, dataclasses
            import d4rl, gym, wandb
            import flax.linen as nn
            import jax

            @dataclasses.dataclass
            class Args:
                num_updates: int = 0
                lr: float = 0.1
                num_critic_updates_per_step: int = 2

            AgentTrainState = collections.namedtuple("AgentTrainState", "actor actor_target dual_q dual_q_target")
            Transition = collections.namedtuple("Transition", "obs action reward next_obs done")

            class DeterministicTanhActor(nn.Module):
                actions: int
                mean: object
                std: object

            class DualQNetwork(nn.Module):
                mean: object
                std: object

            def create_train_state(args, rng, network, inputs):
                return args.num_updates

            def make_train_step(args, actor, critic, dataset):
                def step(carry, _):
                    dataset.reward[jax.random.randint(carry[0], (4,), 0, len(dataset.reward))]  # as all of them sample
                    return (carry[0], carry[1]._replace(actor=carry[1].actor + len(dataset.reward))), None
                return step
            """
        )
    )
    yield tmp_path
    sys.modules.pop("td3_bc", None)


def test_its_steps_are_counted_in_critic_steps(clone):
    loop = unifloral.load(clone, "td3-bc", DATA, steps=100)
    assert loop.settings == {"num_updates": 50, "lr": 0.1, "num_critic_updates_per_step": 2}
    assert loop.critic_steps == 2
    _, state = loop.run(10, loop.carry)
    assert int(state.actor) == 50 + 5 * 9


def test_given_settings_take_the_place_of_its_own(clone):
    loop = unifloral.load(clone, "td3-bc", DATA, steps=100, lr=0.5, num_critic_updates_per_step=4)
    assert loop.settings == {"num_updates": 25, "lr": 0.5, "num_critic_updates_per_step": 4}
    assert loop.critic_steps == 4


def test_a_whole_curve_is_neither_made_again_nor_lost(tmp_path, monkeypatch):
    """One that is not whole begins anew; nothing of it could go on."""
    data, ran = make_data(), []
    its = {"num_updates": 4, "num_critic_updates_per_step": 2, "lr": 0.1, "dataset": "x"}
    net = types.SimpleNamespace(actor=types.SimpleNamespace(params={"params": {}}))
    loop = types.SimpleNamespace(settings=its, carry=(None, net), run=lambda n, carry: ran.append(n) or carry)
    monkeypatch.setattr(unifloral.DataSource, "load", lambda self: data)
    monkeypatch.setattr(unifloral, "load", lambda *_, **__: loop)
    monkeypatch.setattr(unifloral.curves, "score", lambda *_: (1.0, 0.5))
    monkeypatch.setattr(unifloral.curves, "draw", lambda folder: None)
    out = tmp_path / "out"
    config = unifloral.PeerConfig(tmp_path, ("hopper-medium-replay",), ("rebrac",), steps=8, every=4, out=out)
    unifloral.main(config)
    (path,) = out.iterdir()
    text = path.read_text()
    assert json.loads(text)["step"] == [4, 8] and ran == [4, 4]
    unifloral.main(config)
    assert path.read_text() == text and ran == [4, 4]
    loop.settings = its | {"num_updates": 2}
    with pytest.raises(UserError, match="is a whole curve of other settings or data; move it"):
        unifloral.main(dataclasses.replace(config, steps=4))
    assert path.read_text() == text
    loop.settings = its
    path.write_text(json.dumps({k: v[:1] if isinstance(v, list) else v for k, v in json.loads(text).items()}))
    unifloral.main(config)
    assert json.loads(path.read_text())["step"] == [4, 8] and ran == [4, 4, 4, 4]


def test_no_clone(tmp_path):
    with pytest.raises(UserError, match="clone of"):
        unifloral.load(tmp_path, "rebrac", DATA)
    config = unifloral.PeerConfig(tmp_path, every=7)
    with pytest.raises(UserError, match="must be even"):
        unifloral.main(config)
    with pytest.raises(UserError, match="multiple of --every"):
        unifloral.main(dataclasses.replace(config, every=8, steps=100))
    for steps in (0, -10_000):
        with pytest.raises(UserError, match="--steps must be positive"):
            unifloral.main(dataclasses.replace(config, steps=steps))
    with pytest.raises(UserError, match="unknown task 'hoper-medium-replay': did you mean"):
        unifloral.main(dataclasses.replace(config, tasks=("hoper-medium-replay",)))
