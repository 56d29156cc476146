"""The house: rooms whose imports point one way, methods that are one file, and a door for other people's methods."""

import ast
import dataclasses
import importlib
import json
import os
import py_compile
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import iwsft_control
from iwsft_control import run
from iwsft_control.__main__ import COMMANDS, main
from iwsft_control.base import bounds
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import export, results, settings, sources, store
from iwsft_control.benchmark.jobs import DataSource, Job, with_dependencies
from iwsft_control.benchmark.stages import Stage, method_stage
from iwsft_control.configs.card import Card
from iwsft_control.datasets import minari_files
from iwsft_control.learning import loop
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.methods import registry
from iwsft_control.report import runs as grouped
from tests.conftest import make_data, make_episodes
from tests.test_run import ID, config, small

NO_STEPS = """import dataclasses
from iwsft_control.learning.method import Method
from iwsft_control.methods import iql

{}
class MyConfig:
    average_decay: float = 0.9

METHOD = Method(name="mine", config=MyConfig, prepare=iql.prepare, create=iql.create, update=iql.update)
"""
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "iwsft_control"
XQL = ROOT / "experiments" / "xql.py"
# From the ground up: a room imports from itself and from those before it.
ROOMS = (
    "base",
    "configs",
    "networks",
    "envs",
    "datasets",
    "learning",
    "online",
    "reconstruction",
    "methods",
    "benchmark",
    "sequences",
    "report",
)


def imports(path):
    """Modules of the package that a file imports, as parts: ("learning", "loop")."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "iwsft_control":
            parts = tuple(node.module.split(".")[1:])
            yield from [parts] if parts else [(alias.name,) for alias in node.names]


def test_imports_point_one_way():
    rooms = sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").is_file())
    assert rooms == sorted(ROOMS)
    for i, room in enumerate(ROOMS):
        for path in (PACKAGE / room).glob("*.py"):
            for parts in imports(path):
                assert parts[0] in ROOMS[: i + 1], f"{room}/{path.name} imports {'.'.join(parts)}"


def test_no_two_modules_of_a_room_import_each_other():
    paths = {p.relative_to(PACKAGE).with_suffix("").parts: p for p in PACKAGE.rglob("*.py")}
    graph = {name: {d for d in imports(path) if d in paths} for name, path in paths.items()}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, f"a circle: {[*open_, name]}"
        if name not in done:
            open_.append(name)
            for other in graph[name]:
                visit(other)
            done.add(open_.pop())

    for name in graph:
        visit(name)


def test_objectives_know_nothing_of_policies():
    assert set(imports(PACKAGE / "learning/objectives.py")) <= {("configs", "importance")}


def test_there_is_one_training_loop():
    """Only SAC's replay, which grows while it trains, and what is online, on its own episodes, have loops of
    their own; decoding tokens is no training."""
    scans = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if "lax.scan" in p.read_text()}
    offline = {p for p in scans if not p.startswith("online/")}
    assert offline == {"learning/loop.py", "reconstruction/sac.py", "sequences/generate.py"}


@pytest.mark.parametrize("name", registry.names())
def test_every_method_is_a_whole_record(name):
    method = registry.get(name)
    assert {"steps", "batch_size", "average_decay"} - set(dir(method.config())) <= {"batch_size"}
    assert method.seconds_of(method.config()) > 0
    assert json.dumps(method.record(method.config()))
    assert method.quick(method.config()).steps < method.config().steps
    cards = {card.name: card for card in registry.OURS}
    assert {getattr(method, f.name) == getattr(cards[name], f.name) for f in dataclasses.fields(Card)} == {True}
    file = Path(sys.modules[method.config.__module__].__file__)
    assert file.parent == PACKAGE / "configs"


def test_random_streams_stay_what_they_were():
    """Seeds would move otherwise: published rows were drawn from these."""
    names = "bc critic filtered-bc sft iw-sft sft-q iw-sft-q iql td3-bc awac cql rebrac rebrac-tuned".split()
    assert [registry.get(name).random_stream for name in names] == list(range(13))


def test_bounds_stand_with_every_number():
    """A hyper-parameter that is a number has bounds beside it, so that nonsense is refused."""
    for group, value in settings.defaults().items():
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                number = getattr(value, field.name)
                numbers = number if isinstance(number, tuple) else (number,)
                if all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
                    broken = tuple(-1 for _ in numbers) if isinstance(number, tuple) else -1
                    with pytest.raises(UserError, match=f"--{group}".replace("_", "-")):
                        bounds.check(dataclasses.replace(value, **{field.name: broken}), group)


def closure(name):
    return {p.relative_to(PACKAGE).as_posix() for p in store.code_of(Stage(name, None, (0,), settings.make()))}


def test_a_stage_depends_on_the_code_it_runs_and_on_no_other():
    ours = {f"methods/{p.name}" for p in (PACKAGE / "methods").glob("*.py")}
    assert closure("iql") & ours == {"methods/iql.py", "methods/critic.py"}
    assert closure("rebrac") & ours == {"methods/rebrac.py", "methods/td3_bc.py"}
    assert closure("bc") & ours == {"methods/supervised.py", "methods/released.py"}
    for name in registry.names():
        assert closure(name) >= {"learning/loop.py", "envs/evaluation.py", "envs/physics.py", "envs/batch.py"}
        assert not {"methods/registry.py", "learning/method.py"} & closure(name)
        assert {p for p in closure(name) if p.startswith(("benchmark", "report", "base"))} == {"benchmark/perform.py"}
    assert "envs/evaluation.py" not in closure("critic")
    assert "learning/objectives.py" in closure("sft") - closure("iql")


@pytest.fixture
def without_others(monkeypatch):
    """The registry as it was, after a test has added to it."""
    registry.every()
    monkeypatch.setattr(registry, "_cards", dict(registry._cards))
    monkeypatch.setattr(registry, "_files", [])
    yield
    for name in [n for n, m in sys.modules.items() if getattr(m, "__name__", "").startswith("iwsft_method_")]:
        del sys.modules[name]


OWN = """
import dataclasses
import helper
from iwsft_control.methods import iql

