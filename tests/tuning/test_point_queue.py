import threading
import time

import pytest

from tuning.errors import UserError
from tuning.point_queue import PointQueue

pytest.importorskip("optuna")
POINTS = [{"learning_rate": 0.1 * (i + 1), "kind": "ab"[i % 2]} for i in range(5)]
IDENTITY = {"workload": "b3db", "seed": 0}


@pytest.fixture
def join(tmp_path):
    def start(identity=IDENTITY, points=POINTS, name="study", heartbeat_s=1):
        return PointQueue(f"sqlite:///{tmp_path}/s.db", name, identity, points, heartbeat_s)

    return start


def _drain(queue):
    done = []
    while (claim := queue.claim()) is not None:
        queue.finish(claim, {"steps": claim.index}, claim.index)
        done.append(claim.index)
    return done


def test_points_are_taken_in_order_once_by_whoever_asks(join):
    first, second = join(), join()
    a, b = first.claim(), second.claim()
    assert (a.index, b.index) == (1, 2) and a.point == POINTS[0]
    for queue, claim in ((first, a), (second, b)):
        queue.finish(claim, {}, 1.0)
    assert sorted(_drain(first) + _drain(second)) == [3, 4, 5]
    assert first.is_done() and join().claim() is None
    assert [(point.state, point.n_deaths) for point in second.status()] == [("done", 0)] * 5


def test_results_are_kept_with_their_points(join):
    _drain(join())
    assert [(point.index, point.result, point.point) for point in join().status()] == [
        (i + 1, {"steps": i + 1}, POINTS[i]) for i in range(5)
    ]


def test_a_dead_workers_point_is_taken_again_and_a_living_ones_is_not(join):
    dead, living, other = join(), join(), join()
    lost, held = dead.claim(), living.claim()
    with living.alive(held):
        assert _drain(other) == [3, 4, 5] and other.claim() is None
        time.sleep(4.5)
        again = other.claim()
        assert (again.index, again.n_deaths, again.point) == (lost.index, 1, lost.point)
        assert other.claim() is None and [p.state for p in other.status()][:2] == ["running", "running"]
        other.finish(again, {}, 1.0)
    living.finish(held, {}, 1.0)
    assert other.is_done()


def test_one_that_died_before_its_first_heartbeat_is_found(join, monkeypatch):
    dead, other = join(), join()
    monkeypatch.setattr(dead._storage, "record_heartbeat", lambda trial_id: None)
    lost = dead.claim()
    assert _drain(other) == [2, 3, 4, 5] and other.claim() is None
    time.sleep(3.5)
    assert other.claim() is None  # failed now, and enqueued at the next look
    assert other.claim().index == lost.index


def test_a_point_lost_between_failing_and_enqueuing_is_enqueued(join):
    dead, other = join(), join()
    lost = dead.claim()
    from optuna.trial import TrialState

    dead._storage.set_trial_state_values(lost.trial_id, TrialState.FAIL)
    assert sorted(_drain(other)) == [1, 2, 3, 4, 5] and other.is_done()


def test_a_point_enqueued_twice_runs_once(join):
    queue = join()
    queue._enqueue(2, 1)
    assert sorted(_drain(queue)) == [1, 2, 3, 4, 5]


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


def test_a_storage_that_cannot_be_used_is_one_line(tmp_path):
    for url in (
        "sqlite:////no/such/folder/s.db",
        "nonsense://x",
        f"postgresql://me:secret@127.0.0.1:1/{tmp_path.name}",
    ):
        with pytest.raises(UserError, match="cannot use the storage") as error:
            PointQueue(url, "study", IDENTITY, POINTS)
        assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_a_point_given_back_is_no_death_and_to_be_had_at_once(join):
    stopping, other = join(), join()
    given = stopping.claim()
    stopping.release(given)
    assert _drain(other) == [2, 3, 4, 5, 1] and other.is_done()
    assert [point.n_deaths for point in other.status()] == [0] * 5


def test_a_crashed_points_result_is_kept_and_it_is_not_run_again(join):
    queue = join()
    queue.finish(queue.claim(), {"reason": "crashed", "error": "e"})
    assert _drain(queue) == [2, 3, 4, 5] and queue.is_done()
    assert join().status()[0].result == {"reason": "crashed", "error": "e"}
    assert queue._study.best_trial.number == 1  # it has no value that could be the best


def test_the_last_dead_workers_log_is_told_to_the_next(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    dead = PointQueue(url, "study", IDENTITY, POINTS, 1, log="/logs/one")
    lost, other = dead.claim(), PointQueue(url, "study", IDENTITY, POINTS, 1, log="/logs/two")
    assert _drain(other) == [2, 3, 4, 5]
    time.sleep(4.5)
    again = other.claim()
    assert (again.index, again.log) == (lost.index, "/logs/one")


def test_a_heartbeat_missed_is_not_the_last(join, monkeypatch):
    from sqlalchemy.exc import OperationalError

    queue = join()
    claim, record, n_signs = queue.claim(), queue._storage.record_heartbeat, []

    def fails_at_first(trial_id):
        n_signs.append(trial_id)
        if len(n_signs) == 1:
            raise OperationalError("UPDATE", {}, Exception("the database is starting up"))
        record(trial_id)

    monkeypatch.setattr(queue._storage, "record_heartbeat", fails_at_first)
    with queue.alive(claim):
        time.sleep(2.5)
    assert len(n_signs) == 3


def test_a_storage_that_fails_meanwhile_is_one_line(join, tmp_path):
    queue = join()
    claim = queue.claim()
    (tmp_path / "s.db").write_bytes(b"no database any more" * 500)
    for ask in (queue.claim, queue.status, lambda: queue.finish(claim, {}, 1.0)):
        with pytest.raises(UserError, match="the storage .* failed: .*run the command again when it is mended"):
            ask()


def test_a_study_whose_maker_died_at_once_is_made_whole(join, tmp_path):
    import optuna

    optuna.create_study(storage=f"sqlite:///{tmp_path}/s.db", study_name="study")
    assert _drain(join()) == [1, 2, 3, 4, 5]
