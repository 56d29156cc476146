"""The ablation: variants differ in what they say, and the table compares them on the same seeds."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import ablation
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark.settings import make
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.report import formats, runs


def test_variants_differ_in_one_factor():
    every = ablation.variants(released=True)
    assert len({v.folder for v in every}) == len(every)
    for group in {v.group for v in every}:
        first, *others = [v for v in every if v.group == group]
        assert first.weights == "none" and first.method == "sft-q"
        for other in others:
            assert other.method == "iw-sft-q" and other.quality == first.quality
            changed = {k for k, v in other.settings if dict(first.settings).get(k) != v}
            assert changed == ({"importance"} if group != ablation.RELEASED else set())
            make(**dict(other.settings))  # they are groups of options


def test_a_failed_run_stops_no_other_variant(tmp_path, monkeypatch):
    begun = []

    def failing(plan):
        begun.append(plan.results.name)
        raise SystemExit(1)

    monkeypatch.setattr(ablation.sweep, "main", failing)
    monkeypatch.setattr(ablation.runs, "by_seed", lambda folder, quick: {"hopper-medium-replay": {}})
    monkeypatch.setattr(ablation, "figure", lambda config, found: None)
    monkeypatch.setattr(ablation.figures, "save", lambda figure, folder, name: None)
    with pytest.raises(SystemExit):
        ablation.main(ablation.AblationConfig(tasks=("hopper-medium-replay",), out=tmp_path))
    assert len(begun) == len(ablation.variants()) and (tmp_path / "ablation.md").is_file()


def test_the_mean_over_tasks_is_paired_by_seed():
    """Only of seeds that have every task; the differences from the default and from the released recipe beside it."""
    every = ablation.variants(released=True)
    plain = next(v for v in every if v.group == "return, episodes")
    default, weighted, *_ = (v for v in every if v.weights == "ess 0.5")
    assert default.group == "learned Q, episodes" and weighted.group == plain.group
    released = every[-1]

    def runs(*scores):
        start = {"bc_start": {"normalised_score": 7.0}}
        return {s: SimpleNamespace(normalised_score=x, diagnostics=start) for s, x in enumerate(scores)}

    names = ("hopper-medium-replay", "walker2d-medium-replay")
    found = {
        plain: dict(zip(names, (runs(10.0, 20.0, 99.0), runs(30.0, 20.0)), strict=True)),
        weighted: dict(zip(names, (runs(20.0, 30.0), runs(40.0, 40.0)), strict=True)),
        default: dict(zip(names, (runs(25.0, 35.0), runs(35.0, 45.0)), strict=True)),
        released: {names[0]: runs(0.0, 0.0)},
    }
    found |= {v: {} for v in every if v not in found and v.weights == "none"}
    header, rows = ablation.table(ablation.AblationConfig(names), found)
    cells = {row[1]: dict(zip(header, row, strict=False)) for row in rows if row[0] == plain.group}
    assert cells["none"]["mean of the tasks"].startswith("20.0")
    assert cells["ess 0.5"]["mean of the tasks"].startswith("32.5")  # 30 and 35
    assert cells["ess 0.5"]["mean of the tasks"] == rows[2][-4] and rows[2][-3].startswith("+12.5")  # +10 and +15
    assert rows[2][-2].startswith("-2.5") and rows[3][-2] == "-"  # 30 - 30 and 35 - 40; the default itself
    assert header[-1] == "minus the released iw-SFT(Q)" and rows[2][-1] == "-"  # which has no second task
    assert rows[0][:4] == ["BC, where they start", "-", "2", "7.0 [all equal]"]
    assert [cells[w]["seeds"] for w in ("none", "ess 0.5")] == ["2", "2"]  # with all tasks
    assert {len(row) for row in rows} == {len(header)}


def test_the_committed_table_is_that_of_the_committed_results(tmp_path):
    config, out = ablation.AblationConfig(table_only=True), Path(__file__).parents[1] / "results/ablation"
    found = {v: runs.by_seed(out / v.folder) for v in ablation.variants()}
    header, rows = ablation.table(config, found)
    assert formats.markdown_table(header, rows) == (out / "ablation.md").read_text(encoding="utf-8").rstrip()
    with pytest.raises(UserError, match=r"no results in .*: run them without --table-only"):
        ablation.main(dataclasses.replace(config, out=tmp_path))


def test_table_and_figure(tmp_path, one_process, monkeypatch, capsys, imported_hopper):
    """Two variants, two seeds, for real but small: a second call does nothing anew."""
    small = ("policy", PolicyConfig(hidden=(8,), batch_size=16))
    every = [v for v in ablation.variants() if v.group == "return, episodes" and v.weights in ("none", "ess 0.5")]
    every = [v._replace(settings=(*v.settings, small)) for v in every]
    monkeypatch.setattr(ablation, "variants", lambda *_: every)
    config = ablation.AblationConfig(("hopper-medium-replay",), (3, 4), out=tmp_path, workers=1, quick=True)
    with pytest.raises(UserError, match="no group nothing; choose of return, episodes"):
        ablation.main(ablation.AblationConfig(groups=("nothing",), out=tmp_path))
    ablation.main(config)
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert len(lines) == 5 and lines[3].startswith("| return, episodes | none |")
    found = {v: runs.by_seed(tmp_path / v.folder, quick=True)["hopper-medium-replay"] for v in every}
    plain, weighted = (ablation.scores(found[v], (3, 4)) for v in every)
    assert f"{np.mean(weighted - plain):+.1f}" in lines[4].split("|")[5] == lines[4].split("|")[7]  # one task: its mean
    assert ablation._mean_size(found[every[1]]) == pytest.approx(0.5, abs=0.05)
    assert ablation._mean_size(found[every[0]]) == 1.0
    assert (tmp_path / "effective-sample-size.svg").is_file()
    capsys.readouterr()
    ablation.main(config)
    assert "Nothing is left to do" in capsys.readouterr().out


def test_a_table_keeps_the_groups_that_were_not_run(tmp_path, monkeypatch):
    """A second call with other groups adds to the table; it does not begin it anew."""
    there = {"Q - V, segments"}
    monkeypatch.setattr(ablation.sweep, "main", lambda plan: there.add("return, episodes"))
    run = SimpleNamespace(normalised_score=1.0, diagnostics={"bc_start": {"normalised_score": 0.0}, "training": {}})
    found = {"hopper-medium-replay": {7: run}}
    group_of = {variant.folder: variant.group for variant in ablation.variants()}
    monkeypatch.setattr(ablation.runs, "by_seed", lambda folder, quick: found if group_of[folder.name] in there else {})
    compared = []
    monkeypatch.setattr(ablation.runs, "require_alike", lambda variants: compared.append([v for v in variants if v]))
    config = ablation.AblationConfig(("hopper-medium-replay",), groups=("return, episodes",), out=tmp_path)
    ablation.main(config)
    assert all(each is found for each in compared[0]) and len(compared[0]) > 2  # runs that may not be compared end it
    groups = {line.split(" | ")[0].strip("| ") for line in (tmp_path / "ablation.md").read_text().splitlines()[3:]}
    assert groups == {"Q - V, segments", "return, episodes"}
