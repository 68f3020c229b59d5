"""Kills trials at random moments, and resumes them until they end.

    python tests/tuning/killed_trials.py N_PROCESSES N_KILLS FOLDER

A trial of `marked_trial.py` is carried out by N_PROCESSES together, forked from this one. The trials `first` and
`whole` in FOLDER run undisturbed. Then `0`, `1` and so on are killed again and again, until there were N_KILLS kills.
The last line printed is a list of all their starts, as JSON. `test_killed_trials.py` runs this.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before an installed one

from tests.tuning import marked_trial
from tests.tuning.marked_trial import PARTS, Marks
from tests.tuning.test_several_devices import free_port
from tuning import compilation_cache, processes

_AIMS = (*PARTS, "any moment")
_SURVIVAL_S = 3.0  # after it the processes that were not killed are killed too, as by a scheduler


class Start:
    """The processes of a trial that has been started or resumed.

    Args:
        stop: the first process stops itself at the beginning of its n-th such part.
    """

    def __init__(self, folder: Path, name: str, n_processes: int, stop: tuple[str, int] | None = None):
        self.marks, self._began_at = Marks(stop), time.monotonic()
        self.codes: list[int | None] = [None] * n_processes  # None while it runs
        port = free_port()
        self._ids = [self._fork(folder, name, f"127.0.0.1:{port}", i) for i in range(n_processes)]

    def _fork(self, folder: Path, name: str, address: str, index: int) -> int:
        if child := os.fork():
            return child
        with open(folder / f"{name}_{index}.log", "ab") as log:
            os.dup2(log.fileno(), sys.stdout.fileno())
            os.dup2(log.fileno(), sys.stderr.fileno())
        try:
            n_processes = len(self.codes)
            together = processes.join(address, n_processes, index) if n_processes > 1 else processes.Processes()
            marked_trial.run(folder, name, self.marks if index == 0 else Marks(), together)
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        sys.exit(0)

    def n_running(self) -> int:
        for index, code in enumerate(self.codes):
            if code is None:
                child, status = os.waitpid(self._ids[index], os.WNOHANG)
                self.codes[index] = os.waitstatus_to_exitcode(status) if child else None
        return self.codes.count(None)

    def first_stops(self) -> bool:
        """Waits until the first process stops itself; False if it has ended instead."""
        _, status = os.waitpid(self._ids[0], os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self.codes[0] = os.waitstatus_to_exitcode(status)
        return self.codes[0] is None

    def let_first_go_on(self) -> None:
        os.kill(self._ids[0], signal.SIGCONT)

    def kill(self, victims: Iterable[int]) -> None:
        for index in victims:
            if self.codes[index] is None:
                os.kill(self._ids[index], signal.SIGKILL)

    def wait(self, timeout_s: float = float("inf")) -> None:
        """Returns once all have ended, the last of them by a kill."""
        deadline = time.monotonic() + timeout_s
        while self.n_running():
            if time.monotonic() > deadline:
                self.kill(range(len(self.codes)))
            time.sleep(0.01)
        self.seconds = time.monotonic() - self._began_at


def newest(folder: Path, name: str) -> int:
    """The step of the newest checkpoint; 0 if there is none."""
    files = (folder / name / "mnist_vit_jax" / "trial_1" / "checkpoints").glob("*.checkpoint")
    return max((int(file.stem) for file in files), default=0)


def start_and_kill(
    folder: Path, name: str, whole: Start, aim: str, rng: np.random.Generator
) -> tuple[Start, list[int]]:
    """A start and which of its processes were killed at a random moment; none if it ended before."""
    n_processes = len(whole.codes)
    victims = [i for i in range(n_processes) if rng.integers(2)] or [0]
    if aim in PARTS:
        part = PARTS.index(aim)
        n_parts = max(1, whole.marks.n_begun[part] // 4)  # the first quarter, so that few trials end before
        start = Start(folder, name, n_processes, (aim, int(rng.integers(1, n_parts + 1))))
        if not start.first_stops():
            return start, []
        start.let_first_go_on()
        time.sleep(rng.uniform(0, whole.marks.last_s[part]))
    else:
        start = Start(folder, name, n_processes)
        time.sleep(rng.uniform(0, whole.seconds))
        if start.n_running() < n_processes:
            return start, []
    start.kill(victims)
    return start, victims


def main() -> None:
    n_processes, n_kills, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    compilation_cache.use(str(folder / "cache"))
    for name in ("first", "whole"):  # the first one compiles
        whole = Start(folder, name, n_processes)
        whole.wait()
        assert set(whole.codes) == {0}, (folder / f"{name}_0.log").read_text()
    rng, told, n_killed, n_ended = np.random.default_rng(n_processes), [], 0, 0
    while n_killed < n_kills or told[-1]["victims"]:
        name, before, victims = str(n_ended), newest(folder, str(n_ended)), []
        if n_killed < n_kills:
            start, victims = start_and_kill(folder, name, whole, _AIMS[n_killed % len(_AIMS)], rng)
        else:
            start = Start(folder, name, n_processes)
        start.wait(_SURVIVAL_S if victims else float("inf"))
        n_killed, n_ended = n_killed + bool(victims), n_ended + (not victims)
        marks = start.marks
        steps = dict(resumed_at=marks.resumed_at, saved=marks.saved, before=before, after=newest(folder, name))
        told.append(dict(name=name, victims=victims, codes=start.codes, unfinished=marks.unfinished, **steps))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
