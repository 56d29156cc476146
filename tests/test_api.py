"""What Python code may rely on: names, policies that know what they are, results as a table, videos, trackers."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from threadpoolctl import threadpool_info, threadpool_limits

import iwsft_control
from iwsft_control import __main__, run, video
from iwsft_control.__main__ import COMMANDS
from iwsft_control.base import bounds, console
from iwsft_control.base.errors import UserError
from iwsft_control.base.files import save_pytree
from iwsft_control.benchmark import results, track
from iwsft_control.configs.critic import CriticConfig
from iwsft_control.configs.curation import CurationConfig
from iwsft_control.configs.importance import ImportanceConfig
from iwsft_control.configs.iql import IQLConfig
from iwsft_control.configs.supervised import PolicyConfig
from iwsft_control.envs import tasks
from iwsft_control.envs import video as rendering
from iwsft_control.methods import registry
from iwsft_control.networks import policies
from tests.test_run import ID, command, config, small


class Supports(Protocol):
    """One that isinstance cannot be asked of."""

    x: int


def layers(observation_dim=11, action_dim=3):
    rng = np.random.default_rng(0)
    return {
        "Dense_0": {
            "kernel": rng.normal(size=(observation_dim, 8)).astype(np.float32),
            "bias": np.zeros(8, np.float32),
        },
        "Dense_1": {"kernel": rng.normal(size=(8, action_dim)).astype(np.float32), "bias": np.zeros(3, "f4")},
    }


@pytest.fixture
def policy_file(tmp_path):
    path = tmp_path / "policy.safetensors"
    save_pytree(path, {"params": {"net": layers()}}, {"task": "hopper-medium-replay", "method": "bc", "score": 12.5})
    return path


def test_every_public_name_is_there_and_typed():
    assert all(getattr(iwsft_control, name) is not None for name in iwsft_control.__all__)
    assert set(iwsft_control.__all__) <= set(dir(iwsft_control))
    assert (Path(iwsft_control.__file__).parent / "py.typed").is_file()


def test_a_policy_says_what_it_is(tmp_path):
    small()
    run.main(config(tmp_path, method=("bc",), seeds=(3,), track="csv"))
    (path,) = (tmp_path / "results").rglob("*.safetensors")
    policy, result = iwsft_control.load_policy(path), results.read(path.with_suffix(".json"))
    assert (policy.task, policy.method, policy.seed, policy.dataset) == (ID, "bc", 3, ID)
    assert policy.score == result.normalised_score and policy.commit == result.git_commit
    assert policy.observation_dim == 11

    rows = list(csv.DictReader((tmp_path / "results" / "track.csv").read_text().splitlines()))
    assert tuple(rows[0]) == track.COLUMNS
    assert {row["run"] for row in rows} == {f"{ID}/bc/seed3"}
    assert [row["name"] for row in rows] == ["loss", "normalised_score"]
    assert float(rows[0]["value"]) == pytest.approx(result.diagnostics["training"]["loss"][0])
    assert float(rows[1]["value"]) == result.normalised_score


def test_the_command_finds_modules_of_the_present_folder_after_all_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["iwsft", "table", "nowhere"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert sys.path[-1] == str(tmp_path) and "nowhere" in capsys.readouterr().err


OWN_KIND = """
import dataclasses
from iwsft_control.methods import iql
from iwsft_control.networks import policies

