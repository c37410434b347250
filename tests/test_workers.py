import math
import os
import signal
from itertools import count

import pytest

from bagnet_lightning.data.workers import in_processes
from bagnet_lightning.errors import UserError


def test_results_come_in_the_order_of_their_jobs():
    assert list(in_processes(math.factorial, ((n,) for n in range(40)), 3)) == [math.factorial(n) for n in range(40)]


def test_they_are_of_other_processes_and_jobs_are_drawn_no_sooner_than_needed():
    drawn = []

    def jobs():
        for number in count():
            drawn.append(number)
            yield ()

    results = in_processes(os.getpid, jobs(), 2)
    assert next(results) != os.getpid()
    assert len(drawn) <= 4
    results.close()


def test_what_the_function_raises_is_raised_here():
    results = in_processes(math.sqrt, [(4,), (-1,), (9,)], 1)
    assert next(results) == 2
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        next(results)


def test_a_killed_worker_is_told_whatever_the_others_do():
    for _ in range(5):
        with pytest.raises(UserError, match="was killed: is there enough memory"):
            list(in_processes(signal.raise_signal, [(signal.SIGKILL,)] * 8, 2))
