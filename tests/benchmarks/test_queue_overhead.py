"""A sweep's queue at its full size. The benchmark itself refuses a point that was lost or carried out twice."""

from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import pytest

from benchmarks import queue_overhead
from tuning import point_queue

pytest.importorskip("optuna")


@pytest.mark.slow
def test_a_thousand_points_each_end_exactly_once_with_eight_workers(tmp_path):
    table = queue_overhead.table([f"sqlite:///{tmp_path}/queue.db"], 1000, 8)
    assert "| sqlite | 1000 | 8 |" in table


def test_a_point_that_is_lost_or_carried_out_twice_is_an_error(tmp_path, monkeypatch):
    class Losing(point_queue.PointQueue):
        def claim(self):
            lease = super().claim()
            return lease if lease is None or lease.index != 2 else super().claim()

    monkeypatch.setattr(queue_overhead, "PointQueue", Losing)
    monkeypatch.setattr(queue_overhead.multiprocessing, "get_context", lambda kind: SimpleNamespace(Pool=ThreadPool))
    with pytest.raises(AssertionError, match="sqlite: a point was lost, or done twice"):
        queue_overhead.table([f"sqlite:///{tmp_path}/queue.db"], 3, 1)