policies.KINDS["standing"] = lambda params, layout: policies.as_policy(lambda observations: 0 * observations[:, :3])
METHOD = dataclasses.replace(iql.METHOD, name="standing", option="standing", stream=None)
"""


def test_a_video_of_a_kind_of_policy_that_a_method_file_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(policies, "KINDS", {**policies.KINDS})
    monkeypatch.setattr(registry, "_cards", {**registry._cards})
    monkeypatch.setattr(registry, "_files", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "policy.safetensors"
    save_pytree(path, {"x": np.zeros(1)}, {"task": "hopper-medium-replay", "policy": {"kind": "standing"}})
    seen = []
    monkeypatch.setattr(rendering, "record_video", lambda policy, *rest, **options: seen.append(policy) or 0.0)
    with pytest.raises(UserError, match="unknown kind of policy 'standing'"):
        video.main(video.VideoConfig(path, out=tmp_path / "a.gif"))
    (tmp_path / "standing.py").write_text(OWN_KIND)
    video.main(video.VideoConfig(path, out=tmp_path / "a.gif", method_file=tmp_path / "standing.py"))
    actions, _ = seen[0].act(seen[0].initial(2), np.ones((2, 11), np.float32), np.random.default_rng(0))
    assert seen[0].kind == "standing" and actions.tolist() == [[0.0] * 3] * 2


def test_an_episode_whose_reset_seed_cannot_be_is_named_by_its_option():
    with pytest.raises(UserError, match=r"^--episode must be \d+ at most, not 4294967295"):
        video.main(video.VideoConfig(Path("hopper-medium-replay"), episode=2**32 - 1))


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("bc", {"data": "hopper-medium-replay"}, r"data must be a data set: load\('hopper-medium-replay'\) gives"),
        ("bc", {"seeds": 3}, r"seeds=\[3\]"),
        ("iql", {"iql": {"beta": 1}}, "iql must be of class IQLConfig"),
        ("td3-bc", {"td3_bc": IQLConfig()}, "td3_bc must be of class TD3BCConfig"),
        ("bc", {"iql": IQLConfig(beta=1.0)}, "^iql.beta has no effect: iql is not among the methods"),
        ("iw-sft-q", {"quality": "return", "critic": CriticConfig(steps=1)}, "^critic.steps has no effect"),
        ("bc", {"quality": "return"}, "^quality has no effect"),
        (
            "sft-q",
            {"quality": "return", "curation": CurationConfig(q_unit="transition")},
            r"^curation.q_unit has no effect: none of sft-q \(by q\), iw-sft-q \(by q\) is",
        ),
        (
            "bc",
            {"importance": ImportanceConfig(effective_sample_size=0.3)},
            "has no effect: none of iw-sft, iw-sft-q is",
        ),
        ("bc", {"pql": 1}, "no such group of options: pql"),
    ],
)
def test_what_train_does_not_do_is_refused_before_it_begins(method, options, sentence):
    data = iwsft_control.load("hopper-medium-replay")
    with pytest.raises(UserError, match=sentence):
        iwsft_control.train(method, **{"data": data, "quick": True, "quiet": True} | options)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (PolicyConfig(hidden=[256, 256]), r"^policy.hidden must be a tuple of whole numbers, not \[256, 256\]"),
        (PolicyConfig(hidden=(256.0,)), "^policy.hidden must be a tuple of whole numbers"),
        (PolicyConfig(bc_steps=1e4), "^policy.bc_steps must be a whole number, not 10000.0"),
        (PolicyConfig(bc_learning_rate="fast"), "^policy.bc_learning_rate must be a number, not 'fast'"),
        (PolicyConfig(bc_learning_rate=True), "^policy.bc_learning_rate must be a number, not True"),
        (PolicyConfig(length_weighted=1), "^policy.length_weighted must be True or False, not 1"),
    ],
)
def test_the_types_of_a_configuration_are_checked(config, sentence):
    with pytest.raises(UserError, match=sentence):
        iwsft_control.train("bc", iwsft_control.load("hopper-medium-replay"), quick=True, quiet=True, policy=config)


@pytest.mark.parametrize(
    ("hint", "good", "bad", "words"),
    [
        (Literal["clip", "none"], ("clip",), ("clap", 1), "'clip' or 'none'"),
        (float | None, (1, 0.5, None), ("x", True), "a number or None"),
        (tuple[float, float], ((0, 1.5),), ((1.0,), (1, 2, 3), [1, 2]), "a tuple (a number, a number)"),
        (Annotated[tuple[int, ...], "b"], ((), (1, 2)), ((1.5,), 3), "a tuple of whole numbers"),
        (str, ("",), (b"", 1), "text"),
        (Path, (Path("x"),), ("x",), "of class Path"),
        (Any, (1, "x", None), (), "anything"),
        (tuple[Any, ...], ((1, "x"),), ([1],), "a tuple of anything"),
        (tuple, ((1, 2), ()), ([1],), "of class tuple"),
        (Supports, (3,), (), "of class Supports"),
    ],
)
def test_what_a_type_holds(hint, good, bad, words):
    assert all(bounds.is_of(value, hint) for value in good)
    assert not any(bounds.is_of(value, hint) for value in bad)
    assert bounds.in_words(hint) == words


class WithoutMemory:
    """What other packages call a policy: act(observations), and no initial(n)."""

    def act(self, observations):
        return np.zeros((len(observations), 3))


@pytest.mark.parametrize(
    "policy", [gym.make("Pendulum-v1"), 3, None, "hopper-medium-replay", WithoutMemory(), WithoutMemory]
)
def test_what_does_not_act_is_no_policy(policy):
    with pytest.raises(UserError, match=r"does not act; give a policy \(of a run, run.policy\)"):
        iwsft_control.evaluate(policy, "hopper-medium-replay", episodes=1)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("Nowhere-v0", "the environment Nowhere-v0 cannot be made"),
        ("no_such_module:Env-v0", "the environment no_such_module:Env-v0 cannot be made .*install the package"),
        (3, "give a data set, a task or a Gymnasium id to play in, not a int"),
    ],
)
def test_what_cannot_be_played_is_said(data, sentence):
    with pytest.raises(UserError, match=sentence):
        iwsft_control.evaluate(lambda o: np.zeros((len(o), 3)), data, episodes=1)


def test_a_video_of_an_environment_without_a_time_limit_ends(monkeypatch, tmp_path):
    """Where its evaluation ends, and a seed that cannot be is no fault of the display."""
    monkeypatch.setattr(rendering, "_frame", lambda env: np.zeros((2, 2, 3), np.uint8))
    monkeypatch.setattr(rendering, "_drawable", lambda environment, size: gym.make(environment))
    endless = EnvSpec("Endless-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv")
    still = lambda o: np.zeros((len(o), 1))  # noqa: E731
    _, _, total = rendering.play(still, endless)
    assert total == pytest.approx(iwsft_control.evaluate(still, endless, episodes=1)[0])  # of 1,000 steps
    for seed in (-1, 0.5, None):
        with pytest.raises(UserError, match="seed must be a whole number between 0 and"):
            iwsft_control.record_video(still, endless, tmp_path / "a.gif", seed=seed)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"task": "hopper-medium-replay", "reference_scores": 3234}, "reference_scores must be two numbers"),
        ({"task": 3}, "task must be a name, not 3"),
        ({"task": "hopper-medium-replay", "dataset": 3}, "dataset must be a name, not 3"),
        (
            {"task": "walker2d-medium-replay", "dataset": "iwsft/hopper/medium-replay-v1"},
            "^dataset iwsft/hopper/medium-replay-v1 is of d4rl/Hopper-v2, task walker2d-medium-replay of",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said(arguments, sentence):
    """Data of another body under a task's name would take its settings, and its label in every result."""
    with pytest.raises(UserError, match=sentence):
        iwsft_control.load(**arguments)


