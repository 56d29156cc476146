"""Where a curated set comes from: counted by hand."""

import numpy as np
import pytest

from experiments import curation as origins
from iwsft_control import load
from iwsft_control.base.errors import UserError
from iwsft_control.configs.critic import CriticConfig
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.supervised import KINDS
from iwsft_control.methods import supervised
from tests.conftest import make_data


def test_draws_count_by_length_and_by_how_often_a_unit_stands_there():
    data = make_data((10, 20, 30, 40))
    q = np.repeat([0.0, 1.0, 2.0, 3.0], data.lengths)
    config = CurationConfig(strata=(50, 75), strata_of="units")  # the two best, then the best once more
    choice = supervised.curate(config, KINDS["sft-q"], "q", data, (q, q))
    rows, probability = origins.drawn(data, choice.curated)
    assert sorted(rows) == list(range(30, 100))
    expected = np.where(rows >= 60, 2.0, 1.0)
    np.testing.assert_allclose(probability, expected / expected.sum())


def test_the_table(tmp_path, imported_hopper):
    """For real, with a small critic on small data: a row for all data, and one for every unit."""
    critic = CriticConfig(steps=20, hidden=(8,), batch_size=16)
    origins.main(origins.CurationOptions(("hopper-medium-replay",), out=tmp_path, critic=critic))
    rows = [[c.strip() for c in line.split("|")[2:-1]] for line in (tmp_path / "curation.md").read_text().splitlines()]
    assert [row[0] for row in rows[2:]] == ["(all data)", *origins.UNITS.values()]
    data = load("hopper-medium-replay")
    best = np.argsort(-data.returns)[:3]
    share = data.lengths[best].sum() / data.lengths.sum()
    mean = data.returns @ data.lengths / data.lengths.sum()
    assert rows[2][1:] == [f"{len(data.rewards):,}", f"{share:.2f}", f"{mean:,.0f}"]
    assert all(0 <= float(row[2]) <= 1 for row in rows[3:])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"critic": CriticConfig(steps=0)}, "--critic.steps must be positive"), ({"tasks": ()}, "--tasks must name")],
)
def test_nothing_is_made_of_nonsense(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        origins.main(origins.CurationOptions(out=tmp_path, **changes))
