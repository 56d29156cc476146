"""From the corpus to result files: pre-train, let pi_ref answer, curate, fine-tune, evaluate; nothing is done twice.

What a stage made is kept in a file whose name is a digest of all that it depends on (settings, seed, corpus, code,
versions, device, and the stages before it), as on the control side, so a killed sweep goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iwsft_control.base import bounds, errors, files
from iwsft_control.base.errors import require
from iwsft_control.base.snapshot import Snapshot
from iwsft_control.base.versions import version
from iwsft_control.benchmark import export, results, sources, store
from iwsft_control.datasets.transitions import Demonstrations
from iwsft_control.datasets.types import Dataset
from iwsft_control.learning import loop
from iwsft_control.learning.method import Artefact, Inputs, Method
from iwsft_control.sequences import critic, evaluation, generate, methods, model, task
from iwsft_control.sequences.evaluation import EvaluationConfig
from iwsft_control.sequences.methods import SequenceConfig
from iwsft_control.sequences.task import Task, Traces

CORPUS = 131_072  # answers
METRIC = "pass@1 in percent"
Report = Callable[[str, int], loop.Progress]  # (what, its steps) -> advance(steps done, what they logged)


class Job(NamedTuple):
    """One run: a row of the table, and a seed."""

    method: str
    quality: str | None
    seed: int

    @property
    def name(self) -> str:
        by = f" by {self.quality}" if self.quality else ""
        return f"seed {self.seed} {self.method}{by}"


def check_methods(names: Sequence[str]) -> None:
    """Refuse unknown, repeated and no methods.

    Raises:
        UserError: in these cases.
    """
    for name in names:
        known = list(methods.METHODS)
        require(name in known, f"unknown method {name!r} for token sequences: {errors.near(name, known)}")
    require(len(set(names)) == len(names) > 0, "name one or more different methods.")


def check(config: SequenceConfig, evaluated: EvaluationConfig, of: Task) -> None:
    """Refuse settings that cannot be run.

    Raises:
        UserError: a value out of its bounds, or sequences that are longer than the model.
    """
    for field in dataclasses.fields(config):
        bounds.check(getattr(config, field.name), field.name)
    bounds.check(evaluated, "evaluation")
    model.check_length(config.model, of)


def check_effects(config: SequenceConfig, evaluated: EvaluationConfig, of: Task, wanted: Sequence[Job]) -> None:
    """Refuse a setting that was changed and that no run depends on.

    Raises:
        UserError: there is one.
    """

    def configurations(settings: SequenceConfig) -> list[dict[str, Any]]:
        bench = Bench(of, settings, evaluated, False, Path(), lambda what, steps: lambda done, values: None)
        return [bench.configuration(job) for job in {job._replace(seed=0) for job in wanted}]

    given, names = configurations(config), ", ".join(dict.fromkeys(job.method for job in wanted))
    for group in dataclasses.fields(config):
        values = getattr(config, group.name)
        for field in dataclasses.fields(values):
            default = getattr(type(values)(), field.name)
            plain = dataclasses.replace(config, **{group.name: dataclasses.replace(values, **{field.name: default})})
            require(
                getattr(values, field.name) == default or configurations(plain) != given,
                f"--{group.name}.{field.name.replace('_', '-')} has no effect on {names}; leave it out.",
            )


def trial(config: SequenceConfig, evaluated: EvaluationConfig) -> tuple[SequenceConfig, EvaluationConfig]:
    """Settings of a trial of seconds."""

    def at_most(group: Any, **limits: int) -> Any:
        return dataclasses.replace(group, **{name: min(getattr(group, name), most) for name, most in limits.items()})

    shorter = dataclasses.replace(
        config,
        policy=at_most(config.policy, bc_steps=100, fine_tune_steps=20, batch_size=32),
        curation=at_most(config.curation, samples=512),
        critic=at_most(config.critic, steps=20),
    )
    return shorter, at_most(evaluated, problems=100, samples=1)


def jobs(names: Sequence[str], qualities: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Every run, seed by seed, so that a sweep that is cut short has whole seeds."""
    graded = {name: qualities if methods.METHODS[name].by_quality else (None,) for name in names}
    return [Job(name, quality, seed) for seed in seeds for name in names for quality in graded[name]]


