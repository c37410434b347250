"""hydra/launcher=ray: runs the jobs of a sweep on the GPUs or CPU cores of one machine or of a Ray cluster."""

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from hydra.core.singleton import Singleton
from hydra.types import TaskFunction
from omegaconf import DictConfig

from bagnet_lightning.errors import UserError, in_one_line
from bagnet_lightning.sweeps.launching import ParallelLauncher, devices, failed, folder, on_cpu, run
from bagnet_lightning.sweeps.runs import goes_on

_ENVIRONMENT = ("BAGNET_", "WANDB_")  # variables that jobs on other nodes get from the command
_TIME_TO_SAVE = 60  # s; a job that is stopped finishes its step first


@dataclass
class _Task:
    job: DictConfig
    share: dict[str, float]  # num_gpus, num_cpus
    fitted: float  # the last time that a node could hold it


class RayLauncher(ParallelLauncher):
    """A launcher that runs every job in a process of its own with its share of the cluster; jobs without room wait."""

    def __init__(self, gpus_per_job: float | None, cpus_per_job: int | None, node_wait: float, ray: dict):
        self.gpus_per_job, self.cpus_per_job, self.node_wait, self.init = gpus_per_job, cpus_per_job, node_wait, ray

    def check(self, job: DictConfig) -> None:
        gpus = self.gpus_per_job
        for key, share in (("gpus_per_job", gpus), ("cpus_per_job", self.cpus_per_job)):
            if share is not None and not (
                isinstance(share, (int, float)) and share >= 0 and (share < 1 or share % 1 == 0)
            ):
                raise UserError(f"hydra.launcher.{key}={share}: it must be a share from 0 to 1, or a whole number")
        if gpus and devices(job) > max(1, gpus) and not on_cpu(job):
            raise UserError(
                f"trainer.devices={devices(job)} needs more than hydra.launcher.gpus_per_job={gpus}; ask for as many"
            )

    def share(self, job: DictConfig) -> str:
        gpus, cpus = self.gpus_per_job, self.cpus_per_job
        cores = f"{cpus or devices(job)} CPU"
        if on_cpu(job) or gpus == 0:
            return cores
        if gpus is None:
            return f"{devices(job)} GPU, or {cores} where there are no GPUs"
        return f"{gpus:g} GPU"

    def results(self, jobs: list[DictConfig]) -> Iterator[tuple[DictConfig, dict]]:
        ray = self._cluster()
        # A new process per job, so that none inherits state; Ray must not run a job again whose process died.
        worker = ray.remote(max_calls=1, max_retries=0)(_work)
        environment = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
        state = ray.put(Singleton.get_state())
        node_wait = 0 if self.init["address"] == "local" else self.node_wait
        tasks = {}
        try:
            for job in jobs:
                share = self._share(job, _nodes(ray))
                call = worker.options(name=folder(job).name, **share)
                tasks[call.remote(job, self.task_function, state, os.getcwd(), environment, share)] = _Task(
                    job, share, time.monotonic()
                )
            while tasks:
                ended, _ = ray.wait(list(tasks), timeout=1)
                nodes, now = _nodes(ray), time.monotonic()
                for ref, task in list(tasks.items()):
                    if any(_fits(task.share, node) for node in nodes):
                        task.fitted = now
                    if ref in ended:
                        yield task.job, _result(ray, tasks.pop(ref), ref)
                    elif now - task.fitted > node_wait:
                        ray.cancel(ref)
                        needs = "{num_gpus:g} GPU and {num_cpus:g} CPU".format(**tasks.pop(ref).share)
                        yield task.job, failed(task.job, f"it asks for {needs}, and no node of the cluster has them")
        finally:
            for ref in tasks:
                ray.cancel(ref)
            if tasks:
                ray.wait(list(tasks), num_returns=len(tasks), timeout=_TIME_TO_SAVE)
            ray.shutdown()

    def _cluster(self) -> ModuleType:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise UserError("hydra/launcher=ray needs the package: pip install 'bagnet-lightning[ray]'") from error
        host, _, port = str(self.init["address"]).partition(":")
        if port.isdigit():
            try:
                socket.create_connection((host, int(port)), timeout=10).close()
            except OSError as error:  # Ray would try for half an hour
                raise UserError(
                    f"no Ray cluster answers at hydra.launcher.ray.address={host}:{port}: {error}"
                ) from error
        ray._private.worker._worker_logs_enabled = False  # the sweep's own lines replace Ray's output
        old_handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**self.init, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"hydra.launcher.ray: {' '.join(str(error).split())}") from error
        finally:
            signal.signal(signal.SIGTERM, old_handler)  # Ray's handler exits without stopping the jobs
        return ray

    def _share(self, job: DictConfig, nodes: list[dict]) -> dict[str, float]:
        """Returns the job's share of these nodes: as set, or a GPU per device and its part of the node's cores."""
        gpus, cpus = self.gpus_per_job, self.cpus_per_job
        if on_cpu(job):
            gpus = 0
        elif gpus is None:
            gpus = devices(job) if any(node.get("GPU") for node in nodes) else 0
        if cpus is None:
            parts = [node.get("CPU", 0) * gpus // node["GPU"] for node in nodes if gpus and node.get("GPU", 0) >= gpus]
            cpus = max(1, min(parts, default=devices(job)))
        return {"num_gpus": gpus, "num_cpus": cpus}


def _work(
    job: DictConfig, task_function: TaskFunction, state: dict, cwd: str, environment: dict[str, str], share: dict
) -> dict:
    """Runs the job in the worker and returns its result. Its output goes to train.log in its folder."""
    os.chdir(cwd)
    os.environ.update(environment)
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(share["num_cpus"]) // devices(job)))
    if not share["num_gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    folder(job).mkdir(parents=True, exist_ok=True)
    log = os.open(folder(job) / "train.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    Singleton.set_state(state)
    return run(job, task_function)


def _result(ray: ModuleType, task: _Task, ref: object) -> dict:
    """Returns the job's result, or a failed one that says how the job ended."""
    try:
        return ray.get(ref)
    except ray.exceptions.NodeDiedError:
        reason = "its node was lost"
    except ray.exceptions.OutOfMemoryError:
        reason = "Ray killed it because its node ran out of memory"
    except ray.exceptions.WorkerCrashedError:
        reason = "its process was killed (SIGKILL; the system does that when memory runs out)"
    except ray.exceptions.RayTaskError as error:
        reason = in_one_line(error.cause)
    except ray.exceptions.RayError as error:
        reason = in_one_line(error)
    return failed(task.job, f"{reason}; {goes_on(task.job)}")


def _nodes(ray: ModuleType) -> list[dict]:
    """Returns the resources of every node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fits(share: dict, node: dict) -> bool:
    return share["num_gpus"] <= node.get("GPU", 0) and share["num_cpus"] <= node.get("CPU", 0)
