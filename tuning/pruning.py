"""When a running trial is stopped, as it can hardly win any more. Not for official scores, which know no such end."""

import enum
import math
from collections.abc import Callable
from typing import Any

import optuna

from tuning.outcome import Progress
from tuning.point_queue import Lease, PointQueue
from workloads.spec import Direction


class Pruning(enum.StrEnum):
    """What a trial is compared with."""

    NONE = "none"
    BEST = "best"  # stops at the steps in which the study's best trial so far reached the target
    MEDIAN = "median"  # stops when its best metric is behind the median of finished trials' at the same evaluation


def rule(pruning: Pruning, queue: PointQueue, lease: Lease, workload: Any) -> Callable[[Progress], bool]:
    """Whether the trial of `lease` is to be stopped, to be asked after every evaluation.

    `MEDIAN` is Optuna's MedianPruner with its defaults: nothing is stopped before five trials of the study have
    finished, and trials that were stopped themselves, or crashed, do not count.
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
    return min((own for own in steps if own is not None), default=math.inf)


def _is_behind(queue: PointQueue, lease: Lease, pruner: Any, workload: Any, progress: Progress) -> bool:
    # Evaluations that come by the clock fall on other steps in each trial: those of one number are compared then.
    place = progress.global_step if workload.eval_period_steps else progress.n_evaluations
    # The study minimises, its value being the steps to target, and a pruner goes by the study's direction.
    sign = -1 if workload.validation_target.direction is Direction.HIGHER_IS_BETTER else 1
    if progress.metric is None:  # not evaluated yet
        return False
    return queue.report(lease, place, sign * progress.metric) and queue.should_prune(lease, pruner)
