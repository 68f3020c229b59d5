"""A sweep whose SQLite file another process keeps locked: a suspended one, in the middle of a change."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from tuning import study_storage
from tuning.point_queue import PointQueue
from tuning.point_status import stored

POINTS = [{"x": float(i)} for i in range(6)]
_SUSPENDED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(f"BEGIN {sys.argv[2]}")
os.kill(os.getpid(), signal.SIGSTOP)
connection.execute("COMMIT")
"""


@contextmanager
def suspended(file, kind):
    """A process that is suspended while it holds the lock; the function given out continues it."""
    process = subprocess.Popen([sys.executable, "-c", _SUSPENDED, str(file), kind])
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield lambda: process.send_signal(signal.SIGCONT)
    finally:
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0


@pytest.fixture
def join(folder, monkeypatch):
    monkeypatch.setattr(study_storage, "_BUSY_S", 0.05)
    monkeypatch.setattr(study_storage, "_RETRY_S", 0.05)
    return lambda: PointQueue(folder / "s.db", "study", {}, POINTS, heartbeat_s=0.5)


def after(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


@pytest.mark.parametrize("kind", ["IMMEDIATE", "EXCLUSIVE"])
def test_the_lock_is_waited_for_without_a_bound_and_said_so_once(join, folder, monkeypatch, caplog, kind):
    monkeypatch.setattr(study_storage, "PATIENCE_S", 0.0)
    queue = join()
    lease = queue.lease()
    for change in (queue.lease, lambda: queue.finish(lease, {}, 1.0), queue.recover, join):
        caplog.clear()
        with suspended(folder / "s.db", kind) as go_on:
            timer = after(0.5, go_on)
            assert change() and not timer.is_alive()
        (line,) = caplog.messages
        assert line == (
            f"waiting for the storage {folder}/s.db: database is locked by another process; "
            "if that is suspended, continue or end it (PostgreSQL has no such lock)"
        )
    assert [point.state for point in queue.status()] == ["done", "running", *["waiting"] * 4]


@pytest.mark.parametrize("give_back", [PointQueue.release, lambda queue, _: queue.give_back([os.getpid()])])
def test_a_point_given_back_meanwhile_is_no_death(join, folder, give_back):
    queue = join()
    lease = queue.lease()
    with suspended(folder / "s.db", "IMMEDIATE") as go_on:
        after(1.0, go_on)
        give_back(queue, lease)
    assert [queue.lease().index for _ in POINTS] == [2, 3, 4, 5, 6, 1]
    assert {point.n_deaths for point in queue.status()} == {0}


def test_those_whose_heartbeats_the_lock_stopped_keep_their_points(join, folder):
    living, watching, is_over = [join() for _ in POINTS], join(), threading.Event()

    def carry_out(queue, lease):
        with queue.alive(lease):
            is_over.wait()

    def watch():
        while not is_over.is_set():
            watching.recover()
            time.sleep(0.05)

    leases = [queue.lease() for queue in living]
    threads = [threading.Thread(target=carry_out, args=held) for held in zip(living, leases, strict=True)]
    threads.append(threading.Thread(target=watch))
    [thread.start() for thread in threads]
    with suspended(folder / "s.db", "IMMEDIATE") as go_on:  # it lets others read that there are no heartbeats
        time.sleep(2.5)  # more than three heartbeats
        go_on()
        time.sleep(1.0)
    is_over.set()
    [thread.join() for thread in threads]
    assert not any(lease.lost.is_set() for lease in leases)
    assert [(point.state, point.n_deaths) for point in watching.status()] == [("running", 0)] * 6


def test_one_who_only_looks_hears_what_to_do(join, folder):
    join()
    with suspended(folder / "s.db", "EXCLUSIVE"), pytest.raises(study_storage.UserError) as error:
        stored(folder / "s.db", "study")
    assert "locked by another process; if that is suspended, continue or end it" in str(error.value)
