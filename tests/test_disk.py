"""Disks that are full or can only be read, and several processes on one folder: nothing lost, one sentence."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iwsft_control import sweep, table
from iwsft_control.base import console, files
from iwsft_control.base.errors import UserError
from iwsft_control.benchmark import processes
from iwsft_control.datasets import minari_files, packed
from tests.conftest import in_this_process, make_episodes
from tests.test_sweep import OPTIONS, ROOT, TASK, found, plan

pytestmark = pytest.mark.usefixtures("imported_hopper")


@pytest.fixture
def disk(tmp_path):
    """Mounts small disks: ``disk(name, size, options)`` gives the folder. Asks for the right to mount."""
    mounted = []

    def mount(name, size="2m", options="rw"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small disk (root on Linux)")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Use up a small disk to its last byte."""
    assert os.path.ismount(folder) and os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize <= 8 << 20
    with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


def command(name, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"iwsft_control.{name}", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip


def sweeping(results, stages, *options, methods=("bc", "sft")):
    where = ["--results", results, "--stages", stages, "--workers", "1", "--seeds", "0"]
    return command("sweep", "--tasks", TASK, "--methods", *methods, *OPTIONS, *where, *options)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_earlier_results_stay(disk, tmp_path):
    """Of results and stages: the sweep ends by one sentence, and goes on when there is room."""
    full = disk("full")
    assert sweeping(full / "results", full / "stages", methods=("sft",)).returncode == 0
    before = {p: p.read_bytes() for p in full.rglob("*") if p.is_file()}
    assert before
    fill(full)
    answer = sweeping(full / "results", full / "stages")
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr and answer.stderr.count("error: ") == 1
    assert "No space left on device" in answer.stderr and "space left" in answer.stderr
    assert {p: p.read_bytes() for p in before} == before
    drawn = command(
        "table", full / "results", "--quick", "--baseline", "sft", "--focus", "sft", "--out", full / "table"
    )
    assert drawn.returncode == 2 and "No space left on device" in drawn.stderr and "Traceback" not in drawn.stderr
    (full / "ballast").unlink()
    assert sweeping(full / "results", full / "stages").returncode == 0
    assert sweeping(tmp_path / "results", tmp_path / "stages").returncode == 0
    assert found(full / "results") == found(tmp_path / "results")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["full", "read-only"])
def test_a_cache_that_cannot_be_written_stops_nothing(disk, tmp_path, monkeypatch, way):
    """Neither that of arrays and programs nor the folder of stages: what depends on these gets them from memory."""
    cache = disk("cache", "256k", "ro" if way == "read-only" else "rw")
    if way == "full":
        fill(cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    answer = sweeping(tmp_path / "results", cache / "stages")
    assert answer.returncode == 0, answer.stderr
    assert "finished stages are not kept" in answer.stdout
    assert "3 of 3 stages are done" in answer.stdout or "2 of 2 stages are done" in answer.stdout
    assert not list(cache.rglob("*.safetensors"))
    assert sweeping(tmp_path / "b", tmp_path / "stages").returncode == 0
    assert found(tmp_path / "results") == found(tmp_path / "b")


def test_stages_that_cannot_be_written_stop_no_sweep(tmp_path, monkeypatch, capsys):
    """The same without a disk: the folder would lie under a file."""
    (tmp_path / "file").touch()
    pools = {"processes": processes.Processes, "here": in_this_process}
    for name, pool in pools.items():
        monkeypatch.setattr(processes, "Processes", pool)
        sweep.main(plan(tmp_path, name, methods=("bc", "sft"), stages=tmp_path / "file" / "stages"))
        assert "finished stages are not kept" in capsys.readouterr().out
    assert len(found(tmp_path / "here")) == 2
    assert found(tmp_path / "processes") == found(tmp_path / "here")


def test_results_that_cannot_be_written_are_said_before_anything_is_trained(disk):
    for options in ("rw", "ro"):
        folder = disk(options, "64k", options)
        fill(folder)  # which a read-only one does not let itself be
        with pytest.raises(UserError, match=r"cannot write into .*with space left"):
            console.writable(folder)
        assert not list(folder.glob(".writable*"))


def test_data_sets_on_a_full_disk(disk, monkeypatch):
    """HDF5 has errors of its own where a disk is full; nothing half-written stays."""
    full = disk("data", "64k")
    episodes = make_episodes((4000, 4000))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(full))
    with pytest.raises(UserError, match=r"cannot write .*No space left.*MINARI_DATASETS_PATH elsewhere"):
        minari_files.write_minari("t/x/y-v0", episodes, "d4rl/Hopper-v2", {})
    with pytest.raises(UserError, match=r"cannot write .*No space left.*free some space"):
        packed.pack(full / "x.hdf5", episodes, {})
    with pytest.raises(UserError, match=r"No space left on device.*free some space"):
        files.save_pytree(full / "y", {"a": np.ones(100_000)})
    assert not [p for p in full.rglob("*") if p.is_file()]


LIMITED = """
import resource, sys
from iwsft_control import sweep
from iwsft_control.base import console
console.PROBE = 1
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
sweep.cli()
"""


@pytest.mark.slow
def test_files_that_may_not_grow_are_one_sentence(tmp_path):
    """A quota, as far as a process can have one: no file larger than 500 bytes."""
    where = ["--results", tmp_path / "results", "--stages", tmp_path / "stages", "--workers", "1", "--seeds", "0"]
    answer = subprocess.run(
        [sys.executable, "-c", LIMITED, "--tasks", TASK, "--methods", "sft", *OPTIONS, *map(str, where)],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert answer.returncode == 2, answer.stderr
    assert "error: cannot write" in answer.stderr and "Traceback" not in answer.stderr
    assert not [p for p in Path(tmp_path / "results").rglob("*") if p.is_file()]


def test_tables_beside_a_sweep_see_whole_files(tmp_path, one_process, undrawn):
    """A table of a folder that is being written: files appear as a whole or not at all."""
    sweep.main(plan(tmp_path, methods=("bc",)))
    for name in (".bc-seed1.json.abc", "x.safetensors"):  # what a killed process leaves
        (tmp_path / "a" / TASK / name).write_text("{")
    table.main(table.TableConfig((tmp_path / "a",), tmp_path / "out", focus="bc", quick=True))
    assert (tmp_path / "out/table.md").is_file()