def update(config, state, batch, key):
    return iql.update(config, state, batch, key)

METHOD = dataclasses.replace(iql.METHOD, name="mine", option="mine", stream=None, update=update, seconds=1.0)
"""


def test_the_code_of_a_method_file_is_in_its_key_with_what_lies_beside_it(tmp_path, monkeypatch, without_others):
    """Also where its configuration is another method's; an estimate of seconds is not."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "helper.py").write_text("x = 1\n")

    def key(text, helper="x = 1\n"):
        (tmp_path / "mine.py").write_text(text)
        (tmp_path / "helper.py").write_text(helper)
        sources.forget()
        monkeypatch.setattr(registry, "_cards", {card.name: card for card in registry.OURS})
        monkeypatch.setattr(registry, "_files", [])
        registry.load_file(tmp_path / "mine.py")
        return store.key(method_stage("mine", "q", (0,), settings.make(), ""), make_data())

    first = key(OWN)
    assert key(OWN) == key(OWN.replace("1.0", "2.0")) == first
    assert key(OWN.replace("return iql", "key = key\n    return iql")) != first
    slow, fast = (OWN.replace("return iql", f"helper.simulate(seconds={x})\n    return iql") for x in (0.02, 0.5))
    assert key(slow) != key(fast)  # of anything but a record
    assert key(OWN, "x = 2\n") != first


