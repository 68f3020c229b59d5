"""The cost of claiming and finishing a point, with several workers whose trials take no time."""

import multiprocessing
import time
from collections.abc import Sequence

from benchmarks.timing import markdown
from tuning.point_queue import PointQueue


def table(urls: Sequence[str], n_points: int, n_workers: int) -> str:
    """A row for each storage; checks that every point was carried out once."""
    rows = []
    for url in urls:
        points = [{"learning_rate": 1.0 / (i + 1), "damping": float(i)} for i in range(n_points)]
        started = time.perf_counter()
        queue = _queue(url, points)
        enqueued = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(n_workers) as pool:
            pool.map(_warm, range(n_workers))
            began = time.perf_counter()
            done = pool.starmap(_drain, [(url, points)] * n_workers, chunksize=1)
        seconds = time.perf_counter() - began
        if (
            sorted(index for indices in done for index in indices) != list(range(1, n_points + 1))
            or not queue.is_done()
        ):
            raise AssertionError(f"{url.split(':')[0]}: a point was lost, or done twice")
        rows.append([url.split(":")[0], n_points, n_workers, enqueued - started, seconds, 1e3 * seconds / n_points])
    return markdown(["storage", "points", "workers", "enqueuing (s)", "carrying out (s)", "ms a trial"], rows)


def _queue(url: str, points: list[dict]) -> PointQueue:
    return PointQueue(url, "overhead", {"points": len(points)}, points, heartbeat_s=60)


def _warm(_: int) -> None:
    """Does nothing, but the worker process imports this module, and all libraries, to call it."""


def _drain(url: str, points: list[dict]) -> list[int]:
    queue, done = _queue(url, points), []
    while (lease := queue.claim()) is not None:
        with queue.alive(lease):
            pass
        queue.finish(lease, {"steps_to_target": lease.index}, float(lease.index))
        done.append(lease.index)
    return done
