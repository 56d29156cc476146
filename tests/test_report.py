"""Tables: what they average, what they refuse, and that they are made again byte for byte."""

import csv
import dataclasses
import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from experiments import pages
from iwsft_control import table
from iwsft_control.base import files
from iwsft_control.base.errors import UserError, apart
from iwsft_control.benchmark import results
from iwsft_control.envs import video
from iwsft_control.report import figures, formats, looks, statistics, tables
from iwsft_control.report import runs as grouped
from iwsft_control.report.runs import Row

IDS = {
    "hopper-medium-replay": "iwsft/hopper/medium-replay-v1",
    "walker2d-medium-replay": "iwsft/walker2d/medium-replay-v1",
}
RESULTS = Path(__file__).parents[1] / "results"
LAYERS = {
    "Dense_0": {"kernel": np.ones((11, 4), np.float32), "bias": np.zeros(4, np.float32)},
    "Dense_1": {"kernel": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)},
}


def configuration(method, quality):
    if method == "iql":
        return {"steps": 300_000, "average_decay": 0.999}
    config = {"policy": {"bc_steps": 20_000}, "importance": {"low": 0.2, "high": 1.8}}
    if method not in ("bc", "filtered-bc"):
        config["policy"]["fine_tune_steps"] = 5_000
    return config | ({"critic": {"steps": 100_000}} if quality == "q" else {})


def make_run(task="hopper-medium-replay", method="bc", quality=None, seed=0, mean=50.0, **changes):
    rng = np.random.default_rng([*f"{task} {method} {quality} {seed} {mean}".encode()])  # whatever ran before
    returns = list(rng.normal(mean, 5, 20))
    score, error = results.score(np.array(returns), 0.0, 100.0)
    log = {"step": [100, 200], "loss": [2.0, 1.0]}
    if method.startswith("iw"):
        log |= {"effective_sample_size": [1.0, 0.9], "weight_quantiles": [[1.0, 1.0, 1.0], [0.5, 1.0, 2.0]]}
        log |= {"bound": [0.0, 0.2], "gap": [0.0, 0.1]}
    diagnostics = {"training": log}
    if quality == "q":
        diagnostics["critic"] = {"step": [500, 1000], "critic_loss": [1.0, 0.5], "value_loss": [0.2, 0.1]}
    run = results.RunResult(
        schema=results.SCHEMA,
        task=task,
        method=method,
        quality=quality,
        seed=seed,
        quick=False,
        dataset={"id": IDS[task], "sha256": "ab" * 32, "origin": "reconstruction", "transitions": 10, "episodes": 2},
        physics={"environment": "d4rl/X-v2", "mujoco": "4.0.0", "corrections": ["a"]},
        evaluation={"first_reset_seed": 1, "ref_min_score": 0.0, "ref_max_score": 100.0, "policy": "mean"},
        episode_returns=returns,
        normalised_score=score,
        standard_error=error,
        config=configuration(method, quality),
        diagnostics=diagnostics,
        seconds={"bc": float(rng.random())},
        versions={"jax": "0"},
        device="cpu",
        git_commit="c0ffee",
    )
    return dataclasses.replace(run, **changes)


@pytest.fixture
def runs(tmp_path):
    """Two tasks, three rows, four seeds; in files."""
    made = {}
    for task in IDS:
        for method, quality, mean in (("bc", None, 40), ("sft-q", "return", 60), ("iw-sft-q", "q", 70)):
            for seed in range(4):
                run = make_run(task, method, quality, seed, mean + 3 * seed)
                path = tmp_path / "runs" / task / f"{method}-{seed}.json"
                results.write(path, run)
                made[path] = run
    return made


BC, SFT, IW = Row("bc", None), Row("sft-q", "return"), Row("iw-sft-q", "q")


