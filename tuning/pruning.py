"""Rules that stop a running trial that can hardly win any more. They are not for official scores."""

import enum
import math
from collections.abc import Callable
from typing import Any

import optuna

from tuning.outcome import Progress
from tuning.point_queue import Lease, PointQueue


class Pruning(enum.StrEnum):
    """Which trials a trial is compared with."""

    NONE = "none"
    BEST = "best"  # stops after as many steps as the study's best trial so far needed to reach the target
    MEDIAN = "median"  # stops when its best metric is worse than the finished trials' median at this evaluation


def rule(pruning: Pruning, queue: PointQueue, lease: Lease, workload: Any) -> Callable[[Progress], bool]:
    """The rule that stops the trial of `lease`; it is called after every evaluation.

    `MEDIAN` is Optuna's MedianPruner with its defaults: no trial is stopped before five trials of the study have
    finished. Trials that were stopped or crashed do not count.
    """
    if pruning is Pruning.BEST:
        return lambda progress: progress.global_step >= _steps_of_the_best(queue)
    if pruning is Pruning.MEDIAN:
        pruner = optuna.pruners.MedianPruner()
        return lambda progress: _is_behind(queue, lease, pruner, workload, progress)
    return lambda progress: False


def _steps_of_the_best(queue: PointQueue) -> float:
    """Steps to target of the study's best trial so far; infinite while none has reached it."""
    steps = [point.result.get("steps_to_target") for point in queue.status() if point.result]
    return min((n_steps for n_steps in steps if n_steps is not None), default=math.inf)


def _is_behind(queue: PointQueue, lease: Lease, pruner: Any, workload: Any, progress: Progress) -> bool:
    # Evaluations at fixed times fall on different steps in each trial. Then the n-th evaluations are compared.
    step = progress.global_step if workload.eval_period_steps else progress.n_evaluations
    # A pruner uses the study's direction. The study minimises, since its value is the steps to target.
    sign = -workload.validation_target.direction.sign
    if progress.metric is None:  # not evaluated yet
        return False
    return queue.report(lease, step, sign * progress.metric) and queue.should_prune(lease, pruner)