def test_the_code_of_a_method_file_includes_packages_and_what_is_on_the_path(tmp_path, monkeypatch, without_others):
    """But not what is installed: of that the versions tell."""
    lab, elsewhere = tmp_path / "lab", tmp_path / "elsewhere"
    for folder in (lab / "tools", elsewhere):
        folder.mkdir(parents=True)
    (lab / "tools/__init__.py").write_text("from .deep import x\n")
    (lab / "tools/deep.py").write_text("from . import other\nx = 1\n")
    (lab / "tools/other.py").write_text("")
    (elsewhere / "far_helper.py").write_text("y = 1\n")
    (lab / "mine.py").write_text("import numpy, flax.linen\nimport tools\nfrom far_helper import y\n")
    monkeypatch.setattr(sys, "path", [str(elsewhere), *sys.path])
    sources.forget()
    found = sources.import_closure(lab / "mine.py")
    assert {path.relative_to(tmp_path).as_posix() for path in found} == {
        "lab/mine.py", "lab/tools/__init__.py", "lab/tools/deep.py", "lab/tools/other.py", "elsewhere/far_helper.py"
    }  # fmt: skip


def test_an_edit_in_a_method_that_another_file_starts_from_is_another_configuration(tmp_path, without_others):
    """Its artefact is what the other is made of: a table averaged the two versions."""
    start, later = OWN.replace("helper", "math"), OWN.replace("helper", "math").replace('"mine"', '"later"')
    (tmp_path / "later.py").write_text(later.replace("seconds=1.0", 'dependencies=lambda quality: ("mine",)'))
    codes = []
    for text in (start, start.replace("return iql", "key = key\n    return iql")):
        (tmp_path / "mine.py").write_text(text)
        sources.forget()
        registry._cards.pop("mine", None)
        registry._files[:] = [file for file in registry._files if file.stem != "mine"]
        registry.load_file(tmp_path / "mine.py")
        registry.load_file(tmp_path / "later.py")
        stage = method_stage("later", "q", (0,), settings.make(), "")
        codes.append(export.whole_configuration(stage)["code"])
    assert codes[0] != codes[1]


def rewrite(file, text):
    """As an editor does, some seconds later."""
    before = file.stat().st_mtime
    file.write_text(text)
    os.utime(file, (before + 5, before + 5))


CONSTANTS = """
RATE = 0.5
class Box:
    size: int = 3
    def area(self):
        return self.size ** 2
"""


@pytest.mark.parametrize(
    ("edit", "agrees"),
    [
        (("", ""), True),
        (("RATE = 0.5", "RATE = 0.6"), False),
        (("size: int = 3", "size: int = 4"), False),
        (("** 2", "** 3"), False),
        (("import helper", "import helper\ndef more(): pass"), False),
        (("return iql", "key = key\n    return iql"), False),
    ],
)
def test_an_edit_after_the_import_is_refused(tmp_path, monkeypatch, without_others, edit, agrees):
    """What would be trained is the code as it was imported, and what would be stored says the new one: also where
    nothing had asked for the file before the edit."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # else nothing tells what was imported
    text, data = OWN + CONSTANTS, make_data()
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "mine.py").write_text(text)
    registry.load_file(tmp_path / "mine.py")
    sources.forget()
    if edit[0]:
        rewrite(tmp_path / "mine.py", text.replace(*edit))
    stage = method_stage("mine", "q", (0,), settings.make(), "")
    if agrees:
        store.check_as_imported(stage, data)
        return
    with pytest.raises(UserError, match=r"mine\.py has changed since it was imported; start Python again"):
        store.check_as_imported(stage, data)


def test_modules_as_they_are_are_no_false_alarm(tmp_path, monkeypatch):
    """What this package has imported, and a file that was only touched."""
    ours = [m for name, m in list(sys.modules.items()) if name.startswith(("iwsft_control.", "experiments."))]
    places = [Path(m.__file__) for m in ours if str(getattr(m, "__file__", "")).endswith(".py")]
    assert len(places) > 50
    assert [str(path) for path in places if sources._edited(path)] == []
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "touched_module.py"
    file.write_text("x = 1\n")
    importlib.import_module("touched_module")
    sources.check_as_imported([file])
    rewrite(file, "x = 1\n")
    sources.check_as_imported([file])
    monkeypatch.delitem(sys.modules, "touched_module")


def test_a_script_has_no_compiled_file_of_its_own(tmp_path, monkeypatch):
    """One that was imported before lies about: it tells nothing of what was run since."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "script.py"
    file.write_text("x = 1\n")
    py_compile.compile(str(file))
    rewrite(file, "x = 22\n")
    assert sources._edited(file)
    sources.check_as_imported([file])
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(file), raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    sources.check_as_imported([file])


