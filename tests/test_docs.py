"""The documentation: what it links to is there, what it runs is understood, and every method has its page."""

import dataclasses
import importlib.util
import inspect
import json
import re
import shlex
import sys
import tomllib
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import iwsft_control
from iwsft_control import run, sweep, table
from iwsft_control.__main__ import COMMANDS
from iwsft_control.base import console
from iwsft_control.benchmark import results, settings
from iwsft_control.envs.tasks import MEDIUM_REPLAY
from iwsft_control.learning.method import Inputs, Method, Prepared
from iwsft_control.methods import registry
from tests.conftest import make_data
from tests.test_run import ID, small

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="docs/ is not part of an installed package")


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/site/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page, language):
    """The code of a page in a language, block by block."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)


def tables(page):
    """What the first column of a page's tables names, table by table."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [{n for row in t.splitlines()[2:] for n in re.findall(r"`(\w+)[(`]", row.split("|")[1])} for t in found]


@pytest.fixture
def own_method(tmp_path, monkeypatch):
    """The file that docs/own-method.md says to save, in the present folder; the registry is put back afterwards."""
    path = tmp_path / "weighted_bc.py"
    path.write_text(blocks("own-method.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    registry.every()
    monkeypatch.setattr(registry, "_cards", dict(registry._cards))
    monkeypatch.setattr(registry, "_files", [])
    yield path
    for name in [n for n in sys.modules if n.startswith("iwsft_method_")]:
        del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    """Also where the page is read as a file, without the site."""
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_site_holds_what_its_pages_link_to_outside_of_docs(hooks):
    """MkDocs itself, which is no part of the tests' extra, builds the site in .ci/run."""
    linked = hooks.linked()
    assert {"results/table.md", "results/figures/tree.svg", "iwsft_control/learning/objectives.py"} <= linked
    text = (
        "[a](../results/table.md#b), ![c](../results/figures/tree.svg) and [d](../iwsft_control/learning/objectives.py)"
    )
    picture, code = "repository/results/figures/tree.svg", "repository/iwsft_control/learning/objectives.py.md"
    assert hooks.of_site(text) == f"[a](results.md#b), ![c]({picture}) and [d]({code})"
    assert "def importance_weights" in hooks.shown("iwsft_control/learning/objectives.py")
    assert hooks.of_site("<!-- ::: a.b\n    options: {} -->") == "::: a.b\n    options: {}"
    assert not any("](../" in hooks.of_site(page.read_text()) for page in PAGES[1:])


def test_the_site_is_built_strictly():
    """With --quiet MkDocs drops its warnings before --strict counts them."""
    (line,) = [line for line in (ROOT / ".ci/run").read_text().splitlines() if "/mkdocs" in line]
    assert "--strict" in line and "--quiet" not in line and " -q" not in line


def commands():
    """Every command of the package in a block of shell of the documentation, comments left out."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                words = shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "0"), comments=True)
                if words[:1] == ["iwsft"]:
                    yield page.name, words[1], words[2:]
                elif words[:2] == ["python", "-m"] and words[2].startswith("iwsft_control."):
                    yield page.name, words[2].removeprefix("iwsft_control."), words[3:]


def test_the_commands_of_the_baselines_make_the_committed_runs(monkeypatch):
    """These and no others; results/README.md tells the commands."""
    told = set()
    for line in (ROOT / "results" / "README.md").read_text().splitlines():
        if "--results results/baselines" in line:
            plans = []
            monkeypatch.setattr(sys, "argv", shlex.split(line)[2:])
            options = partial(settings.command_line, sweep.PlanOptions, "methods", "qualities")
            console.command(options, plans.append, "sweep", "", "tasks")
            (plan,) = plans
            told |= {(t, m, s) for t in plan.tasks or MEDIUM_REPLAY for m in plan.methods for s in plan.seeds}
    there = [results.read(path) for path in (ROOT / "results" / "baselines").rglob("*.json")]
    assert {(run.task, run.method, run.seed) for run in there} == told


@pytest.mark.parametrize(("page", "name", "arguments"), [*commands()], ids=lambda x: x if isinstance(x, str) else "")
def test_commands_are_understood(page, name, arguments, monkeypatch, own_method):
    """Their options exist and have an effect; nothing is run."""
    assert name in COMMANDS
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    bases = {
        "run": (run.RunOptions, "method", "quality", "env"),
        "sweep": (sweep.PlanOptions, "methods", "qualities", "tasks"),
    }
    seen = []
    if name in bases:
        base, *names, positional = bases[name]
        console.command(lambda: settings.command_line(base, *names), seen.append, name, "", positional)
    else:
        module = importlib.import_module(f"iwsft_control.{name}")
        monkeypatch.setattr(module, "main", seen.append)
        module.cli()
    assert len(seen) == 1


def test_the_own_method_of_the_page_runs(own_method, monkeypatch):
    """As it is printed, on small data and in a few steps; and its weights are what its docstring says."""
    small()
    options = "--weighted-bc.steps 20 --weighted-bc.hidden 8 --weighted-bc.batch-size 16".split()
    monkeypatch.setattr(sys, "argv", ["run", "--dataset", ID, "--method-file", own_method.name, "--quick", *options])
    sys.argv += ["--method", "weighted-bc", "--results", "results"]
    run.cli()
    (path,) = Path("results").rglob("*.json")
    result = results.read(path)
    assert result.method == "weighted-bc" and result.config["temperature"] == 1.0 and result.config["steps"] == 20
    assert len(result.episode_returns) == 5 and result.diagnostics["training"]["step"] == [20]
    assert path.with_suffix(".safetensors").is_file()
    method = registry.get("weighted-bc")
    data = make_data()
    rows = method.prepare(method.config(), Inputs(data, {}, None, (0,))).shared
    exponent = np.log(rows.weights[data.starts[:-1]])
    np.testing.assert_allclose(np.diff(exponent), np.diff(data.returns) / data.returns.std(), rtol=1e-4)
    assert rows.weights.mean() == pytest.approx(1.0, rel=1e-5) and rows.weights.dtype == np.float32


def test_own_data_of_the_page(tmp_path, one_process, monkeypatch, capsys):
    """As printed, but for fewer episodes: recorded, read from Python, trained on, and a column of a table."""
    record, read, relabel = blocks("own-data.md", "python")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari recommends an author and more
        exec(record.replace("range(20)", "range(2)"), {})
    exec(read, {})
    assert "2 episodes of mean return" in capsys.readouterr().out
    made = {}
    exec(relabel.partition("runs = ")[0], made)
    assert made["tall"].returns.mean() > made["data"].returns.mean() + 200
    quick = "--method bc sft --seeds 0 1 --quick --policy.bc-steps 20 --policy.fine-tune-steps 10 --policy.hidden 8"
    monkeypatch.setattr(sys, "argv", ["run", "--dataset", "my/hopper/noisy-v0", "--results", "my-data", *quick.split()])
    run.cli()
    monkeypatch.setattr(sys, "argv", ["table", "my-data", "--out", "my-data-table", "--focus", "sft", "--quick"])
    table.cli()
    text = Path("my-data-table/table.md").read_text()
    assert "| hopper noisy |" in text and "\n| sft | 2 |" in text


def test_the_page_of_own_methods_names_every_field():
    named = tables("own-method.md")
    assert {f.name for f in dataclasses.fields(Method)} in named
    assert set(Inputs._fields) in named and set(Prepared._fields) in named
    data = next(names for names in named if "episode_of" in names)
    assert all(hasattr(make_data(), name) for name in data)


def test_the_page_of_the_api_names_what_there_is():
    named = tables("api.md")
    assert {name for name in iwsft_control.__all__ if name != "__version__"} <= named[0]
    assert set(iwsft_control.Run._fields) in named
    arguments = inspect.signature(iwsft_control.train).parameters
    assert {name for name, each in arguments.items() if each.kind != each.VAR_KEYWORD} <= named[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_of_the_pages_compiles_and_names_what_there_is(page):
    for code in blocks(page, "python"):
        compile(code, page.name, "exec")
        assert set(re.findall(r"\biwsft\.(\w+)", code)) <= set(iwsft_control.__all__)


def test_every_method_has_a_page(hooks):
    pages = {module: hooks.page(module, cards, []) for module, cards in hooks.modules().items()}
    named = {card.name for cards in hooks.modules().values() for card in cards}
    assert named == {card.name for card in registry.OURS}
    for module, text in pages.items():
        assert ("## Hyper-parameters" in text and "Deviation" in text) or module == "critic"
    row = {"method": "iql", "quality": "", "dataset": "iwsft/hopper/medium-replay-v1", "n_seeds": "5", "mean": "31.66"}
    row |= {"low": "27.7", "high": "35.7", "difference": "-15.6"}
    text = hooks.page("iql", hooks.modules()["iql"], [row])
    assert "| hopper medium-replay | iql | 5 | 31.7 [27.7, 35.7] | -15.6 |" in text
    assert "| IQL | 94.7 | 44.2 | 73.9 |" in text


def test_the_readme_is_short_and_holds_both_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) < 1100
    lines = text.splitlines()
    begin = "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e "
    assert f"{begin}. && .venv/bin/python -m iwsft_control.run --env hopper-medium-replay" in lines
    assert f"{begin}'.[dev]' && .venv/bin/python -m pytest" in lines


def extras_of_the_package():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda p: p.name)
def test_pages_install_from_the_clone_with_its_pins(page):
    """The package is on no index: its name there could be anybody's."""
    text = page.read_text()
    assert "iwsft_control[" not in text
    for command in re.findall(r"pip install ([^`\n&]*)", text):
        extra = re.fullmatch(r"(?:-q )?-c constraints\.txt -e (?:\.|'\.\[(\w+)\]') ?", command)
        assert extra and extra[1] in {None, *extras_of_the_package()}, command


def test_the_time_of_a_run_is_what_its_sources_say():
    """Of every method with a policy; of baselines the default steps over the measured speed."""
    text = (ROOT / "docs/performance.md").read_text()
    speeds = dict(re.findall(r"^\| ([\w-]+), batch 256, [^|]*\| (\d+) \(", text, re.MULTILINE))
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \| ([^|]*) \| (\d+) steps/s \|$", text, re.MULTILINE)
    shown = set()
    for names, steps, time, speed in rows:
        number, unit = time.split()
        for name in re.findall(r"`([\w-]+)`", names):
            shown.add(name)
            assert registry.get(name).config().steps == int(steps.replace(",", ""))
            assert speeds[name.removesuffix("-tuned")] == speed
            minutes = int(steps.replace(",", "")) / int(speed) / 60
            assert float(number) == pytest.approx(minutes / (60 if unit == "h" else 1), rel=0.05)
    section = text.split("## Time of a run")[1].split("## ")[0]
    every = {card.name for card in registry.OURS if card.has_policy}
    assert shown == {*speeds, "rebrac-tuned"} and every <= set(re.findall(r"`([\w-]+)`", section))


def test_every_package_that_an_error_names_is_an_extra():
    """As it is installed anywhere: the project's own name may not be on an index."""
    known = {re.split("[>=]", need)[0] for needs in extras_of_the_package().values() for need in needs}
    named = {
        package.strip("'")
        for path in (ROOT / "iwsft_control").rglob("*.py")
        for package in re.findall(r"pip install ([\w\[\]'-]+)", path.read_text())
    }
    assert {"imageio[ffmpeg]", "pandas", "tensorboardX", "wandb", "ray", "huggingface_hub"} <= named
    assert named <= known | {"imageio", "minari[arrow]"}


def test_the_likelihood_of_what_is_not_curated_only_falls():
    """What docs/difference.md says of stopping early: the committed runs have their best at the first refresh."""
    files = sorted((ROOT / "results" / "sweep").rglob("iw-sft-q-by-q-*.json"))
    logs = [json.loads(f.read_text(encoding="utf-8"))["diagnostics"]["training"] for f in files]
    assert len(logs) == 30
    for log in logs:
        assert log["step"][0] == 100 and np.argmax(log["held_out_log_likelihood"]) == 0
