"""What weights prefer: counted by hand, and the command for real but small."""

import numpy as np
import pytest

from experiments import weights
from iwsft_control.configs.critic import CriticConfig
from iwsft_control.configs.importance import ImportanceConfig
from iwsft_control.configs.supervised import PolicyConfig, SupervisedConfig
from iwsft_control.learning import curation
from tests.conftest import make_data


@pytest.mark.parametrize("length_weighted", [True, False])
def test_places_and_returns_count_by_weight_length_and_how_often(length_weighted):
    """By length where fine-tuning draws so."""
    data = make_data((10, 20, 30, 40, 50))
    entries = np.array([1, 2, 4, 4])  # three episodes, the last one twice
    curated = curation.curate(entries, curation.episode_units(data))
    q = np.repeat([9.0, 1.0, 3.0, 9.0, 2.0], data.lengths)
    log_ratio = np.log([1.0, 2.0, 4.0])
    config = SupervisedConfig(PolicyConfig(length_weighted=length_weighted), ImportanceConfig(None, temperature=1.0))
    found = weights.preference(config, data, curated, log_ratio, q)
    assert found.episodes == 3
    order = np.argsort(np.argsort(data.returns[[1, 2, 4]]))
    returned = 1 - 6 * ((order - np.arange(3)) ** 2).sum() / 24  # Spearman's of ranks without ties
    np.testing.assert_allclose(found.correlations, [1.0, returned, 0.5], atol=1e-12)
    place = np.array([0.25, 0.5, 1.0])
    times, lengths = np.array([1, 1, 2]), np.array([20, 30, 50]) if length_weighted else np.ones(3)
    for draws, weight in ((found.plain, np.ones(3)), (found.weighted, np.array([1, 2, 4]))):
        share = weight * times * lengths
        share = share / share.sum()
        mean = share @ place
        expected = [mean, np.sqrt(share @ (place - mean) ** 2), share @ data.returns[[1, 2, 4]]]
        np.testing.assert_allclose(draws, expected, rtol=1e-5)


def test_the_table(tmp_path, imported_hopper):
    small = {"hidden": (8,), "batch_size": 16}
    config = weights.WeightsConfig(
        ("hopper-medium-replay",),
        (3,),
        tmp_path,
        critic=CriticConfig(steps=20, **small),
        policy=PolicyConfig(bc_steps=20, fine_tune_steps=10, **small),
    )
    weights.main(config)
    lines = (tmp_path / "weights.md").read_text().splitlines()
    plain, weighted = ([c.strip() for c in line.split("|")[1:-1]] for line in lines[2:])
    assert plain[0] == "hopper-medium-replay" and 3 <= int(plain[1]) <= 15  # of thirty episodes
    assert all(-1 <= float(x) <= 1 for x in plain[2:5])
    assert (plain[5], weighted[5]) == ("plain", "weighted") and weighted[0] == ""
    assert float(plain[7].replace(",", "")) == pytest.approx(float(weighted[7].replace(",", "")), rel=0.5)
