"""Stages on a Ray cluster."""

from __future__ import annotations

import math
import socket
import tempfile
from pathlib import Path
from typing import Any

from iwsft_control.base import children, console
from iwsft_control.base.errors import UserError, require
from iwsft_control.benchmark import stages
from iwsft_control.benchmark.jobs import DataSource, Failure, Job, failure
from iwsft_control.benchmark.perform import perform
from iwsft_control.benchmark.stages import Stage
from iwsft_control.benchmark.store import Store, device_kind
from iwsft_control.benchmark.store import key as key_of
from iwsft_control.learning.method import Artefact
from iwsft_control.methods import registry


class RayCluster:
    """A Ray cluster. Artefacts travel through Ray's object store, so nodes need no common file system.

    Every node needs this package and the data set (the embedded ones come with the package). A task whose node dies is
    run again by Ray, up to ``retries`` times; a node that joins later gets its share.

    Args:
        address: of a running cluster, or "local" to start one on this machine.
        cpus: cores that a stage asks for.
        gpus: GPUs (or a share of one) that a stage asks for.
    """

    def __init__(self, store: Store, address: str, cpus: int = 1, gpus: float = 0.0, retries: int = 3):
        try:
            import ray
        except ImportError as error:
            raise UserError("Ray is not installed; pip install ray.") from error
        require(not registry.files(), "--method-file is for local runs; for Ray install your method as a package.")
        self.ray, self.store = ray, store
        if not ray.is_initialized():
            try:
                host, _, port = address.rpartition(":")
                if host and port.isdigit():  # ray.init would wait for minutes
                    socket.create_connection((host, int(port)), timeout=10).close()
                ray.init(address=address, log_to_driver=False)
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(f"no Ray cluster answers at {address} ({error}); start one, or --ray local.") from error
        self.cpus, self.gpus = cpus, gpus
        self.slots = self._offered()
        if self.slots < 1:
            raise UserError(f"no node of the Ray cluster offers {cpus} CPUs and {gpus} GPUs; ask for less.")
        # XLA would begin a thread for every core of the node, and they wait for one another by spinning.
        variables = {"PJRT_NPROC": str(cpus)}
        if not gpus:
            variables["JAX_PLATFORMS"] = "cpu"  # Ray does not hide a GPU from who did not ask for one
        elif gpus < 1:
            variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share its memory
        self.options = {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": variables}}
        self.remote = ray.remote(_ray_stage).options(max_retries=retries, **self.options)
        self.running: dict[Any, Job] = {}
        # What the stages run on, which need not be what this process would: artefacts are named after it.
        try:
            store.device = ray.get(ray.remote(device_kind).options(**self.options).remote())
        except ray.exceptions.RayError as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise UserError(
                f"a node of the Ray cluster can't run iwsft_control ({reason}); install the same version on every node."
            ) from error

    def _offered(self) -> int:
        """How many stages the nodes that are there now can run at once."""

        def on(node: dict[str, float]) -> int:
            by_gpus = node.get("GPU", 0) / self.gpus if self.gpus else math.inf
            return int(min(node.get("CPU", 0) // self.cpus, by_gpus))

        return sum(on(node["Resources"]) for node in self.ray.nodes() if node["Alive"])

    def submit(self, job: Job) -> None:
        data = job.source.load()
        inputs = self.store.inputs(job.stage, data)
        assert inputs is not None, "a job is submitted when its dependencies are done"
        key = key_of(job.stage, data, self.store.device)
        self.running[self.remote.remote(job.source, key, job.stage, inputs)] = job

    def wait(self) -> list[tuple[Job, Failure | None]]:
        ready, _ = self.ray.wait(list(self.running), timeout=0.5)
        self.slots = max(1, self._offered())  # nodes come and go; where all are gone, Ray waits for the next
        finished: list[tuple[Job, Failure | None]] = []
        for reference in ready:
            job = self.running.pop(reference)
            try:
                outcome: Artefact | Failure = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:  # its nodes died more often than it is tried again
                outcome = failure(error)
            if isinstance(outcome, Failure):
                finished.append((job, outcome))
            else:
                self._keep(job, outcome)
                finished.append((job, None))
        return finished

    def _keep(self, job: Job, artefact: Artefact) -> None:
        data = job.source.load()
        with self.store.alone(job.stage, data):
            if not self.store.has(job.stage, data):  # another sweep may have been faster
                self.store.write(job.stage, data, artefact)

    def close(self) -> None:
        for reference in self.running:
            self.ray.cancel(reference, force=True)
        self.ray.shutdown()


def _ray_stage(source: DataSource, key: str, stage: Stage, inputs: dict[str, Artefact]) -> Artefact | Failure:
    console.cache_compiled_programs()
    try:
        data = source.load()
        if key_of(stage, data) != key:
            raise UserError(
                f"{data.id}, this package, a version of another or the kind of device ({device_kind()} here) is not "
                "the same on all nodes; make them the same."
            )
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            for name, each in stages.dependencies(stage).items():
                store.write(each, data, inputs[name])
            return perform(stage, data, store, threads=children.xla_threads())
    except Exception as error:
        return failure(error)
