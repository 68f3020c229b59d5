"""Signals that ask a trial to end. The trial saves its state first, if it has any."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_stack
from types import FrameType
from typing import Any

# Exit codes by signal; 75 asks a scheduler to start the job again (EX_TEMPFAIL).
_EXIT_CODES = {"SIGTERM": 75, "SIGUSR1": 75, "SIGUSR2": 75, "SIGINT": 130, "SIGHUP": 129}

# What the user does after a signal, for a trial and for a sweep (which resumes by itself).
RESUME = "run the same command with --resume to go on"
RUN_AGAIN = "run the same command again to go on"

# What is saved, if trials run in other processes than the one that was stopped.
CHECKPOINTS_KEPT = "the running trials' checkpoints are kept"


class Interrupted(BaseException):
    """A signal ended the trial. It is no Exception, so that a submission does not catch it by accident.

    Args:
        saved, how_to_go_on: the parts of the message, which is one line.
    """

    def __init__(self, signal_name: str, saved: str = "no new checkpoint", how_to_go_on: str = RESUME):
        super().__init__(f"stopped by {signal_name}: {saved}; {how_to_go_on}")
        self.signal_name = signal_name

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.signal_name]


def default_handlers() -> dict[int, Any]:
    """Signal number -> default handler, for the signals that end a trial. Ignored or handled signals are left out."""
    handlers = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in _EXIT_CODES}
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    return {number: handler for number, handler in handlers.items() if handler in defaults}


def stop_while_importing(number: int, frame: FrameType | None) -> None:
    """A signal handler while libraries are imported: an interrupted import would print a long traceback."""
    name = signal.Signals(number).name
    print(f"stopped by {name} before anything was begun", file=sys.stderr, flush=True)
    os._exit(_EXIT_CODES[name])


def stop_script(number: int, frame: FrameType | None) -> None:
    """A signal handler for a script outside of `Interruption`: ends the process by its exit code for the signal."""
    name = signal.Signals(number).name
    print(f"stopped by {name}", file=sys.stderr, flush=True)
    sys.exit(_EXIT_CODES[name])


class Interruption:
    """`with Interruption() as interruption:` records the signals SIGTERM, SIGUSR1, SIGUSR2, SIGINT and SIGHUP.

    The code inside checks `signal_name` where it can stop, and marks blocks that a signal may end at once. A second
    SIGINT is a KeyboardInterrupt. Signals that the process was started to ignore stay ignored. It only works in the
    main thread.

    Args:
        how_to_go_on: the end of the message for the user.
    """

    def __init__(self, how_to_go_on: str = RESUME) -> None:
        self.signal_name: str | None = None
        self.how_to_go_on = how_to_go_on
        self._is_interruptible = False
        self._earlier_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for name in _EXIT_CODES:
                number = getattr(signal, name)
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._earlier_handlers[number] = signal.signal(number, self._record)
        self._earlier_hook, sys.unraisablehook = sys.unraisablehook, self._report_unraisable
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._earlier_hook

    def _report_unraisable(self, problem: Any) -> None:
        """Hides the traceback of an `Interrupted` that was raised in a destructor or a weak reference's callback.

        Python drops such an error, but the signal stays recorded. A signal that comes during this method is only
        recorded, since Python would drop its error, too, and print a traceback.
        """
        if not isinstance(problem.exc_value, Interrupted):
            self._earlier_hook(problem)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """In this block a signal raises Interrupted at once; an earlier signal does so at the block's start."""
        self._is_interruptible = True
        try:
            self.raise_if_signalled()
            yield
        finally:
            self._is_interruptible = False

    def raise_if_signalled(self, saved_step: int | None = None) -> None:
        """Raises Interrupted if there was a signal; `saved_step` is the step of the checkpoint saved since."""
        if self.signal_name:
            saved = "no new checkpoint" if saved_step is None else f"the checkpoint of step {saved_step} is saved"
            raise Interrupted(self.signal_name, saved, self.how_to_go_on)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        reports = any(caller.f_code is Interruption._report_unraisable.__code__ for caller, _ in walk_stack(frame))
        if self._is_interruptible and not reports:
            self.raise_if_signalled()
