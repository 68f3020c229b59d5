import os
import threading
import time

import pytest

from tests.tuning.fake_trial import FakeTime
from tuning import process_identity, study_storage
from tuning.errors import UserError
from tuning.point_queue import PointQueue
from tuning.point_status import stored

POINTS = [{"learning_rate": 0.1 * (i + 1), "kind": "ab"[i % 2]} for i in range(5)]
IDENTITY = {"workload": "b3db", "seed": 0}


@pytest.fixture
def clock():
    return FakeTime()


@pytest.fixture
def join(folder, clock):
    def start(identity=IDENTITY, points=POINTS, name="study", **options):
        options = {"heartbeat_s": 1, "clock": clock} | options
        return PointQueue(folder / "s.db", name, identity, points, **options)

    return start


def _drain(queue):
    done = []
    while (lease := queue.lease()) is not None:
        queue.finish(lease, {"steps": lease.index}, lease.index)
        done.append(lease.index)
    return done


def _watch(queue, clock, seconds):
    """Looks of one second each, as an idle worker's."""
    for _ in range(seconds):
        clock.advance(1.0)
        queue.recover()


def test_points_are_taken_in_order_once_by_whoever_asks(join):
    first, second = join(), join()
    a, b = first.lease(), second.lease()
    assert (a.index, b.index) == (1, 2)
    for queue, lease in ((first, a), (second, b)):
        assert queue.finish(lease, {}, 1.0)
    assert sorted(_drain(first) + _drain(second)) == [3, 4, 5]
    assert first.is_done() and join().lease() is None
    assert [(point.state, point.n_deaths) for point in second.status()] == [("done", 0)] * 5


def test_results_and_points_are_kept_with_their_types(join, folder):
    points = [{"n": 1, "rate": 1.0, "flag": True, "list": [1, 2.0, None], "text": "x"}, {"n": 2, "rate": 1}]
    points[1] |= {"flag": False, "list": [{"a": 1}], "text": None}
    _drain(join(points=points, name="e/study_1"))
    for found in (join(points=points, name="e/study_1").status(), [p for _, p in stored(folder / "s.db", "e")]):
        assert [repr(point.point) for point in found] == [repr(point) for point in points]
        assert [(point.index, point.result) for point in found] == [(1, {"steps": 1}), (2, {"steps": 2})]


def test_a_silent_workers_point_is_taken_again_and_a_living_ones_is_not(join, clock):
    silent, living, other = join(), join(), join()
    lost, held = silent.lease(), living.lease()
    with living.alive(held):
        assert _drain(other) == [3, 4, 5] and other.lease() is None
        for _ in range(4):
            assert other.lease() is None
            clock.advance(1.0)
            living._rows.beat(held.trial_id, int(clock()))
        again = other.lease()
        assert (again.index, again.n_deaths) == (lost.index, 1)
        assert other.lease() is None and [p.state for p in other.status()][:2] == ["running", "running"]
        assert not silent.finish(lost, {"steps": 99}) and other.finish(again, {"steps": 1}, 1.0)
        assert not held.lost.is_set()
    assert living.finish(held, {}, 1.0) and other.is_done()
    assert other.status()[0].result == {"steps": 1}


def test_a_step_of_the_wall_clock_and_a_watcher_that_was_stopped_change_nothing(join, clock, monkeypatch):
    held, other = join(), join()
    lease = held.lease()
    other.recover()
    for step in (100.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda step=step: clock() + step)
        clock.advance(0.5)
        other.recover()
    clock.advance(3600.0)  # as after SIGSTOP of both: the holder has had no time to give a sign
    other.recover()
    assert other.status()[0].state == "running"
    held._rows.beat(lease.trial_id, 1)
    _watch(other, clock, 3)
    assert held.finish(lease, {}, 1.0)


