"""How many programs are compiled: of a run, as many as it has stages; of another seed, none."""

import jax
import pytest

from experiments.bench.accelerator import compilations
from iwsft_control.benchmark import settings, stages, store
from iwsft_control.benchmark.perform import perform
from iwsft_control.configs.critic import CriticConfig
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.learning import curation, loop
from tests.conftest import make_data

SETTINGS = settings.make(
    quick=True,
    policy=PolicyConfig(hidden=(8,), bc_steps=1000, fine_tune_steps=20, batch_size=16),
    critic=CriticConfig(steps=1000, hidden=(8,), batch_size=16),
)


@pytest.fixture
def compiled():
    """Seconds of every compilation so far."""
    with compilations() as found:
        yield found


@pytest.mark.parametrize("method", [pytest.param("sft-q", marks=pytest.mark.slow), "iw-sft-q"])
def test_another_seed_compiles_nothing(method, tmp_path, compiled):
    """Though its critic curates another set. (A run is the main command's: BC, critic, fine-tuning, evaluation.)"""
    jax.clear_caches()
    data, kept = make_data([33 + i % 5 for i in range(60)]), store.Store(tmp_path)
    rows = []
    for seed in (0, 1, 2):
        before, programs = len(compiled), loop._call._cache_size()
        made = perform(stages.method_stage(method, "q", (seed,), SETTINGS, "hopper-medium-replay"), data, kept)
        rows.append(made.record["diagnostics"][0]["curated"]["rows"])
        if seed == 0:
            assert loop._call._cache_size() - programs == 3  # one each
        else:
            assert len(compiled) == before
    assert len(set(rows)) > 1


def test_sets_come_in_few_sizes():
    sizes = [curation.rounded_up(n) for n in range(1, 5000)]
    assert all(n <= size <= max(n + 1, 1.25 * n) for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes) and len(set(sizes)) < 50
    assert curation.rounded_up(4096) == 4096
