"""The benches run, once and tiny: what they print is told by the figures that do not depend on speed."""

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from iwsft_control.base.errors import UserError
from iwsft_control.datasets import minari_files, packed
from tests.conftest import SCORES, make_data, make_episodes
from tests.test_run import ID, small

BENCH = Path(__file__).parents[1] / "experiments" / "bench"
NEW = tuple(path.stem for path in BENCH.glob("*.py") if path.stem != "__init__")


@pytest.fixture(autouse=True)
def as_scripts(monkeypatch):
    """A script finds the modules beside it, and may keep its process on one core: here on those that it has."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = {name: sys.modules.pop(name, None) for name in NEW}
    monkeypatch.setattr(importlib.import_module("shared"), "pin", lambda cores=1: cores)
    yield
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def bench(name):
    return importlib.import_module(name)


def rows(printed):
    """Cells of the rows of tables."""
    return [[c.strip() for c in line.strip("│").split("│")] for line in printed.splitlines() if line.startswith("│")]


def number(text):
    return float(text.replace(",", ""))


def head_is_there(printed):
    assert re.match(r".+, \d+ cores, \d+ of them used", printed.splitlines()[0])


# --- what they share --------------------------------------------------------------------------------------------------


def test_random_data_are_what_the_loaders_give():
    data = bench("shared").random_data(1000, 30)
    np.testing.assert_array_equal(data.observations[1:], data.next_observations[:-1])
    assert data.starts[-1] == 1000 and data.lengths.max() == 30 and data.lengths.min() == 10
    ends = np.flatnonzero(data.terminations)
    assert set(ends) < set(data.starts[1:] - 1) and len(ends) == 17
    real = make_data()
    for field in ("observations", "actions", "rewards", "next_observations", "terminations"):
        one, other = getattr(data, field), getattr(real, field)
        assert one.dtype == other.dtype and one.shape[1:] == other.shape[1:]


def test_what_runs_out_of_memory_is_told():
    with pytest.raises(MemoryError):
        bench("shared").alone(exec, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("training", {"methods": ("iw-sft-q",)}, "iw-sft-q starts from bc and critic, which this bench does not make"),
        ("training", {"methods": ("iqll",)}, "unknown method 'iqll': did you mean iql"),
        ("training", {"seconds": 0.0}, "--seconds must be positive"),
        ("pool", {"methods": ("iqll",)}, "unknown method 'iqll': did you mean iql"),
        ("pool", {"methods": ("one-step",)}, "one-step starts from sarsa, which"),
        ("pool", {"methods": ()}, "--methods must name one or more different methods"),
        ("pool", {"rounds": 0}, "--rounds must be positive"),
        ("evaluation", {"episodes": 0}, "--episodes must be positive"),
        ("growth", {"rows": (100,)}, "--rows must be at least 200, the rows of an episode"),
        ("growth", {"base_rows": 100}, "--base-rows must be at least 200"),
        ("growth", {"episodes": (500,), "base_rows": 400}, "--episodes must not be more than --base-rows"),
        ("growth", {"methods": ("one-step",)}, "one-step starts from sarsa, which"),
        ("growth", {"methods": ("decision-transformer",)}, "decision-transformer has no hidden layers that --grow"),
        ("breakdown", {"steps": 0}, "--steps must be positive"),
        ("startup", {"rounds": 0}, "--rounds must be positive"),
        ("checkouts", {"other": Path(), "rounds": 0}, "--rounds must be positive"),
        ("online", {"updates": 0}, "--updates must be positive"),
        ("online", {"tasks": ("hoper-medium-replay",)}, "unknown task 'hoper-medium-replay': did you mean"),
        ("accelerator", {"tasks": ()}, "--tasks must name one or more different tasks"),
        ("released", {"hidden": (0,)}, "--hidden must be positive"),
        ("sequences", {"corpus": 0}, "--corpus must be positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(monkeypatch, name, changes, sentence):
    """In a sentence, before anything is measured."""
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None, raising=False)
    module = bench(name)
    kind = module.PoolConfig if name == "pool" else module.BenchConfig
    with pytest.raises(UserError, match=sentence):
        module.main(kind(**changes))


# --- growth -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_growth(capsys):
    growth = bench("growth")
    config = growth.BenchConfig(("iw-sft-q",), ("seeds",), seeds=(1, 3), base_rows=2000, steps=5, rounds=2)
    growth.main(config)
    printed = capsys.readouterr().out
    head_is_there(printed)
    one, three, summary = rows(printed)
    assert (one[:3], three[:3], summary[:2]) == (["iw-sft-q", "seeds", "1"], ["iw-sft-q", "seeds", "3"], one[:2])
    # Three policies, their averages and optimisers: nearly all of the arrays.
    assert 2 < number(three[3]) / number(one[3]) <= 3.5
    for cells in (one, three):
        assert number(cells[5]) > 0 and number(cells[6]) > number(cells[3])
    assert len(summary) == 6 and summary[5] != "-"


def test_growth_is_a_slope():
    growth = bench("growth")
    assert growth.exponent([10, 100, 1000], [3.0, 300.0, 30000.0]) == pytest.approx(2.0)
    found = {n: growth.Measured(8 * n, 0.5, 1e-3 * n, 100 + 16 * n) for n in (10, 100, 1000)}
    preparation, step, memory, further = map(float, growth.growth(found))
    assert (preparation, step, further) == (0.0, 1.0, 2.0) and 0.5 < memory < 1
    constant = {n: each._replace(arrays=80) for n, each in found.items()}
    assert growth.growth(constant)[3] == "-"


def test_growth_measures_what_it_says():
    growth = bench("growth")
    config = growth.BenchConfig(rows=(1000, 2000), episodes=(10, 20), width=(8,), base_rows=4000)
    for grows in ("rows", "episodes", "seeds", "width"):
        every = growth.cases(config, "bc", grows)
        assert list(every) == list(getattr(config, grows))
        assert [getattr(case, grows) for case in every.values()] == list(every)
    assert [c.rows // c.episodes for c in growth.cases(config, "bc", "rows").values()] == [200, 200]
    assert {c.rows for c in growth.cases(config, "bc", "episodes").values()} == {4000}


# --- loading ----------------------------------------------------------------------------------------------------------


def test_loading(tmp_path, monkeypatch, capsys):
    """Of an embedded data set and of one in the Minari root; every way finds the same transitions."""
    small()
    name, data = "iwsft/hopper/tiny-v0", tmp_path / "packed"
    data.mkdir()
    metadata = SCORES | {"env_spec": minari_files.environment_spec("d4rl/Hopper-v2")}
    packed.pack(data / "tiny.hdf5", make_episodes((30, 5)), metadata)
    entry = {"file": "tiny.hdf5", "sha256": packed.files.sha256(data / "tiny.hdf5"), "bytes": 0}
    packed.files.write_json(data / "manifest.json", {name: entry})
    monkeypatch.setattr(packed, "EMBEDDED", data)
    loading = bench("loading")
    loading.main(loading.BenchConfig((name, ID), rounds=2))
    printed = capsys.readouterr().out
    head_is_there(printed)
    found = rows(printed)
    assert [row[2] for row in found] == [*loading.WAYS, *loading.WAYS[:3]]
    assert {row[0]: row[1] for row in found}[name] == "35"
    iterated = [row for row in found if row[2] == "iterate"]
    assert all(row[4:] == ["1.0", "1.0", "1.0"] for row in iterated)
    assert minari_files.local_ids() == [ID]  # the copy is gone


# --- the released recipe ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_released(capsys):
    small()
    released = bench("released")
    released.main(released.BenchConfig(None, ID, hidden=(16,), steps=1, rounds=1))
    printed = capsys.readouterr().out
    head_is_there(printed)
    default, ours, plain = rows(printed)
    assert [default[1], default[4]] == ["256", "5,000"] and ours[4] == plain[4] == "2,000"
    assert 3 * 5 <= number(ours[1]) <= 3 * 40  # three episodes, however often the 256 draws take them
    assert 256 * 5 <= number(plain[1]) <= 256 * 40
    assert plain[3] == "1.0"
    assert float(re.search(r"after a step: (\S+) of", printed)[1]) < 1e-3


@pytest.mark.slow
def test_a_wrong_rendering_would_be_told(monkeypatch):
    """The difference after a step is one where the weights are not those of the released code."""
    released = bench("released")
    data = make_data([9 + i % 7 for i in range(60)])
    recipe = released.ready(data, released.as_released(released.PolicyConfig(hidden=(16,))), 2)
    curated = jax.tree.map(lambda x: x[0], recipe.prepared.own.curated)
    padded = released.pad(data, curated)
    lengths = np.asarray(curated.lengths)
    assert padded.mask.sum() == sum(lengths[np.unique(np.asarray(curated.entries[: int(curated.size)]))])
    adam = optax.adam(4e-5)
    assert released.both_step(recipe, padded, adam, 8) < 1e-3
    wrong = padded._replace(mask=np.ones_like(padded.mask))
    assert released.both_step(recipe, wrong, adam, 8) > 1e-2


# --- token sequences --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sequences(capsys, monkeypatch):
    sequences = bench("sequences")
    monkeypatch.setattr(sequences.children, "usable_cores", lambda: 1)
    monkeypatch.setattr(sequences.shared, "alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(sequences.generate, "BATCH", 16)
    tiny = sequences.ModelConfig(width=8, layers=1, heads=1)
    config = sequences.BenchConfig("modchain-4", model=tiny, corpus=64, rounds=1)
    sequences.main(config)
    printed = capsys.readouterr().out
    head_is_there(printed)
    found = dict(rows(printed))
    assert list(found) == ["training, bc", "training, iw-sft", "decoding, greedy"]
    assert all(number(rate) > 0 for rate in found.values())
    with pytest.raises(UserError, match="iw-sft-q differ"):
        sequences.main(dataclasses.replace(config, methods=("iw-sft-q",)))
    with pytest.raises(UserError, match=r"--model\.width must be positive"):
        sequences.main(dataclasses.replace(config, model=sequences.ModelConfig(width=0)))


# --- the parts of a step ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parts_are_the_step(capsys, monkeypatch):
    """What the parts take is what the loop's step takes, and its products are counted by hand."""
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None, raising=False)
    breakdown = bench("breakdown")
    monkeypatch.setattr(breakdown.training, "PRODUCTS", 20)
    counted = []
    count = breakdown.training.product_flops
    monkeypatch.setattr(
        breakdown.training, "product_flops", lambda *given: counted.append(count(*given)) or counted[-1]
    )
    breakdown.main(breakdown.BenchConfig(steps=2, rounds=1, transitions=1000))
    printed = capsys.readouterr().out
    head_is_there(printed)
    found = rows(printed)
    assert [row[0] for row in found] == ["products at the limit", "narrow, and between", "Adam", "the loop"]
    assert sum(number(row[1]) for row in found) == pytest.approx(number(found[-1][2]), abs=0.003)
    # Forward passes of the two targets, of V at s and s' and of the two critics; backward those that learn, their first
    # layer's input without a gradient.
    wide, q_in, v_in = 256 * 256 + 256, 14 * 256, 11 * 256
    forward = 2 * (q_in + wide) + 2 * (v_in + wide) + 2 * (q_in + wide)
    backward = (v_in + 2 * wide) + 2 * (q_in + 2 * wide)
    assert max(counted) == pytest.approx(2 * 256 * (forward + backward), rel=0.01)