def test_what_is_imported_anew_has_another_digest(tmp_path, monkeypatch):
    """As a notebook does with importlib.reload; another process that imports the file makes no difference here."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "reloaded_module.py"
    file.write_text("def f(x=1):\n    return x\n")
    module = importlib.import_module("reloaded_module")
    sources.check_as_imported([file])
    first = sources.code_version((file,))
    rewrite(file, "def f(x=2):\n    return x\n")
    for _ in range(2):
        with pytest.raises(UserError, match="has changed since it was imported"):
            sources.check_as_imported([file])
        py_compile.compile(str(file))
    importlib.reload(module)
    sources.check_as_imported([file])
    assert sources.code_version((file,)) != first
    monkeypatch.delitem(sys.modules, "reloaded_module")


def test_installed_packages_are_no_code_of_ones_own(tmp_path, monkeypatch):
    """A method or an environment in an installed package brings its own modules, not all of NumPy's."""
    site = tmp_path / "site-packages"
    for package in ("pkg", "numpy"):
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").write_text("")
    (site / "pkg" / "other.py").write_text("")
    (site / "pkg" / "mine.py").write_text("import numpy\nfrom pkg import other\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    sources.forget()
    found = {path.relative_to(site).as_posix() for path in sources.import_closure(site / "pkg" / "mine.py")}
    assert found == {"pkg/mine.py", "pkg/__init__.py", "pkg/other.py"}


METHOD_FILE = """
import dataclasses
from pathlib import Path
from typing import Any
from iwsft_control.methods import iql
METHOD = iql.METHOD

@dataclasses.dataclass(frozen=True)
class MyConfig:
    steps: int = 3
    batch_size: int = 4
    average_decay: float = 0.9
    {field}

METHOD = dataclasses.replace(iql.METHOD, name={name!r}, option="mine", stream=None, config=MyConfig{more})
"""


@pytest.mark.parametrize(
    ("name", "field", "more", "sentence"),
    [
        ("my method", "", "", "'my method' is no name of a method"),
        ("../mine", "", "", "is no name of a method"),
        ("mine", "place: Path = Path('x')", "", "MyConfig holds what cannot be written or hashed .*Path"),
        ("mine", "extra: Any = dataclasses.field(default_factory=list)", "", "MyConfig holds what cannot .*unhashable"),
        ("mine", "def __post_init__(self): int('x')", "", r"MyConfig\(\) cannot be made \(ValueError: invalid literal"),
        ("mine", "", ", dependencies=('bc',)", "the dependencies of 'mine' must be a function"),
        ("mine", "", ", dependencies=lambda quality: 'bc'", "the dependencies of 'mine' must be a function"),
        ("mine", "", ", dependencies=lambda quality: {}[quality]", "the dependencies of 'mine' must be a function"),
    ],
)
def test_records_that_would_fail_later(tmp_path, name, field, more, sentence, without_others):
    (tmp_path / "mine.py").write_text(METHOD_FILE.format(field=field, name=name, more=more))
    with pytest.raises(UserError, match=sentence):
        registry.load_file(tmp_path / "mine.py")


def test_fields_that_nobody_gives_need_no_default(tmp_path, without_others):
    field = "derived: int = dataclasses.field(init=False)\n    anything: Any = None"
    after = "    def __post_init__(self):\n        object.__setattr__(self, 'derived', 2)\n"
    text = METHOD_FILE.format(field=field + "\n" + after, name="mine", more="")
    (tmp_path / "mine.py").write_text(text)
    registry.load_file(tmp_path / "mine.py")
    config = registry.get("mine").config()
    bounds.check(config, "mine")
    assert config.derived == 2


def test_a_field_without_a_default_is_named(tmp_path, without_others):
    text = METHOD_FILE.format(field="", name="mine", more="").replace("steps: int = 3", "steps: int")
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match="the field steps of MyConfig has no default; give it one"):
        registry.load_file(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prepare": lambda config, inputs: None}, r"prepare of mine must give Prepared\("),
        ({"prepare": lambda config, inputs: Prepared((1, 2))}, r"prepare of mine must give Prepared\("),
        ({"create": lambda config, o, a, key: (1.0, 2.0)}, "the state that create of mine gives has no field policy"),
        (
            {"update": lambda config, state, batch, key: (state, {})},
            "update of mine must give its new state and",
        ),
    ],
)
def test_functions_that_give_something_else(change, sentence, without_others):
    bc = registry.get("td3-bc")
    mine = dataclasses.replace(bc, name="mine", stream=None, **change)
    config = dataclasses.replace(bc.config(), hidden=(4,), steps=2, batch_size=4)
    data = mine.prepare(config, Inputs(make_data(), {}, None, (0,)))
    with pytest.raises(UserError, match=sentence):
        loop.train(mine, config, data, (0,))


