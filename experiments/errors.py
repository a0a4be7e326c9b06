"""What a person is told when an experiment cannot go on, and the exit code that goes with it."""

DONE = 0
FAILED = 1  # the run failed; its state is kept
USAGE = 2  # usage, configuration or a bad file
CHECK_FAILED = 3  # finished, but a check failed
MISSING = 4  # data or a checkpoint is not there
PREEMPTED = 75  # stopped after saving; run again to go on
INTERRUPTED = 130  # Ctrl-C


LONGEST_LINE = 1200  # of a message: what a person typed may be a megabyte


class UserError(Exception):
    """One line that says what is wrong and how to fix it; the command line prints it and exits."""

    def __init__(self, message: str, exit_code: int = USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class Diverged(UserError):
    """Every seed's loss left the finite numbers: of an arm under comparison that is a finding."""

    def __init__(self, message: str) -> None:
        super().__init__(message, FAILED)


def one_line(message: str) -> str:
    """``message`` fit for a terminal: one line, no control characters, not longer than a screen.

    A name in it may come from a file of somebody else's, and could move the cursor.
    """
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 4]} ..."
