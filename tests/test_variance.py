"""The spread between runs: one thing changes at a time."""

import json

import numpy as np
import pytest

from experiments import variance
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import settings
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.methods.critic import CriticConfig

SMALL = {"hidden": (8,), "batch_size": 16}


@pytest.mark.parametrize("component", variance.COMPONENTS)
def test_runs_of_a_component_differ_in_it_alone(component):
    first, *others = variance.draws(component, 100, 4)
    assert first == variance.Draw(100, 100, 100, 0, 0) and len({first, *others}) == 4
    for other in others:
        changed = {f for f in first._fields if getattr(first, f) != getattr(other, f)}
        whole = {"bc", "critic", "fine_tune"}
        assert changed == (whole if component == "all" else {component.replace("-", "_")})


def test_seeds_needed_against_the_normal_approximation():
    assert variance.seeds_needed(10.0, 10.0) == 16  # 2 * 2.8^2 = 15.7
    assert variance.seeds_needed(10.0, 5.0) == 63
    assert variance.seeds_needed(0.1, 10.0) == 2


def test_the_command(tmp_path, monkeypatch):
    policy = PolicyConfig(bc_steps=20, fine_tune_steps=10, **SMALL)
    small = settings.make(quick=True, policy=policy, critic=CriticConfig(steps=20, **SMALL))
    monkeypatch.setattr(settings, "make", lambda quick: small)
    with pytest.raises(UserError, match="methods that fine-tune"):
        variance.main(variance.VarianceConfig(method=("bc",), out=tmp_path))
    config = variance.VarianceConfig(method=("iw-sft-q",), runs=2, out=tmp_path, stages=tmp_path / "stages", quick=True)
    variance.main(config)
    found = json.loads((tmp_path / "hopper-medium-replay.json").read_text())["scores"]["iw-sft-q"]
    assert {c: len(x) for c, x in found.items()} == dict.fromkeys(variance.COMPONENTS, 2)
    assert len({x[0] for x in found.values()}) == 1  # all of them begin with the same run
    assert all(np.ptp(found[c]) > 0 for c in ("bc", "critic", "fine-tune", "evaluation", "all"))
    assert len((tmp_path / "hopper-medium-replay.md").read_text().splitlines()) == 3