def test_an_unknown_dependency_may_mean_the_critic(without_others):
    with pytest.raises(UserError, match="did you mean critic"):
        registry.card("critc")


def test_dependencies_may_have_dependencies(without_others):
    """A method that starts from iw-sft-q: everything below comes first, with its quality."""
    deep = dataclasses.replace(registry.get("iql"), name="deep", stream=None, dependencies=lambda q: ("iw-sft-q",))
    registry.add([deep], "here")
    job = Job(DataSource("hopper-medium-replay"), method_stage("deep", "q", (0,), settings.make(), ""))
    names = [each.stage.name for each in with_dependencies([job])]
    assert sorted(names[:2]) == ["bc", "critic"] and names[2:] == ["iw-sft-q by q", "deep"]
    whole = export.whole_configuration(job.stage)
    assert whole["preset"] == "" and whole["critic"]["steps"] == 25_000  # of what its dependency started from, too


def test_options_that_clash_are_refused(without_others):
    other = dataclasses.replace(registry.get("awac"), name="other", stream=None, option="iql")
    registry.add([other], "here")
    with pytest.raises(UserError, match="which another method has with other fields"):
        settings.defaults()
    registry._cards.pop("other")
    registry.add([dataclasses.replace(other, option="seeds")], "here")
    with pytest.raises(UserError, match="named like the command's own: seeds"):
        settings.with_options(run.RunOptions)


def test_another_method_changes_no_stored_stage(without_others):
    data = make_data()
    before = {n: store.key(method_stage(n, "q", (0,), settings.make(), ""), data) for n in ("bc", "iql", "iw-sft-q")}
    registry.load_file(XQL)
    assert "xql" in registry.names()
    after = {n: store.key(method_stage(n, "q", (0,), settings.make(), ""), data) for n in before}
    assert after == before


def test_the_example_method_learns(without_others):
    """XQL, one file outside the package: its Gumbel loss has the log-mean-exp as its minimiser."""
    registry.load_file(XQL)
    module = sys.modules[registry.get("xql").config.__module__]
    rng = np.random.default_rng(0)
    q = rng.standard_normal(4000)
    slope = jax.grad(lambda v: module.gumbel_loss(q - v, 0.5, clip=50.0).mean())
    best = 0.5 * np.log(np.exp(q / 0.5).mean())
    assert float(slope(best)) == pytest.approx(0.0, abs=1e-6)
    assert float(slope(best - 0.1)) < -1e-4 and float(slope(best + 0.1)) > 1e-4


def test_the_example_method_runs_from_its_file(tmp_path, without_others):
    small()
    options = {"hidden": (8,), "steps": 20, "batch_size": 16}
    registry.load_file(XQL)
    own = sys.modules[registry.get("xql").config.__module__].XQLConfig(**options)
    wider = settings.with_options(run.RunOptions)
    base = {f.name: getattr(config(tmp_path), f.name) for f in dataclasses.fields(config(tmp_path))}
    run.main(wider(**base | {"method": ("xql",), "xql": own, "method_file": (XQL,)}))
    (path,) = (tmp_path / "results").rglob("*.json")
    result = results.read(path)
    assert result.method == "xql" and result.config["hidden"] == [8]
    assert "expectile" not in result.config  # IQL's, which XQL's loss of V has no use for
    assert len(result.episode_returns) == 5


