"""Space that is kept for an SQLite storage: on real disks that get full."""

import os
import threading

import pytest

from tests.tuning.limits import fill, read_only, small_disk
from tuning import storage_reserve
from tuning.errors import UserError
from tuning.point_queue import PointQueue

POINTS = [{"x": float(i)} for i in range(8)]


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "4m") as place:
        yield place


def join(folder):
    return PointQueue(folder / "s.db", "study", {}, POINTS, heartbeat_s=60)


def at_once(*actions):
    threads = [threading.Thread(target=action) for action in actions]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]


def test_many_give_their_points_back_at_once_to_a_full_disk(disk):
    queues = [join(disk) for _ in POINTS]
    leases = [queue.lease() for queue in queues]
    filler = fill(disk)
    at_once(*(lambda q=queue, held=lease: q.release(held) for queue, lease in zip(queues, leases, strict=True)))
    assert [(point.state, point.n_deaths) for point in queues[0].status()] == [("waiting", 0)] * 8
    assert not (disk / "s.db.reserve").exists()
    filler.unlink()
    assert join(disk).lease() and (disk / "s.db.reserve").stat().st_size == 2**18


def test_a_result_is_stored_on_a_full_disk(disk):
    queue = join(disk)
    lease = queue.lease()
    fill(disk)
    assert queue.finish(lease, {"steps": 1}, 1.0) and queue.status()[0].result == {"steps": 1}


def test_what_others_take_and_give_up_again_is_waited_for(disk, monkeypatch):
    """Another process fills the disk with a file that it removes again."""
    queue = join(disk)
    lease = queue.lease()
    filler = fill(disk)
    (disk / "s.db.reserve").rename(disk / "taken")
    timer = threading.Timer(0.5, (disk / "taken").unlink)
    timer.start()
    assert queue.finish(lease, {}, 1.0) and not timer.is_alive()
    monkeypatch.setattr(storage_reserve, "_TRIES_S", 0.5)
    filler.unlink()
    lease = queue.lease()
    (disk / "s.db.reserve").unlink()
    fill(disk)
    with pytest.raises(UserError, match="the storage .* failed: database or disk is full"):
        queue.finish(lease, {}, 1.0)


def test_the_file_is_made_where_there_is_room_and_made_whole_if_its_maker_died(disk):
    queue, file = join(disk), disk / "s.db.reserve"
    assert not file.exists()
    filler = fill(disk, leave=2**17)
    queue.lease()
    assert not file.exists()
    filler.unlink()
    file.write_bytes(b"half")
    queue.lease()
    assert os.stat(file).st_blocks * 512 == 2**18
    with read_only(disk):
        storage_reserve.StorageReserve(disk / "s.db").keep()
    assert file.exists()
