"""The later rounds of tuning: every row is the first but for what its name tells; the table compares by seed."""

import dataclasses
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import advantage, anchored, parts, tuning
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark.settings import make
from iwsft_control.envs.tasks import MEDIUM_REPLAY
from iwsft_control.methods import registry
from iwsft_control.report import formats, runs

FIRST = "episodes 90/95/98"


def values(groups):
    """All values of the groups that a round may change."""
    named = ((k, v) for k, v in make(**groups).groups if k in ("policy", "importance", "curation"))
    return {(k, field): value for k, group in named for field, value in dataclasses.asdict(group).items()}


@pytest.mark.parametrize("name", ["knobs", "spread"])
def test_every_row_is_what_its_name_tells(name):
    """Words and numbers of a row's name are the values that differ from the first row's, which tells its own strata."""
    knobs = tuning.ROUNDS[name]
    folders = {tuning.folder(row) for row in knobs}
    assert len(folders) == len(knobs) and all("/" not in f and " " not in f for f in folders)
    first_row = next(iter(knobs))
    first = values(knobs[first_row])
    if name == "knobs":
        assert first["curation", "strata"] == (90, 95, 98) and first["curation", "strata_of"] == "units"
    else:
        assert first == values({})
    for row, groups in knobs.items():
        changed = {k[1]: v for k, v in values(groups).items() if first[k] != v}
        told = tuple(float(x) for x in row.replace(",", "").replace("/", " ").split() if x[0].isdigit())
        unit = "units" if row.startswith("episodes") else "transitions" if row.startswith("transitions") else None
        if row == first_row:
            assert not changed
        elif unit:
            assert changed == {"strata": told} | ({"strata_of": unit} if unit == "transitions" else {})
        else:
            words = " ".join(x for x in row.split() if not x[0].isdigit())
            assert tuple(changed.values()) == told and len(changed) == 1
            field = next(iter(changed)).replace("_", " ")
            assert field.removeprefix("fine tune ").removeprefix("effective sample ").endswith(words)


@pytest.mark.parametrize("file", [anchored, parts, advantage])
def test_the_methods_of_a_round_are_methods(file):
    """With names that the command line takes; every row of a round names some of its file."""
    rows = [row for knobs in tuning.ROUNDS.values() for row in knobs.values() if row.get("method_file")]
    mine = [row for row in rows if row["method_file"] == (Path(file.__file__),)]
    for method in file.METHODS:
        registry.check_config(method, file.__name__)
    assert {name for row in mine for name in row["methods"]} == {method.name for method in file.METHODS}


def test_the_anchored_methods_draw_as_when_their_runs_were_made():
    assert [m.random_stream for m in anchored.METHODS] == [
        zlib.crc32(name) for name in (b"iw-sft-q-kl-0.1", b"iw-sft-q-kl-1")
    ]


@pytest.mark.parametrize("name", tuning.ROUNDS)
def test_the_committed_table_is_that_of_the_committed_runs(name):
    folder = Path(__file__).parents[1] / "results" / "tuning" / name
    found = {row: runs.by_seed(folder / tuning.folder(row)) for row in tuning.ROUNDS[name]}
    made = formats.markdown_table(*tuning.table(tuning.TASKS.get(name, MEDIUM_REPLAY), found))
    assert (folder / "knobs.md").read_text() == made + "\n"


def test_the_table_compares_by_seed(tmp_path):
    def scored(**scores):
        start = {"bc_start": {"normalised_score": 30.0}}
        return {int(s[1:]): SimpleNamespace(normalised_score=x, diagnostics=start) for s, x in scores.items()}

    tasks = ("hopper-medium-replay", "walker2d-medium-replay")
    found = {
        FIRST: {tasks[0]: scored(s100=80.0, s101=90.0), tasks[1]: scored(s100=20.0, s101=50.0)},
        "size 0.8": {tasks[0]: scored(s100=90.0, s101=100.0), tasks[1]: scored(s101=60.0)},
        "size 0.65": {},
    }
    header, rows = tuning.table(tasks, found)
    assert [row[0] for row in rows] == [FIRST, "size 0.8"] and {len(row) for row in rows} == {len(header)}
    assert rows[0][1:4] == ["2", "85.0 (+55.0)", "35.0 (+5.0)"] and rows[0][4].startswith("60.0")  # 50 and 70
    assert rows[1][1:] == ["1", "95.0 (+65.0)", "60.0 (+30.0)", *rows[1][4:]]
    assert rows[1][4].startswith("80.0") and rows[1][6].startswith("+10.0")  # of seed 101 alone
    assert rows[0][5].startswith("14.1 [") and rows[1][5] == "-"  # of 50 and 70; one seed has none
    assert rows[0][6] == "-"
    with pytest.raises(UserError, match="no knob nothing; choose of episodes"):
        tuning.main(tuning.TuningConfig(knobs=("nothing",), out=tmp_path))
    for changes, sentence in (({}, "no results in"), ({"tasks": ()}, "--tasks must name"), ({"seeds": ()}, "seeds")):
        with pytest.raises(UserError, match=sentence):
            tuning.main(tuning.TuningConfig(table_only=True, out=tmp_path, **changes))
    assert not list(tmp_path.iterdir())