def test_help_names_every_method(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", "--help"])
    with pytest.raises(SystemExit):
        run.cli()
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    listed = re.search(r"One or more methods: ([^.]*)\.", shown)
    assert listed and [re.sub(r"(\w-) ", r"\1", n) for n in listed[1].split(", ")] == [
        card.name for card in registry.OURS if card.has_policy
    ]


def test_the_command_line_knows_the_options_of_a_method_file():
    command = [sys.executable, "-m", "iwsft_control.run", "--method-file", str(XQL), "--method", "xql"]
    answer = subprocess.run(
        [*command, "--xql.beta", "-1", "--env", "hopper-medium-replay"], capture_output=True, text=True
    )
    assert answer.returncode == 2
    assert "--xql.beta must be positive, not -1.0" in answer.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no METHOD"),
        ("import math\n\nmath.sqrt(-1)\n", r"cannot be imported \(line 3, ValueError"),
        ("def f(:\n", r"cannot be imported \(SyntaxError: .*line 1\)"),
        (NO_STEPS.format("@dataclasses.dataclass(frozen=True)"), "MyConfig has no field batch_size, steps; add it"),
        (NO_STEPS.format("@dataclasses.dataclass"), "the config of 'mine' is no frozen dataclass"),
        ("METHOD = 3", "does not hold a Method record"),
        ("METHODS = 3", "METHODS must be a tuple of Method records"),
        ("from iwsft_control.methods.iql import METHOD", "there is a method 'iql' already"),
    ],
)
def test_method_files_that_are_none(tmp_path, text, sentence, without_others):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=sentence):
        registry.load_file(tmp_path / "mine.py")


