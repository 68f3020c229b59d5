"""Runs a command as a child process, which receives this process's signals and ends before it."""

import os
import signal
import subprocess
from collections.abc import Sequence

from tuning import parent
from tuning.errors import UserError
from tuning.interruption import RUN_AGAIN, Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class CommandFailed(UserError):
    """A command failed; its own output says why."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def run(command: Sequence[str]) -> None:
    """Runs the command, from the main thread.

    Raises:
        CommandFailed: the command's exit code was not 0; the error has the same code.
        Interrupted: a signal came so late that the command ended with 0.
    """
    child: subprocess.Popen | None = None
    received: list[int] = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        if child is not None:
            child.send_signal(number)

    earlier = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        environment = os.environ | {parent.SUPERVISOR: str(os.getpid())}
        # A session of its own, so that a terminal's Ctrl-C arrives once, from here.
        started = subprocess.Popen(command, start_new_session=True, env=environment)
        too_early, child = received[:], started
        for number in too_early:
            child.send_signal(number)
        code = child.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if code:
        status = f"signal {-code}" if code < 0 else f"code {code}"
        cure = "fix what its lines name, and run this command again: it continues"
        raise CommandFailed(f"{' '.join(command[1:5])} … ended with {status}; {cure}", code if code > 0 else 128 - code)
    if received:
        raise Interrupted(signal.Signals(received[0]).name, "what is done is kept", RUN_AGAIN)
