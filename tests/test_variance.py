"""The spread between runs: one thing changes at a time."""

import dataclasses
import json

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


def test_the_command(tmp_path, monkeypatch, imported_hopper):
    policy = PolicyConfig(bc_steps=20, fine_tune_steps=10, **SMALL)
    small = settings.make(quick=True, policy=policy, critic=CriticConfig(steps=20, **SMALL))
    longer = settings.make(
        quick=True, policy=dataclasses.replace(policy, bc_steps=30), critic=CriticConfig(steps=20, **SMALL)
    )
    monkeypatch.setattr(settings, "make", lambda quick: small)
    with pytest.raises(UserError, match="methods that fine-tune"):
        variance.main(variance.VarianceConfig(method=("bc",), out=tmp_path))
    config = variance.VarianceConfig(method=("iw-sft-q",), runs=2, out=tmp_path, stages=tmp_path / "stages", quick=True)
    scored = iter(range(9))

    def until_killed(*arguments):
        if next(scored) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    whole = variance.score
    monkeypatch.setattr(variance, "score", until_killed)
    with pytest.raises(KeyboardInterrupt):
        variance.main(config)
    path = tmp_path / "hopper-medium-replay.json"
    first = json.loads(path.read_text())["methods"]["iw-sft-q"]["scores"]
    assert len(first) == 3
    monkeypatch.setattr(variance, "score", whole)
    variance.main(config)
    scores = json.loads(path.read_text())["methods"]["iw-sft-q"]["scores"]
    assert len(scores) == 7 and first.items() <= scores.items()  # one of each component and the run that all begin with
    assert len(set(scores.values())) == 7
    header, _, row = (tmp_path / "hopper-medium-replay.md").read_text().splitlines()
    assert header.count("|") == row.count("|") == 8 and row.count("[") == 6

    monkeypatch.setattr(variance, "train", None)  # all is there
    variance.main(config)
    with pytest.raises(UserError, match="holds runs of another quality"):
        variance.main(dataclasses.replace(config, quality="return"))
    with pytest.raises(UserError, match="other settings"):
        monkeypatch.setattr(settings, "make", lambda quick: dataclasses.replace(small, groups=longer.groups))
        variance.main(config)
    path.write_text("{}")
    with pytest.raises(UserError, match="not a record of runs of this command"):
        variance.main(config)