@pytest.mark.parametrize("imported", ["before", "after"])
def test_a_method_file_may_be_imported_too_for_its_configuration(tmp_path, monkeypatch, without_others, imported):
    """As docs/api.md shows it: the class must be the method's own."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"xql_{imported}"
    (tmp_path / f"{name}.py").write_text(XQL.read_text())
    if imported == "before":
        importlib.import_module(name)
    registry.load_file(tmp_path / f"{name}.py")
    assert registry.get("xql").config is importlib.import_module(name).XQLConfig
    monkeypatch.delitem(sys.modules, name)


def test_a_method_file_that_is_not_there(tmp_path, without_others):
    with pytest.raises(UserError, match=r"mine\.py does not exist or is no file; check the path"):
        registry.load_file(tmp_path / "mine.py")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match=r"mine\.txt is not a Python file"):
        registry.load_file(tmp_path / "mine.txt")


def test_two_versions_of_ones_own_method_are_two_configurations(tmp_path, without_others):
    """An edit gives a result of another name, and a table refuses the two together; ours name their commit instead."""
    small()
    file, text, codes = tmp_path / "mine.py", XQL.read_text(), []
    base = {f.name: getattr(config(tmp_path), f.name) for f in dataclasses.fields(config(tmp_path))}
    for seed, body in enumerate((text, text.replace("(z + 1)", "(z + 2)"))):
        file.write_text(body)
        sources.forget()
        registry._files.clear()
        registry._cards.pop("xql", None)
        registry.load_file(file)
        own = sys.modules[registry.get("xql").config.__module__].XQLConfig(hidden=(8,), steps=20, batch_size=16)
        changes = {"method": ("xql",), "xql": own, "method_file": (file,), "seeds": (seed,)}
        run.main(settings.with_options(run.RunOptions)(**base | changes))
        (written,) = (tmp_path / "results").rglob(f"xql-seed{seed}-*.json")
        codes.append(results.read(written).config["code"])
    assert codes[0] != codes[1]
    found = grouped.find([tmp_path / "results"], quick=True)
    with pytest.raises(UserError, match="configurations"):
        grouped.collect(found, grouped.parse_row("xql"), grouped.parse_row("xql"), [])


def test_a_method_that_takes_anothers_stream_is_refused(without_others):
    twin = dataclasses.replace(registry.get("iql"), name="iql2", stream=7)
    with pytest.raises(UserError, match="random stream of 'iql'"):
        registry.add([twin], "here")
    registry.add([dataclasses.replace(twin, stream=None)], "here")
    assert isinstance(registry.get("iql2"), Method)


def test_the_python_api(tmp_path, capfd):
    """The ten lines of the README, on small data."""
    small()
    data = iwsft_control.load(dataset=ID)
    policy = settings.make()["policy"]
    own = dataclasses.replace(policy, hidden=(8,), bc_steps=20, batch_size=16)
    runs = iwsft_control.train("bc", data, seeds=[0, 1], quick=True, policy=own, store=tmp_path / "stages")
    assert [r.result.seed for r in runs] == [0, 1]
    returns = iwsft_control.evaluate(runs[0].policy, data, episodes=5)
    np.testing.assert_array_equal(returns, runs[0].result.episode_returns)
    assert runs[0].policy(np.zeros(11, np.float32)).shape == (3,)
    assert "iw-sft-q" in iwsft_control.method_names()
    assert "bc: 20 in" in capfd.readouterr().err
    again = {"quick": True, "policy": own, "store": tmp_path / "stages", "results": tmp_path / "results"}
    (kept,) = iwsft_control.train("bc", data, seeds=[1], quiet=True, **again)
    assert capfd.readouterr() == ("", "")
    (path,) = (tmp_path / "results").rglob("*.json")
    assert results.read(path) == kept.result
    frame = iwsft_control.load_results(tmp_path / "results", quick=True)
    assert list(frame.score) == [kept.result.normalised_score]
    with pytest.raises(UserError, match=r"is a trial .*quick=True"):
        iwsft_control.load_results(tmp_path / "results")
    loaded = iwsft_control.load_policy(path.with_suffix(".safetensors"))
    assert path.with_suffix(".safetensors").stat().st_mode & 0o777 == path.stat().st_mode & 0o777 == 0o644
    np.testing.assert_array_equal(loaded(np.ones(11, np.float32)), runs[1].policy(np.ones(11, np.float32)))
    with pytest.raises(UserError, match="did you mean iw-sft-q"):
        iwsft_control.train("iw-sftq", data)
    with pytest.raises(UserError, match="no such group of options: icl"):
        iwsft_control.train("bc", data, icl=own)
    with pytest.raises(UserError, match="name a task or a data set"):
        iwsft_control.load()


def test_the_command_iwsft(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["iwsft"])
    main()
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    monkeypatch.setattr(sys, "argv", ["iwsft", "rum"])
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2
    monkeypatch.setattr(sys, "argv", ["iwsft", "run", "--env", "hoper"])
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2
    assert "unknown task 'hoper'" in capsys.readouterr().err


def test_simulator_states_reach_training():
    scores = {"ref_min_score": 0, "ref_max_score": 1}
    minari_files.write_minari("test/hopper/states-v0", make_episodes((30, 5, 17)), "d4rl/Hopper-v2", scores)
    data = iwsft_control.load(dataset="test/hopper/states-v0")
    for _ in range(2):  # the second time from the cache
        states = data.states()
        np.testing.assert_allclose(states.qpos[:, 1:], data.observations[:, :5])
        np.testing.assert_allclose(np.clip(states.qvel, -10, 10), data.observations[:, 5:])
        data = iwsft_control.load(dataset="test/hopper/states-v0")
    bare = make_episodes((30,), states=False)
    minari_files.write_minari("test/hopper/bare-v0", bare, "d4rl/Hopper-v2", scores)
    with pytest.raises(UserError, match="holds no simulator states"):
        iwsft_control.load(dataset="test/hopper/bare-v0").states()