def as_dataset(of: Task, name: str, traces: Traces, rewards: np.ndarray) -> Dataset:
    """Answers as the suite's data: a problem is a state, an answer an action that ends the episode."""
    prompts = traces.prompts.astype(np.float32)
    return Dataset(
        id=name,
        sha256=task.sha256(traces),
        origin="generated",
        environment=of.name,
        ref_min_score=0.0,
        ref_max_score=1.0,
        observations=prompts,
        actions=traces.answers.astype(np.float32),
        rewards=rewards,
        next_observations=prompts,  # nothing follows
        terminations=np.ones(len(rewards), bool),
        starts=np.arange(len(rewards) + 1),
        task=of.name,
    )


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all runs of a call share.

    Args:
        folder: of the stages.
        report: told of every loop before it begins; what it returns is told the steps as they are done.
    """

    task: Task
    config: SequenceConfig
    evaluation: EvaluationConfig
    quick: bool
    folder: Path
    report: Report

    @cached_property
    def corpus(self) -> Dataset:
        """The mixed-quality record, the same for every run."""
        traces = task.corpus(self.task, CORPUS)
        return as_dataset(self.task, f"sequences/{self.task.name}", traces, task.verify(*traces).reward)

    @cached_property
    def held_out(self) -> np.ndarray:
        """Prompts of the problems that every run is evaluated on: none of them in the corpus."""
        return task.held_out(self.task, self.evaluation.problems, self.corpus.observations.astype(np.int32))

    def configuration(self, job: Job) -> dict[str, Any]:
        """Every setting that a run depends on."""
        config, found = self.config, {"task": dataclasses.asdict(self.task)}
        found |= methods.record(job.method, config)
        if job.quality == "steps":
            found["curation"] |= {"step_strata": config.curation.step_strata}
        if job.quality == "q":
            found["curation"] |= {"q_strata": config.curation.q_strata}
            found["critic"] = dataclasses.asdict(config.critic)
        return files.through_json(found)

    # --- stages -------------------------------------------------------------------------------------------------------

    def _path(self, name: str, seed: int, depends: Any) -> Path:
        """Where the artefact of a stage is kept."""
        modules = (methods, critic, evaluation, loop)
        code = sorted({path for m in modules for path in sources.import_closure(Path(str(m.__file__)))})
        text = json.dumps(
            {
                "stage": name,
                "seed": seed,
                "depends": depends,
                "data": self.corpus.sha256,
                "quick": self.quick,
                "code": sources.code_version((*code, Path(__file__))),
                "versions": {p: version(p) for p in store.LEARNING},
                "device": store.device_kind(),
            },
            sort_keys=True,
        )
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        return self.folder / f"{self.task.name}-{name.replace(' ', '-')}-seed{seed}-{digest}.safetensors"

    def _kept(self, path: Path, make: Callable[[Snapshot], Artefact]) -> Artefact:
        """What a stage made: as it is kept, or made now."""
        try:
            arrays, record = files.load_arrays(path, sealed=True)
        except errors.UserError:
            snapshot = Snapshot(path.with_suffix(".unfinished"))
            made = make(snapshot)
            files.save_pytree(path, made.arrays, made.record)
            snapshot.remove()
            return made
        return Artefact(files.nest(arrays), record)

    def _train(
        self, method: Method, job: Job, data: Dataset, inputs: dict[str, Artefact], snapshot: Snapshot
    ) -> tuple[loop.Trained, dict[str, Any]]:
        own = self.config_of(method)
        prepared = method.prepare(own, Inputs(data, inputs, job.quality, (job.seed,)))
        trained = loop.train(
            method, own, prepared, (job.seed,), self.report(f"{job.name}: {method.name}", own.steps), snapshot=snapshot
        )
        diagnostics = dict(prepared.diagnostics[0]) if prepared.diagnostics else {}
        record = {
            "log": trained.logs[0],
            "diagnostics": diagnostics,
            "seconds": {method.name: round(snapshot.seconds, 3)},
        }
        return trained, record

    def config_of(self, method: Method) -> Any:
        """The configuration of a method: its class tells which of the steps are its own."""
        return method.config(**{f.name: getattr(self.config, f.name) for f in dataclasses.fields(self.config)})

    def bc(self, seed: int) -> Artefact:
        """pi_ref: ``params``."""
        job, method = Job("bc", None, seed), methods.METHODS["bc"]

        def make(snapshot: Snapshot) -> Artefact:
            trained, record = self._train(method, job, self.corpus, {}, snapshot)
            params = _first(trained.policy)
            return Artefact({"params": params}, record | self._evaluated(params, params, seed) | results.provenance())

        return self._kept(self._path("bc", seed, [self.configuration(job), self._protocol()]), make)

    def samples(self, seed: int) -> tuple[Dataset, Artefact]:
        """pi_ref's answers as data, and what is known of them."""
        bc, model_config = self.bc(seed), self.config.model
        count = self.config.curation.samples
        prompts = task.to_curate(self.task, count, seed, self.held_out)

        def make(snapshot: Snapshot) -> Artefact:
            advance = self.report(f"seed {seed}: answers of pi_ref", count)
            advance(0, {})
            key = jax.random.fold_in(jax.random.key(seed), methods.METHODS["bc"].random_stream)
            answers = generate.answers(model_config, bc.arrays["params"], prompts, self.task.answer_length, key)
            reference = _log_probs(model_config, bc.arrays["params"], prompts, answers)
            advance(count, {})
            return Artefact({"answers": answers, "log_reference": reference}, {"seconds": {}})

        depends = [self.configuration(Job("bc", None, seed)), count, self._protocol()]
        made = self._kept(self._path("samples", seed, depends), make)
        traces = Traces(prompts, made.arrays["answers"])
        found = task.verify(*traces)
        known = {
            "log_reference": made.arrays["log_reference"],
            "steps_right": found.steps_right,
            "thinks": found.thinks,
        }
        return as_dataset(self.task, f"{self.corpus.id}/pi-ref", traces, found.reward), Artefact(known, {})

    def critic(self, job: Job) -> Artefact:
        """The learned Q of pi_ref's answers: ``q``."""
        data, _ = self.samples(job.seed)
        inputs = {"bc": self.bc(job.seed)}

        def make(snapshot: Snapshot) -> Artefact:
            trained, record = self._train(critic.METHOD, job, data, inputs, snapshot)
            q = critic.scores(self.config, _first(trained.state.critic), data)
            right = data.rewards > 0
            record["diagnostics"] = {"q_right": float(q[right].mean()), "q_wrong": float(q[~right].mean())}
            return Artefact({"q": q}, record)

        depends = [self.configuration(job._replace(method="sft-q")), self._protocol()]
        return self._kept(self._path("critic", job.seed, depends), make)

    def fine_tuned(self, job: Job) -> Artefact:
        """The model of a run: ``params``, and its evaluation."""
        bc = self.bc(job.seed)

        def make(snapshot: Snapshot) -> Artefact:
            data, known = self.samples(job.seed)
            inputs = {"bc": bc, "samples": known}
            if job.quality == "q":
                inputs["critic"] = self.critic(job)
            trained, record = self._train(methods.METHODS[job.method], job, data, inputs, snapshot)
            if "critic" in inputs:
                record["diagnostics"] |= {"critic": inputs["critic"].record["log"]}
                record["diagnostics"] |= inputs["critic"].record["diagnostics"]
                record["seconds"] |= inputs["critic"].record["seconds"]
            params = _first(trained.policy)
            evaluated = self._evaluated(params, bc.arrays["params"], job.seed)
            return Artefact({"params": params}, record | evaluated | results.provenance())

        depends = [job.method, job.quality, self.configuration(job), self._protocol()]
        return self._kept(self._path(job.name.split(" ", 2)[2], job.seed, depends), make)

    def _protocol(self) -> dict[str, Any]:
        return dataclasses.asdict(self.evaluation)

    def _evaluated(self, params: Any, reference: Any, seed: int) -> dict[str, Any]:
        began = time.perf_counter()
        found = evaluation.evaluate(
            self.config.model, params, reference, self.evaluation, self.held_out, self.task.answer_length, seed
        )
        seconds = round(time.perf_counter() - began, 3)
        return {"returns": found.rewards.tolist(), "figures": found.figures, "evaluation_seconds": seconds}

    # --- results ------------------------------------------------------------------------------------------------------

    def run(self, job: Job, folder: Path) -> tuple[Path, results.RunResult]:
        """Do a run, where it is not done, and write its result file, where it is not there.

        Raises:
            DivergedError: a parameter or a loss is no longer finite.
            UserError: nothing is curated, or a folder cannot be written.
        """
        artefact = self.bc(job.seed) if job.method == "bc" else self.fine_tuned(job)
        record = artefact.record
        mean, error = results.score(np.array(record["returns"]), 0.0, 1.0)
        seconds = dict(record["seconds"])
        if job.method != "bc":
            seconds |= self.bc(job.seed).record["seconds"]
        corpus = self.corpus
        result = results.RunResult(
            schema=results.SCHEMA,
            task=self.task.name,
            method=job.method,
            quality=job.quality,
            seed=job.seed,
            quick=self.quick,
            dataset=results.describe_data(corpus),
            physics={
                "environment": f"the verifier of {self.task.name}",
                "mujoco": results.NO_PHYSICS,
                "corrections": [],
            },
            evaluation={
                "metric": METRIC,
                "ref_min_score": corpus.ref_min_score,
                "ref_max_score": corpus.ref_max_score,
                "samples": self.evaluation.samples,
                "policy": "sampled at temperature 1, last parameters",
            },
            episode_returns=list(record["returns"]),
            normalised_score=mean,
            standard_error=error,
            config=self.configuration(job),
            diagnostics={"training": record["log"], "figures": record["figures"]} | record["diagnostics"],
            seconds=seconds | {"evaluation": record["evaluation_seconds"]},
            versions=record["versions"],
            device=record["device"],
            git_commit=record["git_commit"],
        )
        path = export.result_path(folder, result)
        if not results.holds(path, result):
            results.write(path, result)
        return path, result


def _first(tree: Any) -> Any:
    """The entry of the only seed."""
    return jax.tree.map(lambda x: np.asarray(x[0]), tree)


def _log_probs(config: model.ModelConfig, params: Any, prompts: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """log pi of every token of answers (N, R), in equal compiled passes: (N, R)."""
    batch = generate.BATCH
    padding = ((0, -len(prompts) % batch), (0, 0))
    rows = [np.pad(x, padding, mode="edge").reshape(-1, batch, x.shape[1]) for x in (prompts, answers)]
    passes = [_log_prob(config, params, Demonstrations(*map(jnp.asarray, each))) for each in zip(*rows, strict=True)]
    return np.concatenate(passes).reshape(-1, answers.shape[1])[: len(prompts)]


_log_prob = jax.jit(model.log_prob, static_argnums=0)
