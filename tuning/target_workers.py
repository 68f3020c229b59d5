"""A pool of processes for parallel trials, each process on one core."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

import jax

from tuning import compilation_cache


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Executor]:
    """An executor of `workers` processes, each bound to one core.

    With one worker every job runs in this process when it is submitted, on all cores. Jobs that have not begun are
    cancelled when the block ends by an error.
    """
    if workers == 1:
        yield _ThisProcess()
        return
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    for index in range(workers):
        cores.put(available[index % len(available)])
    cache = jax.config.values["jax_compilation_cache_dir"] or ""
    processes = ProcessPoolExecutor(workers, context, _start, (cores, cache))
    try:
        yield processes
    finally:
        processes.shutdown(cancel_futures=True)


class _ThisProcess(Executor):
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*args, **kwargs))
        return future


def _start(cores: Any, cache: str) -> None:
    core = cores.get()
    if core is not None:
        os.sched_setaffinity(0, {core})  # before JAX counts the cores and starts a thread for each
    compilation_cache.use(cache)
