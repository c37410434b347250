"""The error that a user can mend."""


class UserError(Exception):
    """A mistake in what the user asked for or supplied: its message is one line that says what is wrong and what to do.

    Commands print it without a traceback and exit with code 1. Anything else that is raised is our own fault, and keeps
    its traceback.
    """
