"""What a command imports before it has something to do: help, a version and a mistake must not cost seconds."""

import json
import subprocess
import sys

import gymnasium as gym
import pytest

import iwsft_control
from iwsft_control.__main__ import COMMANDS
from iwsft_control.envs import physics, registration

HEAVY = {"jax", "jaxlib", "flax", "optax", "mujoco", "minari", "h5py", "matplotlib", "scipy", "ray", "pandas"}
REPORT = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr))
"""


def imported(code):
    """What a fresh process has imported at its end: (exit code, stdout, packages)."""
    done = subprocess.run([sys.executable, "-c", REPORT + code], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, set(json.loads(done.stderr.splitlines()[-1])), done.stderr


def command(*arguments):
    return f"import sys; sys.argv = ['iwsft', *{arguments!r}]; from iwsft_control.__main__ import main; main()"


CASES = (
    (("--help",), 0),
    (("--version",), 0),
    (("rum",), 2),
    (("run", "--help"), 0),
    (("run", "--env", "hoper-medium-replay"), 2),
    (("run", "--env", "hopper-medium-replay", "--method", "iqll"), 2),
    (("run", "--env", "hopper-medium-replay", "--sedes", "3"), 2),
    (("run", "--env", "hopper-medium-replay", "--policy.bc-steps", "-3"), 2),
    (("run", "--env", "hopper-medium-replay", "--method", "iql", "--iql.beta", "much"), 2),
    (("sweep", "--help"), 0),
    (("sweep", "--tasks", "hoper-medium-replay"), 2),
    (("sweep", "--tasks", "hoper-medium-replay", "--quick"), 2),
    (("sweep", "--methods", "iqll"), 2),
    (("sweep", "--sedes", "3"), 2),
    (("sweep", "--workers", "0"), 2),
    (("sweep", "--policy.bc-steps", "-3"), 2),
    (("table", "--help"), 0),
    (("table", "--baseline", "iqll"), 2),
    (("table", "--focus", "bc by q"), 2),
    (("table", "--basline", "bc"), 2),
    (("table", "nowhere"), 2),
    (("collect", "--env", "hopper-medium-replay", "--updates-per-step", "-1"), 2),
    (("accept", "--env", "ant-medium-replay", "--work", "pool"), 2),
    (("finetune", "--help"), 0),
    (("finetune", "--env", "hoper-medium-replay"), 2),
    (("finetune", "--env", "hoper-medium-replay", "--quick"), 2),
    (("finetune", "--env", "hopper-medium-replay", "--method", "ufft"), 2),
    (("finetune", "--env", "hopper-medium-replay", "--sedes", "3"), 2),
    (("finetune", "--env", "hopper-medium-replay", "--ppo.clip", "-1"), 2),
    (("finetune", "--env", "hopper-medium-replay", "--reward", "dens"), 2),
    (("collect", "--help"), 0),
    (("collect", "--env", "hoper-medium-replay"), 2),
    (("accept", "--help"), 0),
    (("accept", "--env", "hoper-medium-replay"), 2),
    (("video", "--help"), 0),
    (("video", "hoper-medium-replay"), 2),
    (("video", "nowhere.safetensors"), 2),
    (("video", "hopper-medium-replay", "--env", "hoper-medium-replay"), 2),
    (("d4rl", "--help"), 0),
    (("d4rl", "download", "--help"), 0),
    (("d4rl", "dowload", "hopper-medium-replay"), 2),
    (("d4rl", "download", "hoper-medium-replay"), 2),
    (("d4rl", "import", "nowhere.hdf5"), 2),
    (("d4rl", "import", __file__, "--task", "hoper-medium-replay"), 2),
    (("push", "--help"), 0),
    (("push", "test/hopper/mine-v0", "ORG"), 2),
    (("push", "nowhere.safetensors", "hf://ORG/NAME"), 2),
    (("pull", "--help"), 0),
    (("pull", "hf://ORG/mine.safetensors"), 2),
)

# A fork for every command of a process that has imported what all of them import: a process each takes half a minute.
FORKS = """
import importlib, json, os, sys
import rich.console, tyro
from iwsft_control.__main__ import COMMANDS
for command in COMMANDS:
    importlib.import_module(f"iwsft_control.{command}")
for arguments in json.loads(sys.argv[1]):
    read, write = os.pipe()
    if os.fork() == 0:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1), os.dup2(nothing, 2)
        sys.argv = ["iwsft", *arguments]
        try:
            from iwsft_control.__main__ import main
            code = main()
        except SystemExit as end:
            code = end.code
        names = sorted({name.split(".")[0] for name in sys.modules})
        os.write(write, json.dumps([code or 0, names]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        print(told.read() or json.dumps(["it died", []]), flush=True)
    os.wait()
"""


def test_every_command_is_among_them():
    assert {arguments[0] for arguments, code in CASES if code == 0 and arguments[-1] == "--help"} >= set(COMMANDS)


def test_what_needs_no_heavy_package_imports_none():
    arguments = json.dumps([arguments for arguments, _ in CASES])
    done = subprocess.run([sys.executable, "-c", FORKS, arguments], capture_output=True, text=True, timeout=120)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(CASES), done.stderr
    wrong = {
        arguments: (found, sorted(HEAVY & set(names)))
        for (arguments, code), (found, names) in zip(CASES, told, strict=True)
        if found != code or HEAVY & set(names)
    }
    assert not wrong


@pytest.mark.slow
def test_a_heavy_package_would_be_seen():
    """In a fork as in a process of its own; and a command alone, without what the forks have imported before."""
    arguments = json.dumps([["sweep", "--dry-run", "--methods", "bc", "--tasks", "hopper-medium-replay"]])
    done = subprocess.run([sys.executable, "-c", FORKS, arguments], capture_output=True, text=True, timeout=120)
    code, names = json.loads(done.stdout)
    assert code == 0 and "jax" in names
    code, _, packages, _ = imported(command("run", "--env", "hoper-medium-replay"))
    assert code == 2 and not HEAVY & packages


def test_the_package_is_light_until_something_of_it_is_used():
    assert not HEAVY & imported("import iwsft_control")[2]
    assert "jax" in imported("import iwsft_control; iwsft_control.load")[2]  # the check sees what it should


def test_the_environments_are_those_that_are_registered():
    assert {env_id: cls.__name__ for env_id, cls in physics.ENVIRONMENTS.items()} == registration.CLASSES
    assert {gym.spec(env_id).max_episode_steps for env_id in physics.ENVIRONMENTS} == {1000}


def test_the_version_is_told():
    code, shown, _, _ = imported(command("--version"))
    assert (code, shown) == (0, f"iwsft_control {iwsft_control.__version__}\n")
