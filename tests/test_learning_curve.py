"""Learning curves of the baselines: drawn as they grow, and not made twice."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from experiments import learning_curve
from iwsft_control.base import snapshot as snapshots
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import settings
from iwsft_control.benchmark.jobs import DataSource
from iwsft_control.learning import loop
from iwsft_control.methods import td3_bc
from iwsft_control.report import curves, figures
from tests.test_run import ID, small

HOPPER = DataSource("hopper-medium-replay")


def config(tmp_path, **changes):
    small = {"tasks": ("hopper-medium-replay",), "methods": ("td3-bc",), "steps": 1000, "every": 500, "episodes": 2}
    return learning_curve.CurveConfig(out=tmp_path, workers=1, **small | changes)


@pytest.fixture
def narrow(monkeypatch):
    small = settings.make(td3_bc=td3_bc.TD3BCConfig(hidden=(8,), batch_size=16))
    monkeypatch.setattr(settings, "make", lambda: small)


def test_a_curve_has_its_points_and_is_made_once(tmp_path, narrow):
    chosen = config(tmp_path)
    line = learning_curve.curve(chosen, HOPPER, "td3-bc")
    assert line.startswith("hopper-medium-replay td3-bc: ")
    path = tmp_path / "hopper-medium-replay-td3-bc-seed100.json"
    record = json.loads(path.read_text())
    assert record["step"] == [500, 1000] and record["config"]["steps"] == 1000
    assert np.isfinite(record["normalised_score"]).all() and record["seconds"] == sorted(record["seconds"])
    assert learning_curve.curve(chosen, HOPPER, "td3-bc") == f"{path} is there"
    with pytest.raises(UserError, match="is a whole curve of other settings or data; move it"):
        learning_curve.curve(config(tmp_path, steps=500), HOPPER, "td3-bc")
    assert json.loads(path.read_text()) == record
    unfinished = {k: v[:1] if isinstance(v, list) else v for k, v in record.items()}
    path.write_text(json.dumps(unfinished))
    learning_curve.curve(chosen, HOPPER, "td3-bc")
    again = json.loads(path.read_text())
    assert again["normalised_score"] == record["normalised_score"]
    other = again | {"task": "walker2d-medium-replay", "method": "iql"}
    second = other | {"seed": 101, "normalised_score": [x + 2 for x in other["normalised_score"]]}
    figure = figures.curves([[record], [other, second]])
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), np.array(again["normalised_score"]) + 1, rtol=1e-6)
    assert [axis.get_title() for axis in figure.axes] == ["hopper-medium-replay", "walker2d-medium-replay"]
    figures.save(figure, tmp_path, "curves")
    assert (tmp_path / "curves.svg").is_file()


def test_a_curve_of_ones_own_data(tmp_path, narrow, monkeypatch):
    """In the place of the tasks, or beside those that are named."""
    small()
    asked = []
    monkeypatch.setattr(learning_curve, "ProcessPoolExecutor", lambda count, *_: ThreadPoolExecutor(count))
    with monkeypatch.context() as idle:
        idle.setattr(learning_curve, "curve", lambda _, source, name: asked.append(source) or name)
        idle.setattr(curves, "draw", lambda folder: None)
        learning_curve.main(config(tmp_path, datasets=(ID,)))
        learning_curve.main(config(tmp_path, tasks=None, datasets=(ID,)))
    assert asked == [HOPPER, DataSource(None, ID), DataSource(None, ID)]
    learning_curve.main(config(tmp_path, tasks=None, datasets=(ID,)))
    record = json.loads((tmp_path / "test-hopper-small-v0-td3-bc-seed100.json").read_text())
    assert record["task"] == record["dataset"]["id"] == ID and record["step"] == [500, 1000]


@pytest.mark.slow
def test_a_killed_curve_goes_on_where_it_was(tmp_path, narrow, monkeypatch):
    path = tmp_path / "killed" / "hopper-medium-replay-td3-bc-seed100.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(snapshots, "SNAPSHOT_SECONDS", 0)
    steps_done, scored, score = [], [], curves.score
    call = loop._call
    monkeypatch.setattr(loop, "_call", lambda *x: steps_done.append(x[2]) or call(*x))

    def dying(*arguments):
        scored.append(1)
        if len(scored) > 4:  # two scores a point
            raise KeyboardInterrupt
        return score(*arguments)

    def draw(folder):
        learning_curve.curve(config(tmp_path / folder, steps=2000), HOPPER, "td3-bc")
        return json.loads((tmp_path / folder / path.name).read_text())

    monkeypatch.setattr(curves, "score", dying)
    with pytest.raises(KeyboardInterrupt):
        draw("killed")
    assert json.loads(path.read_text())["step"] == [500, 1000] and steps_done == [500] * 3
    (kept,) = path.parent.glob("*.unfinished")
    scored.clear()
    monkeypatch.setattr(curves, "score", lambda *x: scored.append(1) or score(*x))
    resumed, whole = draw("killed"), draw("whole")
    assert len(steps_done) == 3 + 2 + 4 and len(scored) == 4 + 8 and not kept.exists()
    for name in ("step", "normalised_score", "averaged_score", "last_iterate_score"):
        assert resumed[name] == whole[name]


def test_a_curve_that_other_code_began_begins_anew(tmp_path, narrow, monkeypatch):
    """Its points are not taken over, so neither is its training: a curve without its beginning would count as whole."""
    monkeypatch.setattr(snapshots, "SNAPSHOT_SECONDS", 0)
    chosen, score = config(tmp_path), curves.score
    monkeypatch.setattr(curves, "score", lambda *x: score(*x) if not list(tmp_path.glob("*.json")) else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        learning_curve.curve(chosen, HOPPER, "td3-bc")
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["step"] == [500] and list(tmp_path.glob("*.unfinished"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"git_commit": "another"}))
    monkeypatch.setattr(curves, "score", score)
    learning_curve.curve(chosen, HOPPER, "td3-bc")
    assert json.loads(path.read_text())["step"] == [500, 1000]


def test_a_curve_scores_what_the_method_evaluates_and_the_other_beside_it(tmp_path, monkeypatch):
    records = []
    for decay in (0.0, 0.999):
        own = td3_bc.TD3BCConfig(hidden=(8,), batch_size=16, average_decay=decay)
        small = settings.make(td3_bc=own)
        monkeypatch.setattr(settings, "make", lambda small=small: small)
        folder = tmp_path / str(decay)
        learning_curve.curve(config(folder), HOPPER, "td3-bc")
        records.append(json.loads((folder / "hopper-medium-replay-td3-bc-seed100.json").read_text()))
        monkeypatch.undo()
    plain, averaged = records
    for name in ("last_iterate_score", "averaged_score"):  # the average changes nothing in training
        assert plain[name] == averaged[name]
    assert plain["normalised_score"] == plain["last_iterate_score"] != plain["averaged_score"]
    assert averaged["normalised_score"] == averaged["averaged_score"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": ("bc",)}, "must be among iql"),
        ({"every": 750}, "multiple of 500"),
        ({"methods": ("x",)}, "unknown"),
        ({"workers": 0}, "--workers must be positive"),
        ({"steps": 0}, "--steps must be positive"),
        ({"methods": ("sft",)}, "must be among iql"),
        ({"tasks": ()}, "--tasks must name one or more different tasks"),
        ({"tasks": ("hopper-medium-replay",) * 2}, "--tasks must name one or more different tasks"),
        ({"tasks": ("hoper-medium-replay",)}, "unknown task"),
        ({"tasks": None, "datasets": ("a/b", "a/b")}, "--datasets must name different data sets"),
        ({"tasks": None, "datasets": ("a/b",)}, "no data set 'a/b'"),
    ],
)
def test_user_errors(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        learning_curve.main(dataclasses.replace(config(tmp_path), **changes))


def test_quarters_are_means_of_the_points_in_them():
    record = {
        "task": "t",
        "method": "m",
        "seed": 100,
        "step": list(range(100, 900, 100)),
        "normalised_score": [1, 3, 5, 5, 0, 9, 7, 9],
        **{"config": {"expectile": 0.7}, "dataset": {"id": "d"}, "episodes": 25},
    }
    assert curves.quarters([record]).splitlines()[2:] == ["| t | m | 1 | 800 | 2 | 5 | 4 | 8 |"]
    for changes in ({"config": {}}, {"dataset": {}}, {"episodes": 2}):  # no mean over seeds of what is not the same
        with pytest.raises(UserError, match=f"curves of m on t differ in their {next(iter(changes))}; part them"):
            curves.quarters([record, record | {"seed": 101} | changes])
    with pytest.raises(UserError, match="two of the curves of m on t are of one seed"):
        curves.quarters([record, dict(record)])
    better = record | {"seed": 99, "normalised_score": [5, 7, 9, 9, 4, 13, 11, 13]}
    other = record | {"method": "a", "step": list(range(1, 9))}
    assert curves.quarters([record, other, better]).splitlines()[2:] == [
        "| t | a | 1 | 8 | 2 | 5 | 4 | 8 |",
        "| t | m | 2 | 800 | 4 | 7 | 6 | 10 |",
    ]
    assert curves.averages([record, other, better]).splitlines()[2:] == []
    short = record | {"step": [4, 8], "normalised_score": [3, 6]}  # two points, and four quarters
    assert curves.quarters([short]).splitlines()[2:] == ["| t | m | 1 | 8 | - | 3 | - | 6 |"]
    both = [
        r | {"averaged_score": [0] * 7 + [4], "last_iterate_score": r["normalised_score"]} for r in (record, better)
    ]
    assert curves.averages([*both, other]).splitlines()[2:] == ["| t | m | 10, 6 | 1, 1 |"]


CURVES = Path(__file__).parent.parent / "results" / "curves"


@pytest.mark.skipif(not CURVES.is_dir(), reason="no curves are committed: make some with experiments/learning_curve.py")
def test_the_documentation_shows_the_committed_curves():
    records = [json.loads(path.read_text()) for path in sorted(CURVES.glob("*.json"))]
    assert records
    page = (CURVES.parent.parent / "docs" / "reproducing.md").read_text()
    assert curves.quarters(records) in page and curves.averages(records) in page
