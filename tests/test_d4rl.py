"""Importing D4RL's legacy files: real pieces in the legacy layout, broken ones, and downloads that stop."""

import functools
import hashlib
import http.server
import json
import threading

import h5py
import minari
import numpy as np
import pytest

from iwsft_control.base.errors import UserError
from iwsft_control.datasets import d4rl_files, facts, load, minari_files, types
from iwsft_control.envs import tasks
from tests.conftest import make_episodes, real_piece

REPLAY = tasks.parse_task("hopper-medium-replay")


def legacy(path, arrays):
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    return path


def official(path):
    return d4rl_files.OfficialFile(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def synthetic():
    """Three episodes in the legacy layout: one terminal, one timeout, one trailing piece without a flag."""
    e = make_episodes((4, 3, 5))
    rows = types.state_rows(e.starts)
    flags = np.zeros((2, 12), bool)
    flags[0, 3] = flags[1, 6] = True
    return {
        "observations": e.observations[rows],
        "next_observations": e.observations[rows + 1],
        "actions": e.actions,
        "rewards": e.rewards,
        "terminals": flags[0],
        "timeouts": flags[1],
        "infos/qpos": e.qpos[rows].astype(np.float64),
        "infos/qvel": e.qvel[rows].astype(np.float64),
    }


@pytest.mark.parametrize("name", ["hopper", "halfcheetah", "walker2d", "ant"])
def test_real_piece(name, tmp_path):
    piece = real_piece(name)
    path = legacy(tmp_path / f"{name}_medium-v2.hdf5", {k: piece[k] for k in d4rl_files.KEYS})
    task = tasks.parse_task(f"{name}-medium")
    d4rl_files.import_file(path, task, official(path), None)
    data = load.load(task)
    assert data.id == f"D4RL/{name}/medium-v2"
    assert data.origin == "Minari"  # a piece is not D4RL's whole file
    place = minari_files.minari_path(data.id) / "data/metadata.json"
    known = d4rl_files.official_files()[d4rl_files.file_name(task)].sha256
    place.write_text(json.dumps(json.loads(place.read_text()) | {"source_sha256": known}))
    assert load.load(task).origin == "D4RL"
    for ours, theirs in (
        ("observations", "observations"),
        ("next_observations", "next_observations"),
        ("actions", "actions"),
        ("rewards", "rewards"),
        ("terminations", "terminals"),
    ):
        last = np.flatnonzero(piece["terminals"] | piece["timeouts"])
        # Inside an episode D4RL's next observation is the next row's; the final one is stored of its own.
        np.testing.assert_array_equal(getattr(data, ours), piece[theirs])
        assert set(last + 1) <= set(data.starts.tolist())
    assert minari.load_dataset(data.id)[0].infos["qpos"].dtype == np.float64
    spec = tasks.ENVIRONMENTS[name]
    assert (data.ref_min_score, data.ref_max_score) == (spec.ref_min_score, spec.ref_max_score)


def test_episodes_end_where_either_flag_is_set(tmp_path):
    arrays = synthetic()
    episodes = d4rl_files.read_legacy(legacy(tmp_path / "x.hdf5", arrays))
    np.testing.assert_array_equal(episodes.starts, [0, 4, 7, 12])
    np.testing.assert_array_equal(np.flatnonzero(episodes.terminations), [3])
    np.testing.assert_array_equal(np.flatnonzero(episodes.truncations), [6, 11])
    finals = episodes.observations[[4, 8, 14]]
    np.testing.assert_array_equal(finals, arrays["next_observations"][[3, 6, 11]])
    assert np.isnan(episodes.qpos[[4, 8, 14], 0]).all()
    np.testing.assert_array_equal(episodes.qpos[[4, 8, 14], 1:], finals[:, :5])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: a.pop("timeouts"), "lacks timeouts"),
        (lambda a: a.update(rewards=a["rewards"][:-1]), "lengths disagree"),
        (lambda a: a["actions"].__setitem__((2, 1), np.nan), "actions hold a NaN or infinity .row 2"),
        (lambda a: a["rewards"].__setitem__(5, np.inf), "rewards hold a NaN"),
        (lambda a: [a.update({k: v[:0]}) for k, v in list(a.items())], "no transitions"),
    ],
)
def test_broken_files(change, sentence, tmp_path):
    arrays = synthetic()
    change(arrays)
    path = legacy(tmp_path / "x.hdf5", arrays)
    with pytest.raises(UserError, match=sentence):
        d4rl_files.import_file(path, REPLAY, official(path), None)
    assert not minari_files.minari_path(REPLAY.d4rl_id).exists()