def test_the_runs_of_a_variant_by_task_and_seed(tmp_path):
    """Trials aside, or they alone; records of failed runs aside; a seed that stands there twice is refused."""
    assert grouped.by_seed(tmp_path / "nowhere") == {}
    results.write(tmp_path / "a.json", make_run(seed=3, mean=40.0))
    results.write(tmp_path / "deeper" / "b.json", make_run(seed=1, mean=60.0))
    results.write(tmp_path / "trial.json", make_run(seed=3, quick=True))
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "c.json").write_text("{}")
    found = grouped.by_seed(tmp_path)
    assert {task: set(runs) for task, runs in found.items()} == {"hopper-medium-replay": {1, 3}}
    assert {task: set(runs) for task, runs in grouped.by_seed(tmp_path, quick=True).items()} == {
        "hopper-medium-replay": {3}
    }
    results.write(tmp_path / "twice.json", make_run(seed=3, mean=50.0))
    with pytest.raises(UserError, match="holds two runs of seed 3; remove one"):
        grouped.by_seed(tmp_path)


def test_runs_of_variants_are_of_one_task(tmp_path):
    """What is averaged or paired by seed has the same data, physics, evaluation and, in one folder, settings."""
    first = dataclasses.replace(make_run(seed=1), config={"policy": {"steps": 5}})
    results.write(tmp_path / "1.json", first)
    for i, (changes, sentence) in enumerate(
        [
            ({"dataset": first.dataset | {"sha256": "f" * 64}}, "have different data sets; make a table of each"),
            (
                {"physics": first.physics | {"mujoco": "3.0.0"}},
                r"have different physics, first in mujoco \('\S+' and '3.0.0'\)",
            ),
            (
                {"evaluation": first.evaluation | {"first_reset_seed": 5}},
                "have different evaluation protocols, first in first_reset_seed",
            ),
            (
                {"config": {"policy": {"steps": 6}}},
                r"runs of other settings .*, first in policy.steps \(5 and 6\); part",
            ),
        ]
    ):
        other = dataclasses.replace(first, seed=2, **changes)
        results.write(tmp_path / "2.json", other)
        with pytest.raises(UserError, match=sentence):
            grouped.by_seed(tmp_path)
        if i < 3:  # settings are what variants differ in
            with pytest.raises(UserError, match=f"bc with seed 1 and bc with seed 2 .*{sentence}"):
                grouped.require_alike([{first.task: {1: first}}, {first.task: {2: other}}])
    results.write(tmp_path / "2.json", dataclasses.replace(first, seed=2, config={"policy": {"steps": 5, "later": 1}}))
    assert set(grouped.by_seed(tmp_path)[first.task]) == {1, 2}  # an older record lacks what came later


def test_a_row_says_how_many_updates_it_took():
    for method, quality, wanted in (
        ("bc", None, "20,000"),
        ("sft-q", "return", "25,000"),
        ("iw-sft-q", "q", "25,000 + 100,000"),
        ("iql", None, "300,000"),
    ):
        assert tables.updates(make_run(method=method, quality=quality)) == wanted


def test_baselines_stand_in_the_table_beside_their_published_scores(tmp_path):
    for method, quality in (("bc", None), ("sft-q", "return"), ("iql", None)):
        for seed in range(3 if method == "iql" else 4):
            results.write(tmp_path / f"{method}{seed}.json", make_run(method=method, quality=quality, seed=seed))
    found = grouped.collect(grouped.find([tmp_path]), BC, SFT)
    assert list(found.scores) == [BC, SFT, Row("iql", None)]
    cells = next(row for row in tables.sections(found)[0].rows if row[0] == "iql")
    assert cells[1:3] == ["3", "300,000"] and cells[-1] == "94.7"
    assert grouped.parse_row("td3-bc") == Row("td3-bc", None)
    with pytest.raises(UserError, match="does not take"):
        grouped.parse_row("iql by q")


