"""A pool of processes for parallel trials, each process on one core."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

import jax

from tuning import compilation_cache
from tuning.interruption import RUN_AGAIN, Interrupted


class Stopped(Interrupted):
    """A signal ended the processes."""

    def __str__(self) -> str:
        return f"stopped by {self.signal_name}: the running trials' checkpoints are kept; {RUN_AGAIN}"


@contextlib.contextmanager
def pool(workers: int) -> Iterator[Executor]:
    """An executor of `workers` processes, each bound to one core.

    With one worker every job runs in this process when it is submitted, on all cores. If the block ends by an error,
    jobs that have not begun are cancelled, and SIGTERM ends the others, which may save their state first. It also ends
    them if this process dies.
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
        yield _Ending(processes)
    except BaseException as error:
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, Interrupted):
            raise Stopped(error.signal_name) from None
        raise
    finally:
        processes.shutdown(cancel_futures=True)


class _Ending(Executor):
    """Runs jobs in processes. A process ends if a signal interrupts its job, so that it begins no other one."""

    def __init__(self, processes: Executor):
        self._processes = processes

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        return self._processes.submit(_run, function, args, kwargs)


def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except Interrupted as stop:
        os._exit(stop.exit_code)


class _ThisProcess(Executor):
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*args, **kwargs))
        return future


def _start(cores: Any, cache: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal; the parent passes it on as SIGTERM
    threading.Thread(target=_end_with_parent, daemon=True).start()
    core = cores.get()
    if core is not None:
        os.sched_setaffinity(0, {core})  # before JAX counts the cores and starts a thread for each
    compilation_cache.use(cache)


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