def test_a_worker_hears_that_its_point_is_anothers(join, clock):
    stalled, other = join(), join()
    lease = stalled.lease()
    _watch(other, clock, 5)
    with stalled.alive(lease):
        assert lease.lost.wait(5.0)
    assert not stalled.report(lease, 1, 0.5)
    stalled.release(lease)
    assert sorted(_drain(other)) == [1, 2, 3, 4, 5] and other.status()[0].n_deaths == 1


def test_one_whose_process_is_gone_is_known_to_be_dead_at_once(join, monkeypatch):
    dead, other = join(), join()
    lost = dead.lease()
    monkeypatch.setattr(process_identity, "has_ended", lambda process: process.get("token") == dead._owner["token"])
    assert _drain(other) == [2, 3, 4, 5, 1] and other.status()[0].n_deaths == 1
    assert not dead.finish(lost, {}, 1.0)


def test_a_point_lost_between_failing_and_enqueuing_is_enqueued(join):
    from optuna.trial import TrialState

    dead, other = join(), join()
    dead._rows.end(dead.lease().trial_id, TrialState.FAIL)
    assert sorted(_drain(other)) == [1, 2, 3, 4, 5] and other.is_done()


def test_a_point_enqueued_twice_runs_once(join):
    queue, other = join(), join()
    queue._study.enqueue([2])
    assert sorted(_drain(queue)) == [1, 2, 3, 4, 5] and other.lease() is None


def test_points_that_two_enqueued_at_once_run_once_each(join, folder):
    import optuna

    optuna.create_study(storage=f"sqlite:///{folder}/s.db", study_name="study")  # its maker died at once
    queue = join(points=POINTS[:0], heartbeat_s=0.1)
    queue._study._points, queue._n_points = POINTS, 5
    queue._study.enqueue([1, 1, 2, 2, 4])  # by two makers that died in the middle
    assert sorted(_drain(join(heartbeat_s=0.1))) == [1, 2, 3, 4, 5]


def test_many_at_once_share_the_points(join):
    points = [{"learning_rate": float(i)} for i in range(40)]
    done, queues = [], []

    def work():
        queue = join(points=points, name="many", heartbeat_s=60)
        queues.append(queue)
        done.extend(_drain(queue))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(done) == list(range(1, 41)) and queues[0].is_done()


