"""What commands say: lines of a log where there is no terminal, and options that have an effect."""

import io
import logging
import re
import sys

import pytest
from rich.console import Console

from iwsft_control import run, sweep
from iwsft_control.base import console, progress
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import settings
from tests.test_run import ID, command, small


@pytest.fixture
def bars(monkeypatch, caplog):
    """Bars off a terminal and their clock: (bars, set the time, lines)."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.LOG, "propagate", True)
    caplog.set_level(logging.INFO, "iwsft_control")
    made = progress.Bars(console=Console(file=sys.stderr, force_terminal=False))
    return made, now, lambda: [r.getMessage() for r in caplog.records]


def test_a_line_for_every_minute_and_for_the_end(bars):
    bar, now, lines = bars
    task = bar.add_task("bc", total=20_000)
    bar.update(task, advance=0, values={})
    for minute in range(1, 4):
        for half in (0.5, 1):
            now[0] = 60 * (minute - 1 + half)
            bar.update(task, advance=2500, values={"step": 1, "loss": [2.0, 4.0], "max_weight": [9.0]})
    assert lines() == [
        "bc: 5,000 of 20,000, loss 3, 3 min left",
        "bc: 10,000 of 20,000, loss 3, 2 min left",
        "bc: 15,000 of 20,000, loss 3, 60 s left",
    ]
    bar.update(task, advance=5000, values={"critic_loss": 0.25, "policy_loss": -1.5})
    bar.update(task, advance=0)
    assert lines()[3:] == ["bc: 20,000 in 3 min, critic loss 0.25, policy loss -1.5"]


def test_a_loop_has_one_line(bars):
    bar, _, lines = bars
    for done in (0, 5, 5):
        for name in ("seed 0  bc", "seed 1  bc"):
            bar.loop(name, 10, done, {"loss": done / 2})
    assert [task.description for task in bar.tasks] == ["seed 0  bc", "seed 1  bc"]
    assert lines() == ["seed 0  bc: 10 in 0 s, loss 2.5", "seed 1  bc: 10 in 0 s, loss 2.5"]


def test_what_a_snapshot_held_does_not_count_for_the_time_left(bars):
    bar, now, lines = bars
    bar.loop("iql", 1000, 800, {})
    now[0] = 100.0
    bar.loop("iql", 1000, 100, {})
    assert lines() == ["iql: goes on after 800 of 1,000", "iql: 900 of 1,000, 2 min left"]


def test_nothing_is_logged_on_a_terminal_or_when_quiet(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "iwsft_control")
    for options in ({"force_terminal": True}, {"force_terminal": False}):
        bar = progress.Bars(console=Console(file=sys.stderr, **options), quiet=not options["force_terminal"])
        bar.update(bar.add_task("bc", total=1), advance=1)
    assert not caplog.records


def options(monkeypatch, *arguments, base=run.RunOptions, names=("method", "quality")):
    monkeypatch.setattr(sys, "argv", ["run", *arguments])
    return settings.command_line(base, *names)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--td3-bc.alpha", "3"), "--td3-bc.alpha has no effect: td3-bc is not among the methods"),
        (("--td3-bc.alpha=3",), "--td3-bc.alpha has no effect"),
        (("--method", "bc", "--policy.fine-tune-steps", "3"), "none of sft, iw-sft, sft-q, iw-sft-q is among"),
        (("--method", "sft", "--policy.no-length-weighted", "--importance.low", "0"), "--importance.low has no effect"),
        (("--quality", "return", "--critic.steps", "3"), r"none of sft-q \(by q\), iw-sft-q \(by q\) is among"),
        (("--method", "sft", "--curation.strata", "95"), "--curation.strata has no effect"),
        (("--method", "sft-q", "--curation.filter-percentile", "80"), "--curation.filter-percentile has no effect"),
        (("--method", "iql", "--quality", "return"), "--quality has no effect"),
        (("--method", "iql", "--sarsa.steps", "3"), "--sarsa.steps has no effect: one-step is not among the methods"),
        (("--method", "iqll", "--iql.beta", "3"), "did you mean iql"),
    ],
)
def test_an_option_without_effect_is_refused(monkeypatch, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        options(monkeypatch, *arguments)


def groups(kind):
    return set(vars(kind)["__dataclass_fields__"]) & set(settings.defaults())


@pytest.mark.parametrize("twice", [["--method", "bc", "--method", "iql"], ["--seeds=1", "--seeds", "2"]])
def test_an_option_given_twice_is_refused(monkeypatch, capsys, twice):
    """Only the last would count."""
    monkeypatch.setattr(sys, "argv", ["run", "--env", "hopper-medium-replay", *twice])
    with pytest.raises(SystemExit) as error:
        run.cli()
    assert error.value.code == 2
    name = twice[0].partition("=")[0]
    said = capsys.readouterr().err
    assert f"{name} is given twice; give it once (with all its values, where it takes several)." in said


def test_help_shows_the_options_of_the_chosen_methods(monkeypatch):
    assert groups(options(monkeypatch)) == {"policy", "critic", "importance", "curation", "preset"}
    assert groups(options(monkeypatch, "--quality", "return")) == groups(options(monkeypatch)) - {"critic"}
    assert groups(options(monkeypatch, "--method", "iql", "one-step")) - {"preset"} == {
        *("iql", "one_step", "sarsa", "policy")
    }
    assert groups(options(monkeypatch, "--method", "bc", "--help-all")) == set(settings.defaults())
    plan = {"base": sweep.PlanOptions, "names": ("methods", "qualities")}
    assert groups(options(monkeypatch, "--methods", "rebrac-tuned", "--rebrac.noise", "0", **plan)) == {"rebrac"}


def test_the_log_goes_to_what_stderr_is_now(monkeypatch):
    handlers, level = progress.LOG.handlers, progress.LOG.level
    try:
        progress.to_stderr()
        monkeypatch.setattr(sys, "stderr", replaced := io.StringIO())
        progress.LOG.info("bc: 5 of 20")
        assert replaced.getvalue().endswith(" bc: 5 of 20\n")
    finally:
        progress.LOG.handlers, progress.LOG.level = handlers, level


@pytest.mark.parametrize(
    "line",
    ["hopper-medium-replay --seeds 3 --quick", "--seeds 3 --quick hopper-medium-replay", "--quick {} --seeds 3"]
    + ["--seeds 3 --quick --policy.length_weighted {}", "--quick --importance.no-relative {} --seeds 3"],
)
def test_a_task_may_stand_alone(monkeypatch, line):
    seen = []
    monkeypatch.setattr(sys, "argv", ["run", *line.format("hopper-medium-replay").split()])
    console.command(lambda: run.RunConfig, seen.append, "run", "", positional="env")
    assert (seen[0].env, seen[0].seeds, seen[0].quick) == ("hopper-medium-replay", (3,), True)


def test_a_task_by_word_and_by_name_is_given_twice(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", "hopper-medium-replay", "--env", "walker2d-medium-replay"])
    with pytest.raises(SystemExit):
        console.command(lambda: run.RunConfig, print, "run", "", positional="env")
    assert "--env is given twice" in capsys.readouterr().err


def test_words_after_a_flag_are_no_values_of_it():
    """Whichever group the flag is of."""
    found = console.flags(run.RunConfig)
    assert {"--quick", "--no-quick", "--policy.length-weighted", "--importance.no-relative"} <= found
    assert not {"--env", "--policy.bc-steps"} & found and "--dry-run" in console.flags(sweep.Plan)


def test_results_go_to_stdout_and_the_log_to_stderr(tmp_path, one_process, monkeypatch, capsys):
    small()
    one = ("--dataset", ID, "--method", "bc", "--quick", "--policy.hidden", "8", "--policy.bc-steps", "20")
    done = command(*one, cwd=tmp_path)
    assert done.returncode == 0
    assert "seed 0  bc" in done.stdout and "data: test/hopper/small-v0" in done.stdout
    # A line per stage; on a busy machine one per minute too, and libraries may warn of slow compiling.
    lines = [line for line in done.stderr.splitlines() if re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d ", line)]
    (first,) = [line for line in lines if " bc: 20 in " in line]
    (second,) = [line for line in lines if " bc evaluation: 5 in " in line]
    assert "loss" in first and lines.index(first) < lines.index(second) == len(lines) - 1
    monkeypatch.setattr(sys, "argv", ["run", *one, "--quiet", "--results", str(tmp_path / "quiet")])
    run.cli()
    quiet = capsys.readouterr()
    assert not re.search(r" (bc|bc evaluation): ", quiet.err) and quiet.out.count("\n") == 1
