"""Runs jobs in worker processes. These import this module: it imports neither torch nor Lightning."""

import contextlib
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from subprocess import PIPE, Popen
from typing import TypeVar

from bagnet_lightning.errors import UserError

MAX_WORKERS = 16  # with more, the disk is the limit
Result = TypeVar("Result")


def in_processes(
    function: Callable[..., Result], jobs: Iterable[tuple], workers: int | None, most: int = MAX_WORKERS
) -> Iterator[Result]:
    """Yields `function(*job)` of every job, in order, computed by `workers` processes (None: one per core).

    most: limit on the processes, besides MAX_WORKERS. function: of a module, which the processes import. Jobs are drawn
    no sooner than they are needed, so that few of them and of their results are in memory. An exception of the function
    is raised here.
    The processes are not multiprocessing's: those would import the user's main module first, and with it torch.
    """
    # Cores that this process may use: in a job of SLURM they are not all of the machine.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, most, MAX_WORKERS)
    command = f"import sys; sys.path[:] = {sys.path!r}; from bagnet_lightning.data.workers import serve; serve()"
    idle = SimpleQueue()

    def run(job: tuple) -> Result:
        worker = idle.get()
        try:
            pickle.dump((function, job), worker.stdin)
            worker.stdin.flush()
            result = pickle.load(worker.stdout)
        except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError):  # ValueError: it is closed, see below
            with contextlib.suppress(OSError):
                worker.stdin.close()  # whose unsent bytes would raise BrokenPipeError at the end
            raise UserError("a worker process was killed: is there enough memory?") from None
        finally:
            idle.put(worker)
        if isinstance(result, Exception):
            raise result
        return result

    with contextlib.ExitStack() as stack:
        for _ in range(workers):
            idle.put(stack.enter_context(Popen([sys.executable, "-c", command], stdin=PIPE, stdout=PIPE)))
        threads = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(threads.shutdown, cancel_futures=True)
        pending = deque()
        for job in jobs:
            pending.append(threads.submit(run, job))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def serve() -> None:
    """Runs a worker: reads pickled (function, arguments) from stdin and writes results to stdout, until stdin ends.

    A result is the function's return value or the exception that it raised.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes stdin
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            result = function(*arguments)
        except Exception as error:
            result = error
        try:
            pickle.dump(result, sys.stdout.buffer)
            sys.stdout.flush()
        except BrokenPipeError:  # the parent was killed
            os._exit(1)