@pytest.mark.parametrize("seeds", ["0-9", ["0"], [0.5], [1.0], [True], (s for s in (0, 0))])
def test_seeds_are_different_whole_numbers(seeds):
    small()
    with pytest.raises(UserError, match="seeds"):
        iwsft_control.train("bc", iwsft_control.load(dataset=ID), seeds=seeds, quick=True, quiet=True)


@pytest.mark.parametrize("episodes", [0, -1, 2.0, True, np.int64(0)])
def test_episodes_are_a_whole_number(episodes):
    with pytest.raises(UserError, match="episodes must be a whole number above zero"):
        iwsft_control.evaluate(lambda o: np.zeros((len(o), 3)), "hopper-medium-replay", episodes=episodes)


def test_the_policy_of_a_run_is_that_of_its_file(tmp_path):
    """With all that is known of it, and the sentence for observations of another size."""
    small()
    tiny = PolicyConfig(hidden=(8,), bc_steps=20, batch_size=16)
    data, places = iwsft_control.load(dataset=ID), {"store": tmp_path / "kept", "results": tmp_path / "out"}
    (run_,) = iwsft_control.train("bc", data, seeds=[3], quick=True, quiet=True, policy=tiny, **places)
    (path,) = (tmp_path / "out").rglob("*.safetensors")
    loaded, states = iwsft_control.load_policy(path), data.observations[:7]
    for name in ("kind", "task", "method", "seed", "dataset", "score", "commit", "observation_dim"):
        assert getattr(run_.policy, name) == getattr(loaded, name), name
    np.testing.assert_array_equal(run_.policy(states), loaded(states))
    with pytest.raises(UserError, match="takes observations of 11 numbers, these have 4"):
        run_.policy(np.zeros((2, 4), np.float32))


