"""Situations from public reports and attacks (generators, not part of the repository): each has its right outcome."""

import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import checks
from iwsft_control.datasets import load, minari_files
from iwsft_control.envs import evaluation
from tests.conftest import SHARED

CASES = SHARED / "cases"
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(),
    reason=f"no situations: {CASES} is not there (they are not part of the repository; IWSFT_SHARED)",
)
ROOT = Path(__file__).parents[1]
# The generators were written for module names of version 0.1.0.
PROLOGUE = """
import sys
from iwsft_control import d4rl
from iwsft_control.base import errors, files
from iwsft_control.datasets import d4rl_files, load, minari_files, types
import iwsft_control
d4rl.read_legacy, d4rl.KEYS, files.UserError = d4rl_files.read_legacy, d4rl_files.KEYS, errors.UserError
iwsft_control.files = sys.modules["iwsft_control.files"] = files
iwsft_control.dataset = sys.modules["iwsft_control.dataset"] = load
load.Episodes, load.write_minari = types.Episodes, minari_files.write_minari
load.environment_spec = minari_files.environment_spec
script = sys.argv.pop(1)
sys.argv[0] = script
exec(compile(open(script, encoding="utf-8").read(), script, "exec"))
"""


@pytest.fixture(autouse=True)
def environments(monkeypatch):
    """The situations' own environments can be imported, which only trust does."""
    monkeypatch.syspath_prepend(str(CASES / "lib"))
    yield
    sys.modules.pop("bugenvs", None)


def make(case, *arguments):
    """Run the generator of a data set here."""
    sys.modules.pop("mk", None)  # which reads where the data lie when it is imported
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
        patch.setattr(sys, "argv", [case, *arguments])
        runpy.run_path(str(CASES / case / "make.py"))


def apart(case, *arguments, cwd):
    """Run a generator that does more than write data, in a process of its own; returns what it printed."""
    path = os.pathsep.join([str(CASES / "lib"), str(ROOT)])
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROLOGUE, str(CASES / case), *arguments],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=cwd, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def use(name, trust=True, **options):
    """A data set, as the commands load and check it."""
    data = load.load(None, name, trust_environment=trust, **options)
    checks.check_environment(data)
    return data


def returns(data, action):
    """Of two episodes of one action in [-1, 1]."""
    policy = np.full(data.actions.shape[1], action)
    return evaluation.evaluate(lambda o: np.tile(policy, (len(o), 1)), data.environment, 2)


def test_specifications_of_earlier_versions():
    make("01-old-env-spec-fields")
    assert use("t/oldspec/human-v1", trust=False).environment == "MountainCarContinuous-v0"


def test_the_time_limit_of_the_data():
    make("02-own-time-limit")
    np.testing.assert_allclose(returns(use("t/limit/short-v0", trust=False), 0.5), -1.25, rtol=1e-6)


def test_metadata_that_were_corrected():
    for steps in (100, 200):
        make("03-corrected-metadata", str(steps))
        np.testing.assert_array_equal(returns(use("t/pen/human-v0"), 0.0), steps)


def test_scores_that_were_added():
    make("04-scores-added", "before")
    with pytest.raises(UserError, match="declares no reference scores"):
        use("mujoco/hopper/medium-v0")
    make("04-scores-added", "after")
    assert use("mujoco/hopper/medium-v0").ref_max_score == 100.0


def test_a_wrapper_that_cannot_be_made_again():
    make("06-unrecreatable-wrapper")
    for name in ("plain", "kw"):
        with pytest.raises(UserError, match=r"declares the wrapper Monitor .*cannot be made again"):
            use(f"t/monitor/{name}-v0")


def test_another_action_range():
    make("08-action-range")
    data = use("t/range/two-v0")
    np.testing.assert_allclose(data.actions, 0.75, atol=0.05)
    np.testing.assert_allclose(returns(data, 0.75), 0.0, atol=1e-6)


def test_an_environment_for_evaluation():
    make("09-eval-env-spec")
    np.testing.assert_array_equal(returns(use("t/evalenv/x-v0"), 0.0), 90.0)


def test_an_observation_too_few():
    make("10-observation-lengths")
    with pytest.raises(UserError, match="episode 3 has 40 rewards and 40 observations, which should be 41"):
        use("t/obslen/short-v0")


@pytest.mark.parametrize("name", ["t/twod/rewards-v0", "t/twod/only-v0"])
def test_columns(name):
    make("11-two-dim-rewards")
    data = use(name)
    assert data.rewards.shape == data.terminations.shape == (480,)


def test_dict_observations():
    make("12-dict-observations")
    with pytest.raises(UserError, match="give --flatten-observations"):
        use("t/maze/umaze-v2")
    data = load.load(None, "t/maze/umaze-v2", trust_environment=True, flatten_observations=True)
    assert data.observations.shape == (480, 7)
    with pytest.raises(UserError, match="or in another order"):  # its environment has vectors of three
        checks.check_environment(data)


def test_an_environment_that_truncates_itself():
    make("14-own-truncation")
    np.testing.assert_array_equal(returns(use("t/cut/x-v0"), 0.0), 25.0)


def test_arrow():
    pytest.importorskip("pyarrow")
    for action in ("0.0", "0.7"):
        make("16-arrow", action)
        np.testing.assert_allclose(load.load(None, "t/arrow/x-v0", trust_environment=True).actions, float(action))


def test_legacy_files(tmp_path):
    said = apart("19-legacy-files/make.py", cwd=tmp_path)
    assert said.count("\n") >= 8 and "TRACEBACK" not in said


def test_an_attack_by_a_specification(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    arguments = ("os:system", '{"command": "touch pwned"}')
    for name, registered in (("evil/hopper/x-v0", ()), ("evil/hopper/y-v0", ("[]", "d4rl/Hopper-v2"))):
        apart("attack/1-env-spec-code_make.py", *arguments, name, *registered, cwd=tmp_path)
        with pytest.raises(UserError, match=r"(import and call os:system|pass command=)"):
            use(name, trust=False)
    assert not list(tmp_path.rglob("pwned"))
    assert minari_files.minari_path("evil/hopper/x-v0").is_dir()


@pytest.mark.parametrize("attack", ["3-paths_t.py", "6-bomb_bomb.py"])
def test_attacks_by_files(tmp_path, monkeypatch, attack):
    """Each line names an input and what came of it: loaded as it is, or refused in a sentence."""
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    (tmp_path / "1-env-spec-code").mkdir()
    (tmp_path / "1-env-spec-code/make.py").symlink_to(CASES / "attack/1-env-spec-code_make.py")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/outside/evil/a/os-v0").mkdir(parents=True)
    said = apart(f"attack/{attack}", cwd=tmp_path / "here")
    outcomes = dict(re.findall(r"^(\S.*?) (LOADED|UserError|ok|[A-Z]\w+)\b", said, flags=re.MULTILINE))
    loaded = {name for name, outcome in outcomes.items() if outcome in ("LOADED", "ok")}
    assert set(outcomes.values()) <= {"LOADED", "UserError"}, said
    # The plain one, and columns (T, 1), which are flattened.
    assert loaded == ({"plain", "rewards2d-v0"} if attack.startswith("3") else set()), said
    assert len(outcomes) >= (25 if attack.startswith("3") else 4), said
