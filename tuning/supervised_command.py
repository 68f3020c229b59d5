"""Runs a command as a child process, which receives this process's signals and ends before it."""

import signal
import subprocess
from collections.abc import Sequence

from tuning.errors import UserError

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
    """
    child: subprocess.Popen | None = None
    too_early: list[int] = []

    def pass_on(number: int, _: object) -> None:
        too_early.append(number) if child is None else child.send_signal(number)

    earlier = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        child = subprocess.Popen(command, start_new_session=True)  # so that a terminal's Ctrl-C arrives once, from here
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