def test_seeds_may_be_of_numpy_or_a_generator(tmp_path):
    small()
    data, tiny = iwsft_control.load(dataset=ID), PolicyConfig(hidden=(8,), bc_steps=20, batch_size=16)
    for seeds in (np.arange(2), (s for s in (0, 1))):
        runs = iwsft_control.train("bc", data, seeds=seeds, quick=True, quiet=True, policy=tiny, store=tmp_path)
        assert [run.result.seed for run in runs] == [0, 1]


def test_folders_may_be_text_and_an_environment_a_task(tmp_path):
    small()
    data = iwsft_control.load(dataset=ID)
    folders = {"store": str(tmp_path / "stages"), "results": str(tmp_path / "results")}
    small_policy = PolicyConfig(hidden=(8,), bc_steps=20, batch_size=16)
    (run,) = iwsft_control.train("bc", data, quick=True, quiet=True, policy=small_policy, iql=IQLConfig(), **folders)
    assert list((tmp_path / "results").rglob("*.json")) and list((tmp_path / "stages").iterdir())
    returns = iwsft_control.evaluate(run.policy, "hopper-medium-replay", episodes=np.int64(2))
    np.testing.assert_array_equal(returns, iwsft_control.evaluate(run.policy, "d4rl/Hopper-v2", episodes=2))