def test_another_identity_is_refused_by_name(join):
    join()
    with pytest.raises(UserError, match="has another seed: 0, not 1; give another --experiment_name") as error:
        join(identity=IDENTITY | {"seed": 1})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:////no/such/folder/s.db", "unable to open database file; check --storage"),
        ("sqlite:////tmp", "unable to open database file; check --storage"),
        ("postgresql://me:secret@127.0.0.1:1/db", "refused.*; check --storage"),
        ("sqlite://", "not a file that several processes can share: give --storage="),
        ("sqlite:///:memory:", "not a file that several processes can share"),
        ("sqlite:///file:x?mode=memory&uri=true", "not a file that several processes can share"),
        ("sqlite:////a?b.db", "not a file that several processes can share"),
        ("postgres://h/d", "unknown kind, postgres: give --storage=postgresql://"),
        ("redis://me:secret@h", "unknown kind, redis"),
        ("study.db", "Could not parse .* give --storage="),
        ("", "Could not parse"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(url, words):
    with pytest.raises(UserError, match=words) as error:
        PointQueue(url, "study", IDENTITY, POINTS)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_a_point_given_back_is_no_death_and_to_be_had_at_once(join):
    stopping, other = join(), join()
    given = stopping.lease()
    stopping.release(given)
    assert _drain(other) == [2, 3, 4, 5, 1] and other.is_done()
    assert [point.n_deaths for point in other.status()] == [0] * 5


def test_what_a_killed_worker_held_is_given_back_for_it(join):
    killed, other = join(), join()
    lease = killed.lease()
    other.give_back([os.getpid() + 1])
    assert other.status()[0].state == "running"
    other.give_back([os.getpid()])
    assert not killed.finish(lease, {}, 1.0) and sorted(_drain(other)) == [1, 2, 3, 4, 5]
    assert other.status()[0].n_deaths == 0


def test_a_point_that_a_machine_gave_back_goes_to_another_one_first(join, clock):
    sick, same, well = join(machine="a", log="/logs/a"), join(machine="a"), join(machine="b")
    sick.release(sick.lease(), fault="OSError: Too many open files")
    assert _drain(same) == [2, 3, 4, 5]
    lease = well.lease()
    fault = {"error": "OSError: Too many open files", "machine": "a", "log": "/logs/a"}
    assert (lease.index, lease.n_deaths, lease.faults) == (1, 0, (fault,))
    well.release(lease)
    for _ in range(4):
        assert same.lease() is None
        clock.advance(1.0)
    assert same.lease().faults == (fault,)  # no other came
    assert same.status()[0].faults == ("OSError: Too many open files",)


def test_a_crashed_points_result_is_kept_until_it_is_to_be_tried_again(join):
    queue, other = join(), join()
    crash = {"reason": "crashed", "error": "e"}
    queue.finish(queue.lease(), crash)
    assert _drain(queue) == [2, 3, 4, 5] and queue.is_done()
    assert join().status()[0].result == crash
    assert queue._study.study.best_trial.number == 1  # it has no value that could be the best
    assert (queue.retry_crashed(), other.retry_crashed()) == (1, 0)
    assert [point.state for point in other.status()] == ["waiting"] + ["done"] * 4
    lease = other.lease()
    assert (lease.index, lease.n_deaths, lease.faults) == (1, 0, ())
    other.finish(lease, {"steps": 1}, 1.0)
    assert queue.is_done() and queue.status()[0].result == {"steps": 1} and queue.lease() is None


def test_the_last_dead_workers_log_is_told_to_the_next(join, clock):
    dead, other = join(log="/logs/one"), join(log="/logs/two")
    lost = dead.lease()
    assert _drain(other) == [2, 3, 4, 5]
    _watch(other, clock, 5)
    again = other.lease()
    assert (again.index, again.log) == (lost.index, "/logs/one")


def test_a_heartbeat_missed_is_not_the_last(join, monkeypatch):
    from sqlalchemy.exc import OperationalError

    queue = join(heartbeat_s=0.1)
    lease, beat, counts = queue.lease(), queue._rows.beat, []

    def fails_at_first(trial_id, count):
        counts.append(count)
        if len(counts) == 1:
            raise OperationalError("UPDATE", {}, Exception("the database is starting up"))
        return beat(trial_id, count)

    monkeypatch.setattr(queue._rows, "beat", fails_at_first)
    with queue.alive(lease):
        while len(counts) < 3:
            time.sleep(0.01)
    (trial,) = (trial for trial in queue._study.trials() if trial._trial_id == lease.trial_id)
    assert trial.user_attrs["beat"] >= 3


def test_a_storage_that_fails_meanwhile_is_one_line(join, folder):
    queue = join()
    lease = queue.lease()
    (folder / "s.db").write_bytes(b"no database any more" * 500)
    for ask in (queue.lease, queue.status, lambda: queue.finish(lease, {}, 1.0)):
        with pytest.raises(UserError, match="the storage .* failed: .*run the command again when it is fixed"):
            ask()


@pytest.mark.parametrize("method", ["take", "end"])
def test_an_update_of_which_the_storage_did_not_say_whether_it_was_made_is_made_once(join, monkeypatch, method):
    queue, other = join(), join()
    lost = ConnectionError("the server closed the connection")
    monkeypatch.setattr(study_storage, "is_unavailable", lambda error: error is lost)
    monkeypatch.setattr(study_storage, "_RETRY_S", 0.0)
    change, calls = getattr(queue._rows, method), []

    def made_but_not_answered(*args, **options):
        found = change(*args, **options)
        calls.append(found)
        if len(calls) % 2:
            raise lost
        return found

    monkeypatch.setattr(queue._rows, method, made_but_not_answered)
    assert _drain(queue) == [1, 2, 3, 4, 5] and len(calls) == 10
    assert other.lease() is None and [(p.state, p.n_deaths) for p in other.status()] == [("done", 0)] * 5
