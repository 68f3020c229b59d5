"""Signals that ask a trial to end: it saves its state first, if there is any."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Exit codes by signal; 75 asks a scheduler to start the job again (EX_TEMPFAIL).
_EXIT_CODES = {"SIGTERM": 75, "SIGUSR1": 75, "SIGUSR2": 75, "SIGINT": 130, "SIGHUP": 129}

# How to go on after a signal: of a trial, and of a sweep, which continues by itself.
RESUME = "run the same command with --resume to go on"
RUN_AGAIN = "run the same command again to go on"


class Interrupted(BaseException):
    """A signal ended the trial. Not an Exception: a submission's own handlers must not keep it.

    Args:
        saved_step: of the checkpoint that was made then; None if there was none to make.
        how_to_go_on: a line's end, for the user.
    """

    def __init__(self, signal_name: str, saved_step: int | None = None, how_to_go_on: str = RESUME):
        super().__init__(signal_name)
        self.signal_name, self.saved_step, self._how_to_go_on = signal_name, saved_step, how_to_go_on

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.signal_name]

    def __str__(self) -> str:
        """One line: what is saved, and how to go on."""
        saved = "no new checkpoint"
        if self.saved_step is not None:
            saved = f"the checkpoint of step {self.saved_step} is saved"
        return f"stopped by {self.signal_name}: {saved}; {self._how_to_go_on}"


def default_handlers() -> dict[int, Any]:
    """Those of SIGINT, SIGTERM and SIGHUP, by number; a signal that is ignored or handled otherwise is left out."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    return {number: handler for number, handler in handlers.items() if handler in defaults}


def stop_while_importing(number: int, frame: FrameType | None) -> None:
    """A handler for the time in which libraries are loaded, whose half-done imports make a long traceback."""
    name = signal.Signals(number).name
    print(f"stopped by {name} before anything was begun", file=sys.stderr, flush=True)
    os._exit(_EXIT_CODES[name])


class Interruption:
    """`with Interruption() as interruption:` notes the signals SIGTERM, SIGUSR1, SIGUSR2, SIGINT and SIGHUP.

    The code inside looks at `signal_name` where it can stop, and marks blocks that a signal may end at once. A second
    SIGINT is a KeyboardInterrupt. Signals that the process was started to ignore stay ignored. For the main thread.

    Args:
        how_to_go_on: what an interrupted process tells the user.
    """

    def __init__(self, how_to_go_on: str = RESUME) -> None:
        self.signal_name: str | None = None
        self._how_to_go_on = how_to_go_on
        self._ends_at_once = False
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for name in _EXIT_CODES:
                number = getattr(signal, name)
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._earlier[number] = signal.signal(number, self._note)
        self._earlier_hook, sys.unraisablehook = sys.unraisablehook, self._report
        return self

    def __exit__(self, *exception: object) -> None:
        for number, earlier in self._earlier.items():
            signal.signal(number, earlier)
        sys.unraisablehook = self._earlier_hook

    def _report(self, problem: Any) -> None:
        """Python drops what is raised in a destructor or a weak reference's callback. The signal stays noted."""
        if not isinstance(problem.exc_value, Interrupted):
            self._earlier_hook(problem)

    @contextmanager
    def ends_at_once(self) -> Iterator[None]:
        """In this block a signal raises Interrupted; one noted before does so at its start."""
        self._ends_at_once = True
        try:
            self.raise_if_signalled()
            yield
        finally:
            self._ends_at_once = False

    def raise_if_signalled(self, saved_step: int | None = None) -> None:
        """Raises Interrupted if a signal was noted; `saved_step` is that of the checkpoint made since."""
        if self.signal_name:
            raise Interrupted(self.signal_name, saved_step, self._how_to_go_on)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        if self._ends_at_once:
            self.raise_if_signalled()
