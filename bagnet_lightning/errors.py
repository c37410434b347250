"""Ends of a command that are no bugs: mistakes of the user, signals, and a loss that is not finite."""

import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # each ends a command, after everything is saved


class UserError(Exception):
    """A mistake in what the user asked for or supplied: its message is one line that says what is wrong and what to do.

    Commands print it without a traceback and exit with code 1. Any other exception is a bug, and keeps its traceback.
    """


class Interrupted(BaseException):
    """Training stopped by a signal, with everything saved. `exit_code` is the shell's: 128 + the signal's number."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Diverged(Exception):
    """A loss that is not finite. Names the step, its images, the learning rate, and the checkpoint from before it."""


def in_one_line(error: BaseException) -> str:
    """Returns "ValueError: the first line of its message"."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