# --- processes that fill the cores ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pool(capsys, monkeypatch):
    """As many processes as there are cores, then one, each way; what it set for them is taken back by the test."""
    monkeypatch.setenv("PJRT_NPROC", "1")
    pool = bench("pool")
    monkeypatch.setattr(pool.children, "usable_cores", lambda: 2)
    pool.main(pool.PoolConfig(methods=("bc",), seconds=0.1, rounds=1, transitions=1000))
    printed = capsys.readouterr().out
    head_is_there(printed)
    found = rows(printed)
    assert [row[:2] for row in found] == [["bc", "2"], ["bc", "1"]]
    for row in found:
        several, one = map(number, row[2:4])
        assert float(row[4].split()[0]) == pytest.approx(one / several, rel=0.02)


# --- all of them ------------------------------------------------------------------------------------------------------


def test_what_benches_print_is_kept_as_files(tmp_path, monkeypatch, capfd):
    """One file for each, with its command; a bench that fails stops the rest and loses nothing."""
    every = bench("all")
    assert all((BENCH / f"{name}.py").is_file() for name in every.BENCHES)
    monkeypatch.setattr(every, "BENCH", tmp_path)
    (tmp_path / "loading.py").write_text("print('é 3.0')")
    (tmp_path / "training.py").write_text("import sys; print(sys.argv[1:])")
    (tmp_path / "command.py").write_text("raise SystemExit(2)")
    config = every.AllConfig(("loading", "training", "command"), tmp_path / "out", tmp_path / "clone")
    with pytest.raises(UserError, match="command failed"):
        every.main(config)
    kept = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in (tmp_path / "out").iterdir()}
    assert {name: (lines[0], lines[2]) for name, lines in kept.items()} == {
        "loading": ("$ python experiments/bench/loading.py", "é 3.0"),
        "training": (
            "$ python experiments/bench/training.py --unifloral ../unifloral",
            str(["--unifloral", str(tmp_path / "clone")]),
        ),
    }
    assert re.fullmatch("# commit ([0-9a-f]{40}(-dirty)?|unknown)", kept["loading"][1])
    with pytest.raises(UserError, match="no bench lading; choose of startup, loading"):
        every.main(every.AllConfig(("lading",)))


