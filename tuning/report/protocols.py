"""Which of a submission's trials count, and what they come to: the paper's protocol, and AlgoPerf's.

The paper: the best point, its mean over seeds. AlgoPerf: the median over studies of the best trial.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from tuning import scoring
from tuning.outcome import Miss
from tuning.report.reading import UNFINISHED, Trial
from tuning.scoring import Spread

# Neither a hit nor a miss of the budget: left out of every mean.
NO_RESULT = (str(Miss.PRUNED), UNFINISHED)


def best_point(trials: Sequence[Trial]) -> tuple[list[Trial], str]:
    """The trials of the best point, one a seed, and how they came about."""
    ended = [trial for trial in trials if trial.state not in NO_RESULT]
    repeated = _by_point([trial for trial in ended if trial.is_repetition])
    if repeated:
        own = max(repeated, key=len)
        return own, f"the search's best point again on {_seeds(own)}"
    several = [own for own in _by_point(ended) if len({trial.rng_seed for trial in own}) > 1]
    if several:
        most = max(len(own) for own in several)
        own = min((own for own in several if len(own) == most), key=_mean_steps)
        return own, f"every point on {_seeds(own)}, the best one's"
    if not ended:
        return [], "no trial has ended"
    return [min(ended, key=lambda trial: _mean_steps([trial]))], "the search's best trial, on one seed"


def median_of_best(studies: Mapping[int, Sequence[Trial]], cost: Callable[[Trial, int], float]) -> float | None:
    """Of `cost(trial, evaluation)`, at the first hit; None where most studies have none."""
    times = {}
    for study, trials in studies.items():
        hits = [(trial, trial.hit_at(trial.target)) for trial in trials]
        times[study] = [float(cost(trial, at)) for trial, at in hits if at is not None]
    median = scoring.median_of_best(times) if times else math.inf
    return median if math.isfinite(median) else None


def steps_to(trials: Sequence[Trial], target: float) -> Spread:
    counted = [counted_steps(trial, target) for trial in trials]
    return Spread.of([steps for steps, _ in counted], sum(is_miss for _, is_miss in counted))


def counted_steps(trial: Trial, target: float | None) -> tuple[float, bool]:
    """Steps to `target`, or the whole budget and True."""
    at = trial.hit_at(target)
    if at is not None:
        return float(trial.steps[at]), False
    last = trial.steps[-1] if trial.steps.size else 0
    return float(trial.budget or last), True


def training_seconds(trial: Trial) -> float:
    """Seconds to target, or of the whole trial, without compilation where that is on record."""
    at = trial.hit_at(trial.target)
    if not trial.seconds.size:
        return 0.0
    return float(trial.seconds[-1 if at is None else at]) - (trial.compile_seconds or 0.0)


def _by_point(trials: Sequence[Trial]) -> list[list[Trial]]:
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[repr(sorted(trial.point.items()))].append(trial)
    return list(groups.values())


def _seeds(trials: Sequence[Trial]) -> str:
    n = len({trial.rng_seed for trial in trials})
    return f"{n} seed{'s' if n > 1 else ''}"


def _mean_steps(trials: Sequence[Trial]) -> tuple[float, float]:
    """Mean steps to target, and for points that all missed it how far the metric is from it."""
    counted = [counted_steps(trial, trial.target)[0] for trial in trials]
    best = statistics.mean(math.inf if trial.best is None else trial.best for trial in trials)
    return statistics.mean(counted), best if scoring.lower_is_better(trials[0].metric) else -best