def test_rows_columns_and_values(runs, tmp_path):
    found = grouped.collect(grouped.find([tmp_path / "runs"]), BC, IW)
    assert list(found.scores) == [BC, SFT, IW]
    assert found.datasets == list(IDS.values())
    wanted = np.array([r.normalised_score for r in runs.values() if r.method == "bc" and r.task.startswith("hopper")])
    np.testing.assert_allclose(grouped.strata(found, BC)[0], wanted)
    lines = list(csv.DictReader(formats.to_csv(found).splitlines()))
    assert len(lines) == 6
    assert tuple(lines[0])[:7] == ("dataset", "method", "quality", "n_seeds", "mean", "low", "high")
    estimate = statistics.mean_interval(wanted)
    np.testing.assert_allclose([float(lines[0][k]) for k in ("mean", "low", "high")], estimate, atol=1e-4)
    assert lines[0]["difference"] == "" and lines[0]["quality"] == ""
    iw = lines[2]
    assert (iw["method"], iw["quality"], iw["n_seeds"], iw["n_pairs"]) == ("iw-sft-q", "q", "4", "4")
    pairs = grouped.strata(found, IW)[0] - wanted
    np.testing.assert_allclose(float(iw["difference"]), pairs.mean(), atol=1e-4)
    np.testing.assert_allclose(float(iw["difference_high"]), statistics.mean_interval(pairs, 2).high, atol=1e-4)


def test_differences_pair_by_seed():
    """Seeds that only one of the two has count for neither."""
    made = {
        Path(f"{m}{s}"): make_run(method=m, seed=s)
        for m, seeds in (("bc", (0, 1, 2)), ("sft", (1, 2, 3)))
        for s in seeds
    }
    found = grouped.collect(made, BC, Row("sft", None))
    scores = {(r.method, r.seed): r.normalised_score for r in made.values()}
    (pairs,) = grouped.differences(found, Row("sft", None), BC).values()
    np.testing.assert_allclose(pairs, [scores["sft", s] - scores["bc", s] for s in (1, 2)])


def test_verdicts():
    assert tables.verdict(statistics.Estimate(1, 0.1, 2)) == "better"
    assert tables.verdict(statistics.Estimate(-1, -2, -0.1)) == "worse"
    assert tables.verdict(statistics.Estimate(1, -0.1, 2)) == "no difference shown"
    assert "too few seeds" in tables.verdict(statistics.Estimate(1, np.nan, np.nan))


def test_published_numbers_stand_beside_and_apart(runs, tmp_path):
    found = grouped.collect(grouped.find([tmp_path / "runs"]), BC, IW)
    text = formats.to_markdown(found)
    assert "| iw-SFT(Q) | 85.0 | 75.8 |" in text
    mine = np.mean([r.normalised_score for r in runs.values() if r.method == "bc" and r.task.startswith("hopper")])
    assert f"| BC | 18.1 ({mine:.1f}, {mine - 18.1:+.1f}) | 26.0 (" in text  # mean and distance
    assert "reconstructions: other data" in text
    assert "| published, on other data |" in text
    (bc,) = [line for line in text.splitlines() if line.startswith("| bc | 4 |")]
    assert bc.endswith("| 18.1 / 26.0 |")
    (iw,) = [line for line in text.splitlines() if line.startswith("| iw-sft-q (q) | 4 |")]
    assert iw.endswith("| - |")  # the paper has no learned Q
    assert text.index("Normalised score") < text.index("Published, on other data")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"dataset": {"id": IDS["hopper-medium-replay"], "sha256": "cd" * 32, "origin": "reconstruction"}},
            "data sets",
        ),
        ({"physics": {"environment": "Hopper-v5", "mujoco": "4.0.0", "corrections": []}}, "physics"),
        ({"physics": {"environment": "d4rl/X-v2", "mujoco": "3.2.7", "corrections": ["a"]}}, "physics"),
        (
            {"evaluation": {"first_reset_seed": 2, "ref_min_score": 0.0, "ref_max_score": 100.0, "policy": "mean"}},
            "evaluation",
        ),
        ({"config": {"importance": {"low": 0.0, "high": 9.0}}}, "configurations"),
        ({"seed": 0}, "the same run"),
    ],
)
def test_clashes_name_the_files(runs, changes, sentence):
    clash = Path("other/clash.json")
    with pytest.raises(UserError, match=sentence) as error:
        grouped.collect(runs | {clash: dataclasses.replace(make_run(seed=9), **changes)}, BC, IW)
    assert str(clash) in str(error.value)
    assert "bc-0.json" in str(error.value)


