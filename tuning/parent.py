"""Ends a process, by SIGTERM, when the process that started it has ended, even by SIGKILL."""

import os
import signal
import threading
import time

SUPERVISOR = "ALGOPERF_KFAC_SUPERVISOR"  # environment variable with the process id of the supervisor
_PERIOD_S = 1.0


def end_with(process_id: int) -> None:
    """Sends SIGTERM to this process once its parent is no longer the process `process_id`."""

    def watch() -> None:
        while os.getppid() == process_id:
            time.sleep(_PERIOD_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_with_supervisor() -> None:
    """Calls `end_with` for the supervisor of this process. A process that a user or Slurm started has no supervisor."""
    if (supervisor := os.environ.pop(SUPERVISOR, None)) is not None:
        end_with(int(supervisor))