def test_truncated_and_foreign_files(tmp_path):
    path = legacy(tmp_path / "x.hdf5", synthetic())
    right = official(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="truncated"):
        d4rl_files.import_file(path, REPLAY, right, None)
    with pytest.raises(UserError, match="not a readable HDF5"):
        d4rl_files.read_legacy(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="sha256"):
        d4rl_files.import_file(path, REPLAY, right, None)


def test_the_facts_of_the_data_are_held_against_the_table(tmp_path):
    path = legacy(tmp_path / "x.hdf5", synthetic())
    with pytest.raises(UserError, match="12 transitions in 3 episodes"):
        d4rl_files.import_file(path, REPLAY, official(path), facts.D4RL_MEDIUM_REPLAY["hopper"])


def test_every_task_has_an_official_file():
    known = d4rl_files.official_files()
    assert {d4rl_files.file_name(tasks.parse_task(t)) for t in tasks.TASK_NAMES} == set(known)
    assert known["hopper_medium_replay-v2.hdf5"].size == 75_854_457
    assert all(len(f.sha256) == 64 for f in known.values())


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one body; honours Range unless told not to; may break off."""

    def __init__(self, *args, body, state, **kwargs):
        self.body, self.state = body, state
        super().__init__(*args, **kwargs)

    def do_GET(self):
        start = 0
        if "Range" in self.headers and self.state["ranges"]:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.state["requests"].append(start)
        rest = self.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        stop = self.state.pop("break_at", None)
        self.wfile.write(rest[:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    body, state = np.random.default_rng(0).bytes(3_000_000), {"requests": [], "ranges": True}
    with http.server.HTTPServer(("127.0.0.1", 0), functools.partial(Server, body=body, state=state)) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}/x", body, state
        http_server.shutdown()
        thread.join()


def expected_of(body):
    return d4rl_files.OfficialFile(len(body), hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize("ranges", [True, False])
def test_a_stopped_download_is_continued(server, tmp_path, ranges):
    url, body, state = server
    state |= {"break_at": 1_200_000, "ranges": ranges}
    target = tmp_path / "file.hdf5"
    with pytest.raises(UserError, match=r"kept and continued|truncated"):
        d4rl_files.download(url, target, expected_of(body))
    assert not target.exists()
    d4rl_files.download(url, target, expected_of(body))
    assert target.read_bytes() == body
    assert (state["requests"][1] > 0) == ranges
    d4rl_files.download(url, target, expected_of(body))
    assert len(state["requests"]) == 2  # what is there is not fetched again


def test_a_wrong_download_is_refused_and_removed(server, tmp_path):
    url, body, _ = server
    wrong = d4rl_files.OfficialFile(len(body), "0" * 64)
    with pytest.raises(UserError, match="sha256"):
        d4rl_files.download(url, tmp_path / "file.hdf5", wrong)
    assert list(tmp_path.glob("file*")) == []


def test_no_server(tmp_path):
    with pytest.raises(UserError, match="d4rl import FILE"):
        d4rl_files.download("http://127.0.0.1:9/x", tmp_path / "file.hdf5", d4rl_files.OfficialFile(10, "0" * 64))


def test_metadata_names_the_source(tmp_path):
    path = legacy(tmp_path / "hopper_medium_replay-v2.hdf5", synthetic())
    folder = d4rl_files.import_file(path, REPLAY, official(path), None)
    metadata = json.loads((folder / "data/metadata.json").read_text())
    assert metadata["source_sha256"] == official(path).sha256
    assert metadata["reconstruction"] is False
    assert "CC-BY-4.0" in metadata["description"]
