"""Errors that end a run with one line, and the exit code that tells a caller what to do about them.

A trial has two phases. The **set-up** loads workload, submission, search space and data, and checks the
hyperparameters in `init_optimizer_state`. There a ValueError, OSError or ImportError is taken to be about what the user
asked for: it becomes a `UserError`, shown as one line (`--verbosity=1` shows where it came from). Any other error, and
every error **inside the training loop**, is a crash and keeps its traceback, unless `tuning.faults` finds the machine
at fault.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can cure. The message is one line: cause, then cure."""

    exit_code = 2


class MachineFault(UserError):
    """The machine failed, not the program: the same work may succeed later, or on another machine."""

    exit_code = 69  # EX_UNAVAILABLE


def one_line(error: BaseException) -> str:
    """The error's message on one line; the error's type when it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def short_json(value: object, max_length: int = 80) -> str:
    """The value as JSON for a message, cut to fewer than `max_length` characters. Lone surrogates are escaped."""
    text = json.dumps(value, default=repr, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) < max_length else f"{text[: max_length - 3]}…"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, then the error that it was raised from or during, and so on."""
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def system_error(error: BaseException, numbers: Iterable[int]) -> int | None:
    """The first of the errno `numbers` that the error has; None if it has none of them.

    Libraries in other languages raise errors with the system's message but without its number, so both count.
    """
    return next((n for n in numbers if getattr(error, "errno", None) == n or os.strerror(n) in str(error)), None)


@contextmanager
def setup_phase() -> Iterator[None]:
    """Turns the expected errors of the set-up phase into `UserError`; the original error stays as its cause."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise UserError(one_line(error)) from error
