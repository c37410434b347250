"""One run on several devices: one process per device, a rank, trained together by DistributedDataParallel.

On one machine `run` starts the ranks; on several, torchrun or srun starts the command once per device. Lightning would
start them by running the whole command again, which in a sweep is the whole sweep: here they receive one run's
configuration, and a sweep has one group of processes per run. Torch is not imported: the waiting process needs none.
"""

import faulthandler
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from bagnet_lightning.config import kind, plain
from bagnet_lightning.errors import SIGNALS, Interrupted, UserError
from bagnet_lightning.machine.memory import keep_freed_memory
from bagnet_lightning.results import write_result
from bagnet_lightning.sweeps.runs import goes_on

GRACE_S = 10  # seconds for ranks to end by themselves after one has failed, or rank 0 has stopped
SERVE = "import sys; sys.path[:] = {path!r}; from bagnet_lightning.training.ranks import serve; serve({descriptor})"


def count(config: DictConfig) -> int:
    """Returns the number of processes of the run: one if it uses no Trainer."""
    return config.trainer.devices * config.trainer.num_nodes if "trainer" in config else 1


def rank(config: DictConfig) -> int:
    """Returns the rank of this process in the run. Only rank 0 writes files and prints."""
    return _placement()[0] if count(config) > 1 else 0


def must_start(config: DictConfig) -> bool:
    """Whether the ranks of the run are still to be started: there are several, and torchrun or srun has not done it."""
    return count(config) > 1 and _placement()[1] == 1


def check(config: DictConfig, sweep: bool = False) -> None:
    """Raises UserError unless this process can be a rank of the run, or can start its ranks."""
    if "trainer" not in config:
        return
    if kind(config) == "pretraining" and count(config) > 1:
        raise UserError(
            "trainer.devices and trainer.num_nodes are 1 in a pretraining: it compares the tiles of a batch"
        )
    started, trainer = _placement()[1], config.trainer
    if started > 1 and sweep:
        raise UserError("a sweep starts the processes of each run itself: start it once, without torchrun or srun")
    if started == 1 and trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}: start the command {trainer.devices} times on every node, "
            "with torchrun or srun (see docs/running.md); a sweep's runs have one node each"
        )
    if started > 1 and started != count(config):
        raise UserError(
            f"trainer.devices={trainer.devices} on trainer.num_nodes={trainer.num_nodes} are {count(config)} "
            f"processes, but torchrun or srun started {started}"
        )


def run_on_ranks(config: DictConfig, folder: Path, requested: dict) -> dict:
    """Calls bagnet_lightning.training.run.run in `config.trainer.devices` processes on this machine.

    After one has failed the others are killed, a rank that dies makes the run a failed one, and none outlives this
    process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks: list[tuple[Connection, subprocess.Popen]] = []
    try:
        with _signals_forwarded(ranks) as received:
            for number in range(count(config)):
                if received:  # before there was a rank to forward it to
                    raise Interrupted(received[0])
                ranks.append(_start(number, count(config), port))
                ranks[-1][0].send((plain(config), str(folder), requested))
            end = _wait_for_end(ranks, goes_on(config))
    finally:
        for connection, process in ranks:
            process.kill()
            process.wait()
            connection.close()
    if isinstance(end, dict) and end["status"] == "finished":
        return end
    if isinstance(end, int) or (received and not isinstance(end, dict)):
        raise Interrupted(received[0] if received else end)
    result = end if isinstance(end, dict) else {**requested, "status": "failed", "error": end}
    write_result(folder, result)
    return result


def serve(descriptor: int) -> None:
    """Runs in a rank's process: receives a run, and sends its log records and its result, or a signal's number."""
    faulthandler.enable()
    keep_freed_memory()
    connection = Connection(descriptor)
    config, folder, requested = connection.recv()
    threading.Thread(target=_exit_with_parent, args=(connection,), daemon=True).start()
    to_parent = QueueHandler(None)
    to_parent.enqueue = connection.send
    to_parent.setLevel(logging.WARNING if int(os.environ["RANK"]) else logging.INFO)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[to_parent])
    from bagnet_lightning.training.fit import fit
    from bagnet_lightning.training.run import run

    try:
        connection.send(run(OmegaConf.create(config), Path(folder), requested, fit))
    except Interrupted as stop:
        connection.send(stop.exit_code - 128)


def _placement() -> tuple[int, int]:
    """Returns (rank, number of ranks) as set by torchrun or srun; (0, 1) if neither started this process."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_PROCID", 0)), int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def _start(number: int, ranks: int, port: int) -> tuple[Connection, subprocess.Popen]:
    """Starts a rank with the variables that torchrun sets, in its own session: Ctrl-C reaches it through its parent."""
    ours, theirs = Pipe()
    variables = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "bagnet_lightning"}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE.format(path=sys.path, descriptor=theirs.fileno())],
            env={**os.environ, **{name: str(value) for name, value in variables.items()}},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours, process


def _wait_for_end(ranks: list[tuple[Connection, subprocess.Popen]], advice: str) -> dict | int | str:
    """Waits until the run has ended, and returns rank 0's result or the message of the first rank that failed.

    The message is a result, the number of a signal that stopped the rank, or, first of all, how a rank died, with the
    `advice` what to do then.
    """
    ends, died, heard, deadline = [], [], set(), None
    running = {connection: number for number, (connection, _) in enumerate(ranks)}
    while running:
        ready = wait(running, timeout=deadline and max(0, deadline - time.monotonic()))
        if not ready:  # the others wait forever for a rank that has ended
            break
        for connection in ready:
            number = running[connection]
            try:
                message = connection.recv()
            except (EOFError, ConnectionResetError):
                del running[connection]
                if (code := ranks[number][1].wait()) or number not in heard:
                    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                    died.append(f"rank {number} of {len(ranks)} {how}; {advice}")
                    deadline = deadline or time.monotonic() + GRACE_S
                continue
            if isinstance(message, logging.LogRecord):
                logging.getLogger(message.name).handle(message)
                continue
            heard.add(number)
            finished = isinstance(message, dict) and message["status"] == "finished"
            if finished and number == 0:
                return message
            if not finished:
                ends.append(message)
                if isinstance(message, dict) or number == 0:
                    deadline = deadline or time.monotonic() + GRACE_S
    return [*died, *ends, "all ranks ended without a result"][0]


@contextmanager
def _signals_forwarded(ranks: list[tuple[Connection, subprocess.Popen]]) -> Iterator[list[int]]:
    """Forwards signals to every rank as SIGTERM, a second Ctrl-C as SIGKILL; yields the signals received."""
    received = []

    def forward(signum: int, frame: object) -> None:
        for _, process in ranks:
            process.send_signal(signal.SIGKILL if received and signum == signal.SIGINT else signal.SIGTERM)
        received.append(signum)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    old_handlers = {signum: signal.signal(signum, forward) for signum in SIGNALS}
    try:
        yield received
    finally:
        for signum, handler in old_handlers.items():
            signal.signal(signum, handler)


def _exit_with_parent(connection: Connection) -> None:
    """Ends this process when its parent has ended, whatever it is waiting for."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(1)