# --- the main command -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_command(capsys):
    """The second start takes from disk what the first has compiled, and a third has nothing to do."""
    small()
    command = bench("command")
    arguments = f"--dataset {ID} --policy.hidden 8 --policy.bc-steps 10 --policy.batch-size 16"
    command.main(command.BenchConfig(methods=("bc",), arguments=arguments, quick=True))
    printed = capsys.readouterr().out
    head_is_there(printed)
    found = {name: cells for name, *cells in rows(printed)}
    assert list(found)[:4] == ["bc, s", "bc evaluation, s", "the whole less these, s", "the whole, s"]
    compiled, kept, entries = (
        [int(x) for x in found[name]]
        for name in ("programs compiled", "programs taken from disk", "entries of the folder")
    )
    assert compiled[0] > compiled[1] == compiled[2] == 0  # every program is kept, small ones too
    assert kept[0] == kept[2] == 0 and kept[1] == entries[0] == entries[1] == entries[2] > 0
    assert compiled[1] + kept[1] == compiled[0]
    assert float(found["until the first step, s"][0]) < float(found["the whole, s"][0])
    assert found["until the first step, s"][2] == "-"
    assert sum(float(found[name][0]) for name in list(found)[:3]) == pytest.approx(
        float(found["the whole, s"][0]), abs=0.3
    )
    with pytest.raises(UserError, match=r"the command failed: .*hopper-medium-replay"):
        command.main(command.BenchConfig(env="hoper-medium-replay"))
