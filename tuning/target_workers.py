"""Trials beside each other in processes of one core each."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax

from tuning import compilation_cache
from tuning.outcome import Outcome


def run(
    function: Callable[[Any], Outcome], jobs: Sequence[Any], workers: int, say: Callable[[str], None]
) -> Iterator[Outcome]:
    """The outcomes of `function` in the jobs' order; each is said when those before it are done.

    Args:
        workers: 1 runs all in this process, on all cores; more start so many processes, each kept on a core.
    """
    for job, outcome in zip(jobs, _outcomes(function, jobs, workers), strict=True):
        say(f"{job.folder}: {_describe(outcome)}")
        yield outcome


def _outcomes(function: Callable[[Any], Outcome], jobs: Sequence[Any], workers: int) -> Iterator[Outcome]:
    if workers == 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    for index in range(workers):
        cores.put(available[index % len(available)])
    cache = jax.config.jax_compilation_cache_dir or ""
    with ProcessPoolExecutor(workers, context, _start, (cores, cache)) as pool:
        yield from pool.map(function, jobs)


def _start(cores: Any, cache: str) -> None:
    core = cores.get()
    if core is not None:
        os.sched_setaffinity(
            0, {core}
        )  # before JAX counts the cores: threads that wait for each other cost most of all
    compilation_cache.use(cache)


def _describe(outcome: Outcome) -> str:
    point = " ".join(f"{name}={value:.3g}" for name, value in outcome.hyperparameters.items())
    best = "none" if outcome.best_validation_metric is None else f"{outcome.best_validation_metric:.4f}"
    return f"best {best}, {outcome.reason} at step {outcome.global_step}, {outcome.training_seconds:.1f} s [{point}]"
