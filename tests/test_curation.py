"""Where a curated set comes from: counted by hand."""

import numpy as np

from experiments import curation as origins
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.supervised import KINDS
from iwsft_control.methods import supervised
from tests.conftest import make_data


def test_draws_count_by_length_and_by_how_often_a_unit_stands_there():
    data = make_data((10, 20, 30, 40))
    q = np.repeat([0.0, 1.0, 2.0, 3.0], data.lengths)
    config = CurationConfig(q_unit="episode", episode_strata=(50, 75))  # the two best, then the best once more
    choice = supervised.curate(config, KINDS["sft-q"], "q", data, (q, q))
    rows, probability = origins.drawn(data, choice.curated)
    assert sorted(rows) == list(range(30, 100))
    expected = np.where(rows >= 60, 2.0, 1.0)
    np.testing.assert_allclose(probability, expected / expected.sum())


def test_the_table(tmp_path):
    """For real, with a critic of a trial: a row for all data, and one for every unit."""
    config = origins.CurationOptions(("hopper-medium-replay",), out=tmp_path, quick=True)
    origins.main(config)
    lines = (tmp_path / "curation.md").read_text().splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["(all data)", *origins.UNITS.values()]
    everything = lines[2].split("|")
    assert everything[3].strip() == "402,000"
    share, mean = float(everything[4]), float(everything[5].replace(",", ""))
    assert 0.1 < share < 0.5 and mean > 0  # long episodes have more transitions
