"""The bench of an accelerator, tiny and on whatever device is here."""

import pytest

from experiments.bench import accelerator
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark.store import Store

CONFIG = accelerator.BenchConfig(("hopper-medium-replay",), ("bc", "sft"), seeds=2, steps=3)


pytestmark = pytest.mark.usefixtures("imported_hopper")


@pytest.mark.slow
def test_a_dry_run_tells_what_every_program_needs(tmp_path):
    found = {job.stage.method: needs for job, needs in accelerator.dry_run(CONFIG, tmp_path)}
    assert list(found) == ["bc", "sft"]
    parameters = (11 + 1) * 256 + 2 * (256 + 1) * 256 + (256 + 1) * 3 + 3
    least = 2 * 4 * 4 * parameters  # two seeds; parameters, their average and Adam's two moments; four bytes
    assert all(least < needs.arguments < 1.1 * least for needs in found.values())
    assert all(needs.compiling > 0 for needs in found.values())
    assert accelerator.plan(CONFIG, range(2))[0].stage.config.steps == 3


@pytest.mark.slow
def test_seconds_of_every_stage(tmp_path, capsys):
    found = accelerator.whole_run(accelerator.BenchConfig(CONFIG.tasks, ("bc",), seeds=2, steps=3), tmp_path)
    ((job, many, one),) = found
    assert job.stage.seeds == (0, 1) and many.compiling > 0 and many.evaluation > 0
    assert one is not None and len(list((tmp_path / "one").glob("*.safetensors"))) == 1
    printed = capsys.readouterr().out
    assert "hopper-medium-replay" in printed and "minutes" in printed
    assert Store(tmp_path / "many").has(job.stage, job.source.load())


def test_bad_options():
    with pytest.raises(UserError, match="--seeds must be positive"):
        accelerator.main(accelerator.BenchConfig(seeds=0))
