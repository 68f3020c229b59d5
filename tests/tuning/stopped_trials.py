"""A process that runs short trials which stop or kill themselves before a chosen write, as a signal from outside would.

`python stopped_trials.py KIND FOLDER` prints how many writes to the disk a trial makes, from a first one in FOLDER, or
a worker's sweep of two trials, by KIND. Then it reads lines "FOLDER N SIGNAL" and forks a process for each, which sends
itself the signal before its N-th write. It prints the process's id, and at its end how it ended.
"""

import itertools
import json
import os
import signal
import sys
import threading
from pathlib import Path
from unittest import mock

from fake_trial import FakeWorkload, fake_submission, log_loss, run_fake_trial

from tuning import sweep, trials_request, worker
from tuning.claim import ClaimLost, FolderClaimed
from tuning.trial_rows import TrialRows

BEAT_S, LEASE_S = 0.05, 0.3
WRITES = ("replace", "rename", "fsync", "unlink")


def run(folder: Path) -> None:
    """40 steps, an evaluation and a checkpoint after every tenth."""
    claim = dict(beat_s=BEAT_S, lease_s=LEASE_S)
    own = dict(checkpoints_to_keep=2, resume=True, claim=claim)
    run_fake_trial(folder, FakeWorkload(), fake_submission(log_loss), **own)


def run_worker(folder: Path) -> None:
    """Two trials of 40 steps each."""
    space = folder.with_suffix(".json")
    space.write_text(json.dumps([{"learning_rate": 0.1}, {"learning_rate": 0.2}]))
    request = sweep.Request(
        "fake",
        "counting",
        str(folder.parent),
        folder.name,
        tuning_search_space=str(space),
        num_tuning_trials=2,
        heartbeat_s=LEASE_S / 3,
        max_retries=9,
    )
    with (
        mock.patch.object(trials_request.registry, "load", lambda *_: FakeWorkload()),
        mock.patch.object(trials_request.submission, "load", lambda _: fake_submission(log_loss)),
        mock.patch.object(worker, "_IDLE_S", 0.05),
    ):
        worker.Worker(sweep.Sweep(request), lambda line: None).work()


RUN = {"trial": run, "worker": run_worker}


def before_each_write(do) -> None:
    def with_it(write):
        def do_and_write(*arguments, **named):
            do()
            return write(*arguments, **named)

        return do_and_write

    for name in WRITES:
        setattr(os, name, with_it(getattr(os, name)))


def signal_before(n: int, name: str) -> None:
    count, beat, beating = itertools.count(1), TrialRows.beat, threading.Lock()

    def beat_alone(*arguments):
        with beating:
            return beat(*arguments)

    def signal_at_n():
        if next(count) == n:
            with beating:  # stopped while a heartbeat locks the database, this process would make all others wait
                os.kill(os.getpid(), getattr(signal, name))

    TrialRows.beat = beat_alone
    before_each_write(signal_at_n)


def print_total(kind: str, folder: Path) -> None:
    made = []
    before_each_write(lambda: made.append(1))
    RUN[kind](folder)
    print(len(made), flush=True)


def main() -> None:
    if not (child := os.fork()):
        print_total(sys.argv[1], Path(sys.argv[2]))
        os._exit(0)
    os.waitpid(child, 0)
    for line in sys.stdin:
        folder, n, name = line.rsplit(maxsplit=2)
        child = os.fork()
        if not child:
            signal_before(int(n), name)
            try:
                RUN[sys.argv[1]](Path(folder))
            except ClaimLost:
                os._exit(17)
            except FolderClaimed:
                os._exit(18)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