@pytest.mark.parametrize("task", ["hopper-medium-replay", "halfcheetah-medium-replay", "walker2d-medium-replay"])
def test_a_policy_comes_with_the_package(task, monkeypatch, tmp_path):
    """Found by its task, of the default method and of one seed, and it runs as its score says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / task).mkdir()  # as a run makes one in its folder of results
    policy = iwsft_control.load_policy(task)
    assert (policy.task, policy.method, policy.seed) == (task, "iw-sft-q", 10)
    environment = tasks.parse_task(task).environment
    assert policy.dataset == tasks.parse_task(task).reconstruction_id and policy.commit and policy.score
    returns = iwsft_control.evaluate(policy, environment.env_id, episodes=10)
    score = tasks.normalise(returns.mean(), environment.ref_min_score, environment.ref_max_score)
    error = 100 * returns.std(ddof=1) / 10**0.5 / (environment.ref_max_score - environment.ref_min_score)
    assert abs(score - policy.score) < 4 * error + 1
    monkeypatch.setattr(rendering, "_frame", lambda env: np.zeros((2, 2, 3), np.uint8))
    monkeypatch.setattr(rendering, "_drawable", lambda environment, size: gym.make(environment))
    _, _, total = rendering.play(policy, environment.env_id)
    assert total == pytest.approx(returns[0], rel=1e-9)  # its video shows the evaluation's first episode


def test_a_wrong_observation_names_both_sizes(policy_file):
    policy = iwsft_control.load_policy(policy_file)
    assert policy(np.zeros((2, 11))).shape == (2, 3) and policy(np.zeros(11)).shape == policy([0.0] * 11).shape == (3,)
    with pytest.raises(UserError, match="a policy is loaded from a file, or by the name of a task, not from None"):
        iwsft_control.load_policy(None)
    for observations in (np.zeros(17), np.zeros((2, 17))):
        with pytest.raises(UserError, match="observations of 11 numbers, these have 17"):
            policy(observations)
    with pytest.raises(UserError, match="observations of 11 numbers, these have 17"):
        iwsft_control.evaluate(policy, "d4rl/Walker2d-v2", episodes=1)


def test_a_random_policy_is_not_called():
    policy = policies.TrainedPolicy(policies.SampledTanhGaussian(layers()), "sampled-tanh-gaussian")
    with pytest.raises(UserError, match="use its initial"):
        policy(np.zeros(11))


def test_wrong_paths_are_called_so(tmp_path, capsys, monkeypatch):
    (tmp_path / "x.py").write_text("print(1)")
    with pytest.raises(UserError, match=r"x.py is no policy; give the .safetensors file") as error:
        iwsft_control.load_policy(tmp_path / "x.py")
    assert "delete" not in str(error.value)
    with pytest.raises(UserError, match="it is a file"):
        console.writable(tmp_path / "x.py")
    monkeypatch.setattr(sys, "argv", ["d4rl", "import", "missing.hdf5"])
    from iwsft_control import d4rl

    with pytest.raises(SystemExit):
        d4rl.cli()
    assert "missing.hdf5 does not exist" in capsys.readouterr().err


def test_results_as_a_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    from tests.test_report import make_run

    for method, seed in (("iql", 1), ("bc", 2), ("bc", 0)):
        results.write(tmp_path / "runs" / f"{method}{seed}.json", make_run(method=method, quality=None, seed=seed))
    table = iwsft_control.load_results(tmp_path / "runs")
    again = iwsft_control.load_results(tmp_path / "runs", tmp_path / "runs" / ".." / "runs")
    assert len(again) == len(table)  # one folder, named in two ways
    assert isinstance(table, pandas.DataFrame)
    assert list(zip(table.method, table.seed, strict=True)) == [("bc", 0), ("bc", 2), ("iql", 1)]
    one = results.read(tmp_path / "runs" / "iql1.json")
    assert table.score.iloc[2] == one.normalised_score and table.episode_returns.iloc[2] == one.episode_returns
    with pytest.raises(UserError, match="does not exist"):
        iwsft_control.load_results(tmp_path / "nowhere")


def draws() -> bool:
    """Whether something draws here, asked in a process of its own: MuJoCo looks at MUJOCO_GL once."""
    code = (
        "import iwsft_control.envs.video as v; import numpy as np; import iwsft_control; "
        "v.play(lambda o: np.zeros((1, 3)), 'd4rl/Hopper-v2', steps=1, size=32)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def drawn(command: list[str]) -> subprocess.CompletedProcess[str]:
    """What a command that draws answers; the test is skipped if that is because nothing draws here."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 and not draws():
        pytest.skip("nothing draws here")
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("kind", ["gif", pytest.param("mp4", marks=pytest.mark.slow)])
def test_a_video_shows_the_episode(policy_file, tmp_path, kind):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    out = tmp_path / f"hop.{kind}"
    arguments = ["video", str(policy_file), "--out", str(out), "--steps", "9", "--size", "64"]
    done = drawn([sys.executable, "-m", "iwsft_control", *arguments])
    assert "bc in hopper-medium-replay: return" in done.stdout
    if kind == "mp4":
        frames, seconds = ffmpeg.count_frames_and_secs(str(out))  # the start and every fourth of 9 steps of 8 ms
        assert 2 <= frames <= 3 and seconds == pytest.approx(frames * 0.032, abs=0.01)  # ffmpeg may drop the last
    else:
        import imageio.v3 as imageio

        pictures = imageio.imread(out)  # a GIF drops what is equal
        assert pictures.shape[1:] == (64, 64, 3) and 2 <= len(pictures) <= 3
        assert pictures[0].std() > 10  # a picture, not a black page
    assert [p.name for p in tmp_path.iterdir() if p.suffix == out.suffix or p.name.startswith(".")] == [out.name]


