"""The control by place: which entries are the latest, and that a run trains on them alone."""

import numpy as np

from experiments import recency
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.supervised import FineTuningConfig
from iwsft_control.learning.method import Artefact, Inputs
from tests.conftest import make_data


def test_the_latest_are_whole_episodes_and_at_least_the_share():
    entries = np.array([5, 1, 9, 9, 3, 9, 5, 2])
    assert recency.latest(entries).tolist() == [5, 5, 9, 9, 9]  # half of eight ends inside episode 5
    assert recency.latest(entries, 0.25).tolist() == [9, 9, 9]
    assert recency.latest(np.array([4, 4, 4])).tolist() == [4, 4, 4]


def test_every_seed_draws_from_the_latest_of_its_own_set():
    data = make_data((10, 20, 30, 40))
    up, down = (np.repeat(x, data.lengths) for x in ([0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]))
    q = np.stack([up, down])
    artefacts = {
        "critic": Artefact({"q": q, "v": np.zeros_like(q)}, {}),
        "bc": Artefact({"params": {"w": np.zeros((2, 3))}}, {}),
    }
    config = FineTuningConfig(curation=CurationConfig(strata=(50,), strata_of="units"))
    found = recency.prepare(config, Inputs(data, artefacts, None, (0, 1)))
    curated = found.own.curated
    rows = [set(np.asarray(curated.rows[s])[np.asarray(curated.entries[s][: curated.size[s]])]) for s in (0, 1)]
    assert rows == [set(range(60, 100)), set(range(10, 30))]  # of episodes 2 and 3 the last, of 0 and 1 the second
    assert found.own.start["w"].shape == (2, 3)
