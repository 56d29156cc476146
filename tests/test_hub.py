"""The Hub's commands against a stand-in: folders in the place of repositories, and no network."""

import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import iwsft_control
from iwsft_control import hub
from iwsft_control.__main__ import main
from iwsft_control.base.errors import UserError
from iwsft_control.base.files import save_pytree
from iwsft_control.datasets import minari_files
from tests.conftest import SCORES, make_episodes
from tests.test_api import layers
from tests.test_run import ID, small


class StandIn:
    """What the commands use of huggingface_hub.HfApi."""

    def __init__(self, root: Path):
        self.root = root

    def _place(self, repository, kind):
        place = self.root / kind / repository
        if not place.is_dir():
            raise FileNotFoundError(f"404: no {kind} {repository}\nRequest ID: x")
        return place

    def create_repo(self, repository, repo_type, exist_ok):
        (self.root / repo_type / repository).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, repo_id, folder_path, path_in_repo, repo_type):
        shutil.copytree(folder_path, self._place(repo_id, repo_type) / path_in_repo, dirs_exist_ok=True)

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id, repo_type):
        shutil.copy(path_or_fileobj, self._place(repo_id, repo_type) / path_in_repo)

    def snapshot_download(self, repository, repo_type, allow_patterns, local_dir):
        place = self._place(repository, repo_type)
        for path in place.rglob("*"):
            name = path.relative_to(place).as_posix()
            if path.is_file() and name.startswith(allow_patterns[0].removesuffix("*")):
                (Path(local_dir) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, Path(local_dir) / name)

    def hf_hub_download(self, repository, name, repo_type, local_dir):
        return shutil.copy(self._place(repository, repo_type) / name, Path(local_dir) / name)


@pytest.fixture
def api(tmp_path, monkeypatch):
    made = StandIn(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=lambda: made))
    return made


@pytest.mark.parametrize("name", [ID, "mine-v0"])
def test_a_data_set_comes_back_as_it_was(api, tmp_path, monkeypatch, name):
    minari_files.write_minari(name, make_episodes(), "d4rl/Hopper-v2", SCORES)
    before = iwsft_control.load(dataset=name)
    assert hub.push(name, "hf://org") == f"hf://org/{name}"
    assert (api.root / "dataset/org" / name / "data/metadata.json").is_file()  # as Minari's remote keeps it
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    assert hub.pull(f"hf://org/{name}") == tmp_path / "elsewhere" / name
    after = iwsft_control.load(dataset=name)
    assert after.sha256 == before.sha256
    np.testing.assert_array_equal(after.observations, before.observations)
    assert minari_files.local_ids() == [name]
    with pytest.raises(UserError, match="is already in"):
        hub.pull(f"hf://org/{name}")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write into"):
        hub.pull(f"hf://org/{name}")


def test_a_policy_comes_back_as_it_was(api, tmp_path, monkeypatch, capsys):
    path, new = tmp_path / "mine.safetensors", tmp_path / "new"
    save_pytree(path, {"params": {"net": layers()}}, {"task": "hopper-medium-replay", "method": "bc"})
    path.with_suffix(".json").write_text("{}")
    address = "hf://me/policies/mine.safetensors"
    for arguments in (["push", str(path), "hf://me/policies"], ["pull", address, "--out", str(new)]):
        monkeypatch.setattr(sys, "argv", ["iwsft", *arguments])
        main()
    assert address in capsys.readouterr().out
    assert (api.root / "model/me/policies/mine.json").is_file()
    assert (new / "mine.safetensors").read_bytes() == path.read_bytes()
    assert [p.name for p in new.iterdir()] == ["mine.safetensors"]


def test_a_folder_for_a_data_set_is_refused(api, tmp_path):
    """It goes into the Minari root, whatever the folder."""
    with pytest.raises(UserError, match="--out is for policies; a data set goes into the local Minari root"):
        hub.pull(f"hf://org/{ID}", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_no_policy_is_not_kept(api, tmp_path):
    place = api.root / "model/me/policies"
    place.mkdir(parents=True)
    (place / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        hub.pull("hf://me/policies/bad.safetensors", tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(UserError, match="damaged"):
        hub.push(str(place / "bad.safetensors"), "hf://me/policies")


@pytest.mark.parametrize(
    ("what", "to", "sentence"),
    [
        (ID, "hf://org/name", "the data set keeps its own id"),
        (ID, "org", "is not the address of an organisation"),
        ("no/such-v0", "hf://org", "is neither a .safetensors file nor a data set"),
        ("no.safetensors", "hf://org/name", "does not exist"),
        ("no.safetensors", "hf://org", "repository of policies"),
        ("D4RL/hopper/medium-v2", "hf://org", "would stand for D4RL's own data"),
        ("iwsft/walker2d/medium-replay-v1", "hf://org", "comes with this package"),
        ("iwsft/walker2d/medium-v1", "hf://org", "would stand for data that this package collects"),
    ],
)
def test_what_cannot_be_pushed(api, what, to, sentence):
    small()
    with pytest.raises(UserError, match=sentence):
        hub.push(what, to)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("hf://org/absent/x-v0", "the Hub did not do it .FileNotFoundError: 404: no dataset org/absent.; check the"),
        ("hf://org/../../x-v0", "is not an address"),
        ("hf://org/there/x-v0", "there is no data set there/x-v0"),
        ("there/x-v0", "is not an address"),
        ("hf://org/x.safetensors", "is not the address of a policy"),
        ("hf://org/D4RL/hopper/medium-replay-v2", "would stand for D4RL's own data, unchecked; 'iwsft d4rl download'"),
        ("hf://org/iwsft/hopper/medium-replay-v1", "comes with this package, and another would stand in its place"),
        ("hf://org/iwsft/hopper/medium-v1", "would stand for data that this package collects, unchecked"),
    ],
)
def test_what_cannot_be_pulled(api, what, sentence):
    (api.root / "dataset/org/there").mkdir(parents=True)
    with pytest.raises(UserError, match=sentence) as error:
        hub.pull(what)
    assert "\n" not in str(error.value)


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    minari_files.write_minari("a/b-v0", make_episodes(), "d4rl/Hopper-v2", SCORES)
    with pytest.raises(UserError, match=r"pip install huggingface_hub"):
        hub.push("a/b-v0", "hf://org")
