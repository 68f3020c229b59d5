"""A sweep's queue at its full size: 1,000 points, whose trials take no time, and eight workers."""

import multiprocessing

import pytest

from tuning.point_queue import PointQueue

N_POINTS, N_WORKERS = 1000, 8
POINTS = [{"learning_rate": 1.0 / (i + 1), "damping": float(i)} for i in range(N_POINTS)]


def queue(url: str) -> PointQueue:
    return PointQueue(url, "many", {"points": N_POINTS}, POINTS, heartbeat_s=60)


def drain(url: str) -> list[int]:
    """The points that this process carried out."""
    own, done = queue(url), []
    while (lease := own.lease()) is not None:
        with own.alive(lease):
            pass
        own.finish(lease, {"steps_to_target": lease.index}, float(lease.index))
        done.append(lease.index)
    return done


@pytest.mark.slow
def test_each_of_a_thousand_points_ends_exactly_once(tmp_path):
    url = f"sqlite:///{tmp_path}/queue.db"
    whole = queue(url)
    with multiprocessing.get_context("spawn").Pool(N_WORKERS) as pool:
        done = pool.map(drain, [url] * N_WORKERS, chunksize=1)
    assert sorted(index for indices in done for index in indices) == list(range(1, N_POINTS + 1))
    assert whole.is_done()
