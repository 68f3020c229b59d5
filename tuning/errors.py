"""How an error the user can cure is told from a bug.

A trial has two phases. While it is being **set up** (loading workload, submission, search space and data,
checking the hyperparameters in `init_optimizer_state`), a ValueError, OSError or ImportError is taken to be
about what the user asked for: it becomes a `UserError`, shown as one line, and the process exits with 2
(`--verbosity=1` shows where it came from). Everything else, and anything at all that is raised **inside the
training loop**, is a crash: it keeps its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can cure. The message is one line: cause, then cure."""


def one_line(error: BaseException) -> str:
    """The error's message with all runs of white space as one blank; its type when it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def setup_phase() -> Iterator[None]:
    """Turns the expected errors of the set-up phase into `UserError`; the original stays as its cause."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise UserError(one_line(error)) from error