def test_another_number_of_episodes_is_another_protocol(runs):
    run = make_run(seed=9)
    fewer = dataclasses.replace(run, episode_returns=run.episode_returns[:10])
    with pytest.raises(UserError, match="evaluation protocols"):
        grouped.collect(runs | {Path("x.json"): fewer}, BC, IW)


def test_refusals(runs, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        grouped.find([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    results.write(tmp_path / "some" / "run.json", make_run())
    with pytest.raises(UserError, match=r"no result files in .*empty;"):  # also where another folder has some
        grouped.find([tmp_path / "some", tmp_path / "empty"])
    results.write(tmp_path / "runs" / "trial.json", make_run(seed=7, quick=True))
    with pytest.raises(UserError, match=r"trial.json is a trial \(--quick\)"):
        grouped.find([tmp_path / "runs"])
    with pytest.raises(UserError, match="is not a trial"):
        grouped.find([tmp_path / "runs"], quick=True)
    with pytest.raises(UserError, match="no run of --baseline filtered-bc; choose one of"):
        grouped.collect(runs, Row("filtered-bc", None), IW)
    with pytest.raises(UserError, match="did you mean"):
        grouped.parse_row("iw-sft-Q")
    with pytest.raises(UserError, match="does not take"):
        grouped.parse_row("bc by return")
    assert grouped.parse_row("sft-q") == Row("sft-q", "q")
    assert grouped.parse_row("sft-q by return") == SFT


def test_records_of_failures_are_no_results(runs, tmp_path):
    (tmp_path / "runs" / "failures").mkdir()
    (tmp_path / "runs" / "failures" / "x.json").write_text('{"error": "no"}')
    assert grouped.find([tmp_path / "runs"]) == runs


def written(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_command_writes_the_same_bytes_twice(runs, tmp_path):
    for name in ("a", "b"):
        table.main(table.TableConfig((tmp_path / "runs",), tmp_path / name))
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    names = ("scores", "differences", "profile", "budget", "training")
    figure_files = {f"figures/{n}.{e}" for n in names for e in ("svg", "png")}
    texts = {"table.md", "short.md", "table.tex", "table.csv", "scores.json", "report.html"}
    assert set(first) == texts | figure_files
    assert first == second
    page = first["report.html"].decode()
    assert page.count("<svg") == page.count('aria-label="Figure. ') == 5
    for name in names:
        assert f'<h2 id="{name}">' in page and f'href="#{name}"' in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)  # self-contained
    for name in figure_files:
        if name.endswith("svg"):
            ET.fromstring(first[name])
    matrices = json.loads(first["scores.json"])
    assert np.array(matrices["scores"]["iw-sft-q (q)"]).shape == (4, 2)
    tex = first["table.tex"].decode()
    assert tex.count("\\begin{tabular}") == tex.count("\\end{tabular}") == 5
    assert all(line.count("&") == line.count(" & ") for line in tex.splitlines() if not line.startswith("%"))


def test_published_scores_stand_beside_tasks_that_have_some(runs):
    """A column of dashes would say nothing."""

    def header(task):
        run = dataclasses.replace(make_run(), task=task)
        return tables.sections(grouped.collect({Path("a.json"): run}, BC, BC))[0].header

    assert header("hopper-medium-replay")[-1] == "published, on other data"
    assert not any("published" in title for title in header("hopper-medium"))


def test_what_the_seeds_can_show_is_of_their_paired_differences(runs):
    found = grouped.collect(runs, BC, IW)
    (section,) = [each for each in tables.sections(found) if each.title == "What these seeds can show"]
    for row in (BC, Row("sft-q", "return")):
        cells = next(cells for cells in section.rows if cells[0] == row.label)
        apart = list(grouped.differences(found, found.focus, row).values())
        count = len(found.scores) - 1  # comparisons
        smallest = [statistics.detectable(x, 4, count) for x in ([apart[0]], [apart[1]], apart)]
        assert cells[1:] == [*(f"{x:.1f}" for x in smallest), str(statistics.seeds_needed(apart, 5.0, count))]


def test_only_the_published_runs_make_the_published_tables(tmp_path, undrawn):
    """A table of one's own runs stands beside them."""
    assert table.beside(table.PUBLISHED) == Path("results")
    assert table.beside((tmp_path / "quick",)) == tmp_path / "quick-table"
    assert table.beside((Path("results/sweep"), tmp_path)) == Path("results/sweep-table").resolve()
    assert table.beside((Path("results/sweep/."),)) == Path("results")
    (tmp_path / "one.json").touch()
    assert table.beside((tmp_path / "one.json",)) == tmp_path / "one-table"
    results.write(tmp_path / "mine" / "a.json", make_run())
    table.main(table.TableConfig((tmp_path / "mine",), baseline="bc", focus="bc"))
    assert (tmp_path / "mine-table" / "table.md").is_file()


def test_runs_of_a_method_whose_file_is_not_named(runs, tmp_path):
    results.write(tmp_path / "runs" / "mine.json", make_run(method="exp-bc"))
    config = table.TableConfig((tmp_path / "runs",), tmp_path / "out", focus="exp-bc")
    with pytest.raises(UserError, match=r"there are runs of exp-bc, a method of your own; .*--method-file"):
        table.main(config)
    with pytest.raises(UserError, match="unknown method 'exp-bd'"):
        table.main(dataclasses.replace(config, focus="exp-bd"))


def test_one_seed_and_a_missing_data_set(tmp_path, undrawn):
    """No interval, no average over data sets where one is missing; nothing breaks."""
    made = [make_run(method="bc"), make_run("walker2d-medium-replay"), make_run(method="iw-sft-q", quality="q")]
    for i, run in enumerate(made):
        results.write(tmp_path / "runs" / f"{i}.json", run)
    table.main(table.TableConfig((tmp_path / "runs",), tmp_path / "out"))
    text = (tmp_path / "out" / "table.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| iw-sft-q (q) | 1 |")]
    told = "Without runs on every data set, and so without a mean over them: iw-sft-q (q) (only hopper medium-replay)."
    assert told in (tmp_path / "out" / "short.md").read_text()
    assert html.escape(told) in (tmp_path / "out" / "report.html").read_text()
    assert row.endswith("| - | - | - | - |")
    assert "[" not in row


def test_a_cell_shows_no_interval_of_no_width():
    of = lambda *scores, **form: tables.cell(statistics.mean_interval(np.array(scores)), **form)  # noqa: E731
    assert of(0.0, 0.0, 0.0) == "0.0 [all equal]" and of(2.0) == "2.0" and tables.cell(None) == "-"
    assert of(1.0, 3.0) == "2.0 [-10.7, 14.7]" and of(1.0, 3.0, signed=True, digits=0) == "+2 [-11, +15]"


def test_no_mean_over_data_sets_of_other_physics_or_protocol(tmp_path):
    """Not only within a data set: what stands in one mean has to belong together."""
    for change, what in (
        ({"physics": {"environment": "d4rl/Y-v2", "mujoco": "3.2.7", "corrections": []}}, "versions of MuJoCo"),
        ({"evaluation": {"ref_min_score": 0.0, "ref_max_score": 100.0, "policy": "best"}}, "evaluation protocols"),
    ):
        other = make_run("walker2d-medium-replay", **change)
        with pytest.raises(UserError, match=f"a.json and b.json have different {what}"):
            grouped.collect({Path("a.json"): make_run(), Path("b.json"): other}, BC, BC)


def test_settings_that_differ_are_named():
    """Also those that one of the two lacks, and deep within."""
    one, other = ({"policy": {"steps": 5, **more}, "quick": False} for more in ({}, {"hidden": [256, 256]}))
    runs = {Path("a.json"): make_run(config=one), Path("b.json"): make_run(seed=9, config=other)}
    said = r"have different configurations, first in policy.hidden \(None and \[256, 256\]\); make"
    with pytest.raises(UserError, match=said):
        grouped.collect(runs, BC, BC)
    assert apart(one, other) and not apart(one, other, shared=True)
    assert apart(one, one | {"quick": True}, shared=True) == "quick (False and True)"


def test_environments_without_mujoco_stand_beside_others():
    """No version of theirs differs from another's, and the table says what they are."""
    other = {"environment": "Pendulum-v1", "mujoco": "not used", "corrections": [], "specification": {}}
    hopper, pendulum = make_run(), make_run("walker2d-medium-replay", physics=other)
    both = grouped.collect({Path("a.json"): hopper, Path("b.json"): pendulum}, BC, BC)
    assert tables.caveat(both).endswith("; MuJoCo 4.0.0.")
    assert any("evaluated in Pendulum-v1, without MuJoCo." in note for note in grouped.notes(both))
    alone = grouped.collect({Path("b.json"): pendulum}, BC, BC)
    assert tables.caveat(alone).endswith("; without MuJoCo.")


def test_columns_of_two_versions_of_a_data_set_have_two_titles():
    ids = (
        "iwsft/hopper/medium-replay-v0",
        "iwsft/hopper/medium-replay-v1",
        "D4RL/hopper/medium-v2",
        "my/hopper/medium-v0",
    )
    runs = {Path(f"{i}.json"): make_run(dataset=make_run().dataset | {"id": name}) for i, name in enumerate(ids)}
    assert grouped.titles(grouped.collect(runs, BC, BC)) == [
        "D4RL hopper medium", *ids[:2], "my hopper medium"
    ]  # fmt: skip


def test_failed_runs_are_named(runs, tmp_path, undrawn):
    record = {"task": "hopper-medium-replay", "method": "sft-q", "quality": "return", "seeds": [9], "error": "died"}
    files.write_json(tmp_path / "runs" / "failures" / "x.json", record)
    made = next(run for run in runs.values() if run.method == "iw-sft-q")
    group = {
        "task": made.task,
        "method": made.method,
        "quality": made.quality,
        "seeds": [made.seed, 77],
        "error": "lost",
    }
    files.write_json(tmp_path / "runs" / "failures" / "y.json", group)  # seeds are tried alone then
    files.write_json(tmp_path / "runs" / "failures" / "z.json", group | {"seeds": [made.seed]})
    for _ in range(2):  # its own output among the results does not disturb the second time
        table.main(table.TableConfig((tmp_path / "runs",), tmp_path / "runs"))
        text = (tmp_path / "runs" / "table.md").read_text()
        assert "Failed, and not in any mean: hopper-medium-replay sft-q (return) seed 9: died." in text
        assert "seed 77: lost." in text and text.count("Failed, and not in any mean") == 2


def test_one_task_on_two_data_sets_has_two_titles(tmp_path):
    """D4RL's own and the reconstruction; the published scores belong to tasks, not to any Minari data set."""
    own = make_run().dataset | {"id": "D4RL/hopper/medium-replay-v2", "origin": "D4RL"}
    other = make_run().dataset | {"id": "mujoco/hopper/expert-v0", "origin": "Minari"}
    made = {Path(f"{i}.json"): make_run(dataset=d) for i, d in enumerate((make_run().dataset, own, other))}
    found = grouped.collect(made, BC, BC)
    assert set(grouped.titles(found)) == {"iwsft hopper medium-replay", "D4RL hopper medium-replay", "hopper expert"}
    (cells,) = tables.sections(found)[0].rows
    assert sorted(cells[-1].split(" / ")) == ["-", "18.1", "18.1"]
    assert "minus" not in "".join(section.title for section in tables.sections(found))  # one method: nothing to compare


def test_latex_is_escaped():
    assert formats._tex("a_b & 5% {x} ~ ^") == r"a\_b \& 5\% \{x\} \textasciitilde  \textasciicircum "


def test_the_drawn_run_is_the_focus(runs, tmp_path):
    found = grouped.collect(runs, BC, IW)
    assert figures.pick(found, IW).seed == 0
    assert figures.pick(found, IW).task == "hopper-medium-replay"
    panels = figures.training(figures.pick(found, IW)).axes
    assert len([a for a in panels if a.get_title()]) == 5
    assert len(figures.training(figures.pick(found, BC)).axes) == 1
    log = {"step": [500, 501], "critic_loss": [2.0, 1.0], "policy_loss": [0.5, None]}
    baseline = make_run(method="td3-bc", diagnostics={"training": log})
    assert [a.get_title() for a in figures.training(baseline).axes] == ["critic loss", "policy loss"]


@pytest.mark.skipif(not (RESULTS / "sweep").is_dir(), reason="results/ is not part of an installed package")
def test_the_committed_table_is_that_of_the_committed_results(tmp_path):
    """results/ is made by `python experiments/table.py` from results/sweep, byte for byte."""
    found = grouped.collect(grouped.find([RESULTS / "sweep"]), BC, IW)
    made = {
        "table.md": formats.to_markdown(found),
        "short.md": formats.to_short_markdown(found),
        "table.tex": formats.to_latex(found),
        "table.csv": formats.to_csv(found),
        "scores.json": formats.to_json(formats.to_rliable(found)),
    }
    for name, text in made.items():
        assert (RESULTS / name).read_text() == text, name


@pytest.mark.skipif(not (RESULTS / "sweep").is_dir(), reason="results/ is not part of an installed package")
@pytest.mark.parametrize(("page", "source"), pages.TABLES)
def test_a_page_shows_the_committed_results(page, source):
    """Between its marks; `python experiments/pages.py` puts it there."""
    text = (RESULTS.parent / page).read_text(encoding="utf-8")
    assert pages.filled(page, source, text, RESULTS) == text
    assert pages.TABLES[page, source](RESULTS) in text and f"<!-- from {source}: " in text


def test_a_page_without_its_marks_is_told():
    with pytest.raises(UserError, match=r"README.md must have one <!-- from results/short.md"):
        pages.filled("README.md", "results/short.md", "no table here", RESULTS)


def test_a_distance_from_what_is_published_is_that_of_the_mean_from_the_range():
    found = {"bc": {0: 10.0, 1: 14.0}, "filtered-bc": {0: 70.0, 1: 76.0}, "td3-bc": {0: 70.0}, "cql": {3: 95.0}}
    methods = ("bc", "filtered-bc", "td3-bc", "iql", "cql", "awac", "one-step")
    named, here, far = pages.rows_of("hopper-medium-replay", methods, found)
    papers_and_corl = ["18.1 to 29.8", "70.4 to 75.9", "60.9 to 64.4", "94.7 to 97.4", "95.0 to 95.1", "37.2 to 98.9"]
    assert named[2:] == [*papers_and_corl, "97.5"]
    assert here[2:] == ["12.0 (2)", "73.0 (2)", "70.0 (1)", "-", "95.0 (1)", "-", "-"]
    assert far[2:] == ["-6.1", "within", "+5.6", "-", "within", "-", "-"]


def test_the_message_comes_first_and_says_what_is_not_shown(runs, tmp_path):
    found = grouped.collect(runs, BC, IW)
    headline, *message = tables.messages(found)
    assert headline.startswith("iw-sft-q (q) scores highest over 2 data sets: ")
    assert message[0].startswith("By the interval of paired differences, iw-sft-q (q) is shown to beat bc (+")
    assert "not D4RL's own" in message[-1]
    level = [make_run(seed=i, mean=50.0 + i % 3) for i in range(4)]
    level += [make_run(method="sft-q", quality="return", seed=i, mean=50.0 + (i + 1) % 3) for i in range(4)]
    tied = grouped.collect({Path(str(i)): run for i, run in enumerate(level)}, BC, SFT)
    assert any("sft-q (return) is not shown to differ from bc" in line for line in tables.messages(tied))
    few = grouped.collect({Path(str(i)): run for i, run in enumerate(level[:5])}, BC, SFT)
    assert any("Too few seeds on some data set to compare sft-q (return) with bc (" in x for x in tables.messages(few))
    page = formats.to_html(found, [])
    assert (
        page.index("<h1>") < page.index("is shown to beat") < page.index('id="tables"') < page.index('id="provenance"')
    )


def test_a_filmstrip_joins_the_page(runs, tmp_path, monkeypatch):
    """From the first frame to the last; what draws them is tested with videos."""
    frames = [np.full((24, 24, 3), 5 * i, np.uint8) for i in range(51)]
    figure = figures.filmstrip(frames, 0.032)
    shown = [axis.images[0].get_array()[0, 0, 0] for axis in figure.axes]
    assert len(shown) == 8 and (shown[0], shown[-1]) == (0, 250) and shown == sorted(shown)
    assert figure.axes[-1].get_title() == "1.6 s"
    monkeypatch.setattr(video, "play", lambda policy, environment, size: (frames, 0.032, 1234.5))
    path = tmp_path / "policy.safetensors"
    files.save_pytree(path, {"params": {"net": LAYERS}}, {"task": "hopper-medium-replay", "method": "bc"})
    save = figures.save
    draw = lambda figure, folder, name: save(figure, folder, name) if name == "filmstrip" else "<svg/>"  # noqa: E731
    monkeypatch.setattr(figures, "save", draw)
    table.main(table.TableConfig((tmp_path / "runs",), tmp_path, filmstrip=path))
    figures.plt.close("all")
    page = (tmp_path / "report.html").read_text()
    assert "What does it look like (bc in hopper-medium-replay)?" in page and "return 1234" in page
    assert page.count("<image") == 8 and (tmp_path / "figures" / "filmstrip.png").is_file()
    files.save_pytree(path, {"params": {"net": LAYERS}}, {"method": "bc"})
    with pytest.raises(UserError, match="does not say its task"):
        table.main(table.TableConfig((tmp_path / "runs",), tmp_path, filmstrip=path))


def test_no_two_methods_look_alike():
    """Every method has a look of its own, also in grey or without colour; a stranger's gets a spare one."""
    rows = [row.label for row in grouped._all_rows()]
    assert set(rows) <= set(looks.LOOKS)
    found = list(looks.LOOKS.values())
    assert len({each.colour for each in found}) == len(found)
    assert (
        len({(each.group, each.marker) for each in found}) == len({(e.group, str(e.line)) for e in found}) == len(found)
    )
    assert looks.look("mine", ["bc", "mine", "theirs"]) != looks.look("theirs", ["bc", "mine", "theirs"])


def test_text_of_results_is_shown_in_the_page_and_not_obeyed(tmp_path):
    run = make_run(dataset=make_run().dataset | {"id": "<script>alert(1)</script>"})
    page = formats.to_html(grouped.collect({Path("a"): run}, BC, BC), [])
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_the_page_in_a_browser(runs, tmp_path):
    """No horizontal overflow and no missing figure, as a browser lays the page out at three widths."""
    table.main(table.TableConfig((tmp_path / "runs",), tmp_path))
    widths = (500, 900, 1600)
    page = html.escape((tmp_path / "report.html").read_text())
    frames = "".join(
        f'<iframe style="width: {w}px; height: 900px; border: 0" srcdoc="{page}"></iframe>' for w in widths
    )
    measure = """<script>addEventListener("load", () => { document.title = JSON.stringify(
        [...document.querySelectorAll("iframe")].map(frame => ({
            overflow: frame.contentDocument.documentElement.scrollWidth - frame.contentWindow.innerWidth,
            width: frame.contentWindow.innerWidth,
            figures: [...frame.contentDocument.querySelectorAll("figure svg")].map(x => x.getBoundingClientRect().width)
        }))
    ) })</script>"""
    outer = tmp_path / "measured.html"
    outer.write_text(f"<!doctype html><title></title><body>{frames}{measure}</body>")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1700,3000", "--dump-dom"]
    shown = subprocess.run([*command, outer.as_uri()], capture_output=True, text=True, timeout=120).stdout
    measured = json.loads(html.unescape(re.search("<title>(.*?)</title>", shown)[1]))
    assert [found["width"] for found in measured] == list(widths)
    for found in measured:
        assert found["overflow"] <= 0
        assert len(found["figures"]) == 5 and min(found["figures"]) > 300
