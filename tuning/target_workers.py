"""A pool of processes for parallel trials, each process on one core."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax

from tuning import compilation_cache, parent
from tuning.errors import MachineFault
from tuning.interruption import CHECKPOINTS_KEPT, RUN_AGAIN, Interrupted


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Callable[..., Future]]:
    """`with pool(workers) as submit:` has processes run jobs: `submit(function, *arguments)` returns a Future.

    Each of the `workers` processes is bound to one core. With one worker every job runs in this process when it is
    submitted, on all cores. If the block ends by an error, jobs that have not begun are cancelled, and SIGTERM ends the
    others, which may save their state first. It also ends them if this process dies.

    Raises:
        MachineFault: a process of the pool died.
    """
    if workers == 1:
        yield _submit_here
        return
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    for index in range(workers):
        cores.put(available[index % len(available)])
    cache = jax.config.values["jax_compilation_cache_dir"] or ""
    processes = ProcessPoolExecutor(workers, context, _start, (cores, cache, os.getpid()))
    try:
        yield lambda function, *arguments: processes.submit(_run, function, *arguments)
    except BaseException as error:
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, Interrupted):
            raise Interrupted(error.signal_name, CHECKPOINTS_KEPT, RUN_AGAIN) from None
        if isinstance(error, BrokenProcessPool):
            raise MachineFault("a worker died; run the command again") from error
        raise
    finally:
        processes.shutdown(cancel_futures=True)


def _submit_here(function: Callable[..., Any], *arguments: Any) -> Future:
    future: Future = Future()
    future.set_result(function(*arguments))
    return future


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a job. If a signal interrupts it, this process ends, so that it begins no other one."""
    try:
        return function(*arguments)
    except Interrupted as stop:
        os._exit(stop.exit_code)


def _start(cores: Any, cache: str, pool_process: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal; the parent passes it on as SIGTERM
    parent.end_with(pool_process)
    core = cores.get()
    if core is not None:
        os.sched_setaffinity(0, {core})  # before JAX counts the cores and starts a thread for each
    compilation_cache.use(cache)