def test_the_picture_follows_the_body():
    """Fifty metres away it is in the middle of the picture still."""
    code = (
        "import gymnasium as gym; import numpy as np; import iwsft_control; from iwsft_control.envs import video; "
        "video.choose_renderer(); "
        "env = gym.make('d4rl/Hopper-v2', render_mode='rgb_array', width=64, height=64); video.follow(env); "
        "env.reset(seed=0); state = env.unwrapped.data.qpos.copy(); state[0] += 50; "
        "env.unwrapped.set_state(state, env.unwrapped.data.qvel); frame = video._frame(env).astype(int); "
        "body = frame[..., 0] - frame[..., 2] > 25; print(body.sum(), np.nonzero(body)[1].mean())"
    )
    done = drawn([sys.executable, "-c", code])
    pixels, column = map(float, done.stdout.split())
    assert pixels > 20 and 24 < column < 40


def test_a_video_is_of_what_would_be_evaluated(monkeypatch, tmp_path):
    """In the same environment, with one thread for its products, and with the same refusal of actions that are none."""
    seen, threads = [], set()
    monkeypatch.setattr(rendering, "_frame", lambda env: np.zeros((2, 2, 3), np.uint8))
    monkeypatch.setattr(rendering, "write", lambda path, frames, seconds: seen.append(len(frames)))
    monkeypatch.setattr(rendering, "_drawable", lambda environment, size: gym.make(environment))
    small()
    data = iwsft_control.load(dataset=ID)

    def still(observations):
        threads.update(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return np.zeros((len(observations), 3))

    with threadpool_limits(2, "blas"):
        totals = [
            iwsft_control.record_video(still, each, tmp_path / "a.gif") for each in (data, "hopper-medium-replay")
        ]
    assert threads == {1}
    assert totals == [pytest.approx(iwsft_control.evaluate(still, data, episodes=1)[0])] * 2 and len(seen) == 2
    listed = lambda o: [[0.0] * 3] * len(o)  # noqa: E731 (no array)
    assert iwsft_control.evaluate(listed, data, episodes=1)[0] == pytest.approx(totals[0])
    with pytest.raises(UserError, match=r"actions at step 0 are (no array|of shape \(1,\))"):
        iwsft_control.evaluate(lambda o: [[0.0], [0.0, 0.0]], data, episodes=1)
    with pytest.raises(UserError, match=r"actions at step 0 are no numbers"):
        iwsft_control.evaluate(lambda o: [["0", "0", "0"]] * len(o), data, episodes=1)
    for actions in (2.0, np.nan):
        with pytest.raises(UserError, match="policy, reset seed 1000000: the action at step 0 is"):
            iwsft_control.record_video(lambda o, a=actions: np.full((len(o), 3), a), data, tmp_path / "a.gif")


def test_what_cannot_be_drawn_is_one_sentence(policy_file, tmp_path, monkeypatch):
    policy = iwsft_control.load_policy(policy_file)
    with pytest.raises(UserError, match=r"is not .mp4 or .gif"):
        iwsft_control.record_video(policy, "d4rl/Hopper-v2", tmp_path / "a.avi")
    with monkeypatch.context() as without:
        without.setattr(rendering, "encodes_mp4", lambda: False)
        without.setattr(rendering, "play", lambda *_, **__: pytest.fail("it looks before it plays"))
        with pytest.raises(UserError, match=r"nothing here encodes .*a.mp4; pip install 'imageio\[ffmpeg\]'"):
            iwsft_control.record_video(policy, "d4rl/Hopper-v2", tmp_path / "a.mp4")
    for options, sentence in (({"size": 0}, "size must be a whole number above zero: 0"), ({"steps": 2.5}, "steps")):
        with pytest.raises(UserError, match=sentence):
            iwsft_control.record_video(policy, "d4rl/Hopper-v2", tmp_path / "a.gif", **options)
    make = rendering.gym.make

    def without_display(*arguments, **options):
        if "render_mode" in options:
            raise RuntimeError("no display")
        return make(*arguments, **options)

    with monkeypatch.context() as without:
        told = "got an unexpected keyword argument 'render_mode'"
        without.setattr(rendering, "_drawable", lambda *_: (_ for _ in ()).throw(TypeError(told)))
        with pytest.raises(UserError, match=r"render_mode'\); it must have the render mode rgb_array\.$"):
            iwsft_control.record_video(policy, "d4rl/Hopper-v2", tmp_path / "a.gif")
    monkeypatch.setattr(rendering.gym, "make", without_display)
    with pytest.raises(UserError, match=r"nothing here draws d4rl/Hopper-v2 .*no display.*MUJOCO_GL"):
        iwsft_control.record_video(policy, "d4rl/Hopper-v2", tmp_path / "a.gif")


def test_a_package_that_draws_and_is_not_there_is_named(tmp_path, monkeypatch):
    """Pendulum is drawn by pygame: no driver of a display would help."""

    def without_pygame(environment, size):
        raise gym.error.DependencyNotInstalled("pygame is not installed, run `pip install pygame`")

    monkeypatch.setattr(rendering, "_drawable", without_pygame)
    with pytest.raises(UserError, match=r"draws Pendulum-v1 .*pip install pygame`\); install that\.$"):
        iwsft_control.record_video(lambda o: np.zeros((len(o), 1)), "Pendulum-v1", tmp_path / "a.gif")


def test_a_policys_file_names_no_environment_to_import(policy_file, tmp_path, monkeypatch):
    """An id may name a module; only a user may give one."""
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for task in ("stranger:Hopper-v0", "my/hopper/noisy-v0"):
        with pytest.raises(UserError, match="is no task; give --env"):
            tasks.environment_of_policy(policy_file, task, "give --env")
    assert tasks.environment_of_policy(policy_file, "hopper-medium-replay", "") == "d4rl/Hopper-v2"
    assert tasks.environment_of("hopper_medium_replay-v2") == "d4rl/Hopper-v2"
    assert tasks.environment_of("Pendulum-v1") == "Pendulum-v1"
    policy = iwsft_control.load_policy(policy_file)
    for name in ("my/hopper/noisy-v0", "Nowhere-v0", "no_such_module:Env-v0"):
        with pytest.raises(UserError, match=r"the environment .* cannot be made"):
            iwsft_control.record_video(policy, name, tmp_path / "a.gif")


@pytest.mark.parametrize(
    ("found", "present", "wanted"),
    [({"EGL", "OSMesa"}, {}, "egl"), ({"OSMesa"}, {}, "osmesa"), (set(), {}, None), ({"EGL"}, {"DISPLAY": ":0"}, None)],
)
def test_the_renderer_is_what_is_there(found, present, wanted, monkeypatch):
    monkeypatch.setattr(rendering.sys, "platform", "linux")
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: name if name in found else None)
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in present.items():
        monkeypatch.setenv(name, value)
    rendering.choose_renderer()
    assert rendering.os.environ.get("MUJOCO_GL") == wanted


def test_trackers(tmp_path):
    pytest.importorskip("tensorboardX")
    tracker = track.open_tracker("tensorboard", tmp_path)
    tracker.log("task/bc/seed0", 500, {"loss": 1.5})
    tracker.close()
    (events,) = (tmp_path / "tensorboard" / "task" / "bc" / "seed0").iterdir()
    assert b"loss" in events.read_bytes()
    entry = {"step": 5, "loss": [1.0, 2.0], "weight_quantiles": [[0.0], [1.0]], "temperature": [3.0, None]}
    assert track.scalars(entry, 1) == {"loss": 2.0}
    with pytest.raises(UserError, match="cannot write"):
        track.open_tracker("csv", tmp_path / "missing")


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    small()
    with pytest.raises(UserError, match=r"pip install wandb"):
        run.main(config(tmp_path, method=("bc",), track="wandb"))
    assert not list((tmp_path / "results").rglob("*.json"))


def test_every_command_answers_to_help():
    assert set(COMMANDS) >= {"run", "sweep", "table", "video", "collect", "accept", "d4rl"}
    assert command("--help").returncode == 0
