"""Ends of a command that are not our fault."""

import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # that end a command with everything saved


class UserError(Exception):
    """A mistake in what the user asked for or supplied: its message is one line that says what is wrong and what to do.

    Commands print it without a traceback and exit with code 1. Anything else that is raised is our own fault, and keeps
    its traceback.
    """


class Interrupted(BaseException):
    """Training stopped because of a signal, with everything saved. `exit_code` is the shell's: 128 + its number."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Diverged(Exception):
    """The loss was not finite: says at which step, on which images, at what learning rate, and what is left."""


def in_one_line(error: BaseException) -> str:
    """ "ValueError: the first line of its message"."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
