"""How critics are judged: against sums of rewards that are known by hand."""

import dataclasses

import numpy as np
import pytest

from experiments import critic_quality
from iwsft_control.base.errors import UserError
from tests.conftest import make_data


def test_episodes_are_held_out_whole():
    data = make_data((4, 3, 5) * 7)
    learned, held_out = critic_quality.split(data)
    assert len(held_out.starts) - 1 == 2 and len(learned.starts) - 1 == 19
    np.testing.assert_array_equal(held_out.lengths, data.lengths[[9, 19]])
    np.testing.assert_array_equal(held_out.rewards[:4], data.rewards[data.starts[9] : data.starts[9] + 4])
    np.testing.assert_allclose(held_out.returns, data.returns[[9, 19]])
    assert len(learned.rewards) + len(held_out.rewards) == len(data.rewards)


def test_what_followed_is_the_discounted_sum():
    data = make_data((6, 400))
    terminations = np.zeros(406, bool)
    terminations[5] = True  # the second episode was cut
    data = dataclasses.replace(data, terminations=terminations)
    found = critic_quality.truth(data, scale=2.0, discount=0.9)
    for t in (0, 3, 5, 6, 200):
        last = 6 if t < 6 else 406
        expected = 2 * sum(0.9**k * float(r) for k, r in enumerate(data.rewards[t:last]))
        assert found.returns_to_go[t] == pytest.approx(expected, rel=1e-6)
    assert found.known[:6].all()
    assert found.known[6 : 406 - 29].all() and not found.known[406 - 28 :].any()  # 0.9^29 < 5% < 0.9^28


def test_a_perfect_critic_and_a_scaled_one():
    data = make_data(tuple(range(5, 45)))
    data = dataclasses.replace(data, terminations=np.isin(np.arange(len(data.rewards)), data.starts[1:] - 1))
    known = critic_quality.truth(data, 1.0, 0.99)
    perfect = critic_quality.judge(known.returns_to_go, data, known)
    assert perfect["row"] == pytest.approx(1.0) and perfect["slope"] == pytest.approx(1.0)
    assert perfect["bias"] == pytest.approx(0.0, abs=1e-9)
    doubled = critic_quality.judge(2 * known.returns_to_go + 1, data, known)
    assert doubled["row"] == pytest.approx(1.0) and doubled["slope"] == pytest.approx(0.5)
    by_return = critic_quality.judge(np.repeat(data.returns, data.lengths), data, known)
    assert by_return["episode"] == pytest.approx(1.0) and by_return["top"] == 1.0


class Killed:
    """A function that is killed in its second call."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return self.function(*arguments)


def test_bounds_are_those_of_the_critic():
    with pytest.raises(UserError, match=r"--critic.expectile must lie"):
        critic_quality.main(critic_quality.CriticQualityConfig(expectiles=(1.5,)))


def test_a_discount_by_which_no_return_is_known():
    with pytest.raises(UserError, match=r"no return of a held-out episode .* is known with --discounts 0\.9999"):
        critic_quality.main(
            critic_quality.CriticQualityConfig("halfcheetah-medium-replay", seeds=(3,), discounts=(0.9999,))
        )


def test_the_command(tmp_path, monkeypatch):
    small = critic_quality.critic.CriticConfig(hidden=(8,), batch_size=16)
    monkeypatch.setattr(critic_quality, "critics", lambda config: [("small", "critic", small)])
    with pytest.raises(UserError, match="multiples of 500"):
        critic_quality.main(critic_quality.CriticQualityConfig(updates=(600,)))
    with pytest.raises(UserError, match="different positive multiples of 500"):  # its files would clash
        critic_quality.main(critic_quality.CriticQualityConfig(updates=(500, 500)))
    config = critic_quality.CriticQualityConfig(seeds=(3,), updates=(500, 1000), out=tmp_path, work=tmp_path / "work")
    critic_quality.main(config)
    lines = (tmp_path / "hopper-medium-replay.md").read_text().splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["500", "1,000"]
    assert not list((tmp_path / "work").iterdir())
    # Killed while it judges the second: the first is judged again, of its own state.
    monkeypatch.setattr(critic_quality, "judge", killed := Killed(critic_quality.judge))
    again = dataclasses.replace(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        critic_quality.main(again)
    assert killed.calls == 2 and list((tmp_path / "work").iterdir())
    critic_quality.main(again)
    assert (tmp_path / "again/hopper-medium-replay.md").read_text().splitlines() == lines
    # Going on from 500 updates gives what 1,000 in one piece give.
    whole = dataclasses.replace(config, updates=(1000,), out=tmp_path / "whole")
    critic_quality.main(whole)
    assert (tmp_path / "whole/hopper-medium-replay.md").read_text().splitlines()[2] == lines[3]
