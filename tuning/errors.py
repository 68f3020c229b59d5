"""Errors that end a run with one line, and the exit code that tells a caller what to do about them.

A trial has two phases. While it is **set up** (loading workload, submission, search space and data, checking the
hyperparameters in `init_optimizer_state`), a ValueError, OSError or ImportError is taken to be about what the user
asked for: it becomes a `UserError`, shown as one line (`--verbosity=1` shows where it came from). Any other error, and
every error **inside the training loop**, is a crash and keeps its traceback, unless `tuning.faults` finds the machine
at fault.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can cure. The message is one line: cause, then cure."""

    exit_code = 2


class MachineFault(UserError):
    """The machine failed, not what runs on it: the same work may succeed later, or on another machine."""

    exit_code = 69  # EX_UNAVAILABLE


def one_line(error: BaseException) -> str:
    """The error's message with all runs of white space as one blank; its type when it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, then what it was raised from or during, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def setup_phase() -> Iterator[None]:
    """Turns the expected errors of the set-up phase into `UserError`; the original stays as its cause."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise UserError(one_line(error)) from error
