"""Which of a submission's trials count, and what they cost: the paper's protocol, and AlgoPerf's.

The paper: the best point, repeated over seeds. AlgoPerf: the median over studies of the best trial.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np

from tuning import scoring
from tuning.outcome import Miss
from tuning.report.reading import UNFINISHED, Phase, Trial
from tuning.scoring import Spread

# Neither a hit nor a miss of the budget: left out of every median.
NO_RESULT = (str(Miss.PRUNED), UNFINISHED)
# Ended before the budget, so that its seconds are not those of the budget.
_BROKEN_OFF = (str(Miss.DIVERGED), str(Miss.CRASHED))


class Cost(StrEnum):
    """What it took to reach the target. `words` is for people.

    Training seconds are AlgoPerf's seconds less those that compilation took. They exist only where the trial has its
    compile seconds on record: the official harness records none.
    """

    STEPS = "steps"
    SECONDS = "seconds"
    TRAINING_SECONDS = "training_seconds"

    @property
    def words(self) -> str:
        return self.value.replace("_", " ")


def best_point(trials: Sequence[Trial]) -> tuple[list[Trial], str]:
    """The trials of the best point, one a seed, and how they came about."""
    ended = [trial for trial in trials if trial.state not in NO_RESULT]
    for phase, told in ((Phase.REFERENCE, "the target's own configuration"), (Phase.REPEAT, "the search's best point")):
        repeated = _by_point([trial for trial in ended if trial.phase is phase])
        if repeated:
            own = max(repeated, key=len)
            return own, f"{told}, on {_seeds(own)}"
    several = [own for own in _by_point(ended) if len({trial.rng_seed for trial in own}) > 1]
    if several:
        most = max(len(own) for own in several)
        own = min((own for own in several if len(own) == most), key=merit)
        return own, f"every point on {_seeds(own)}, the best one's"
    if not ended:
        return [], "no trial has ended"
    return [min(ended, key=lambda trial: merit([trial]))], "the search's best trial, on one seed"


def median_of_best(studies: Mapping[int, Sequence[Trial]], cost: Cost) -> float | None:
    """AlgoPerf's median over studies of the best trial; None where most studies have no hit, or none is on record."""
    times = {}
    for study, trials in studies.items():
        hits = [trial for trial in trials if trial.hit_at(trial.target) is not None]
        times[study] = known_costs(hits, cost)
        if len(times[study]) < len(hits):
            return None
    median = scoring.median_of_best(times) if times else math.inf
    return median if math.isfinite(median) else None


def spent(trial: Trial, cost: Cost, target: float | None = None) -> float | None:
    """Cost until `target` (the trial's own if not given), or of the whole trial where it missed; None if not on record.

    A miss counts the whole budget of steps. Seconds of a miss that broke off are NaN: they are not the budget's.
    """
    at = trial.hit_at(trial.target if target is None else target)
    if cost is Cost.STEPS:
        return _steps(trial, at)
    compile_seconds = trial.compile_seconds if cost is Cost.TRAINING_SECONDS else 0.0
    if compile_seconds is None:
        return None
    if at is None and (trial.state in _BROKEN_OFF or not trial.seconds.size):
        return math.nan
    return max(0.0, float(trial.seconds[-1 if at is None else at]) - compile_seconds)


def known_costs(trials: Sequence[Trial], cost: Cost, target: float | None = None) -> list[float]:
    """What `spent` finds, without the trials whose cost is not on record."""
    found = (spent(trial, cost, target) for trial in trials)
    return [own for own in found if own is not None]


def _steps(trial: Trial, hit: int | None) -> float:
    last = trial.steps[-1] if trial.steps.size else 0
    return float(trial.steps[hit]) if hit is not None else float(trial.budget or last)


def spread(trials: Sequence[Trial], cost: Cost, target: float | None = None) -> Spread | None:
    """Over the trials of one point; None where a cost is not on record, or the median is that of a broken-off trial."""
    goals = [trial.target if target is None else target for trial in trials]
    values = known_costs(trials, cost, target)
    if not trials or None in goals or len(values) < len(trials):
        return None
    missed = [trial.hit_at(goal) is None for trial, goal in zip(trials, goals, strict=True)]
    found = Spread.of(values, missed)
    return None if math.isnan(found.median) else found


def share_of_hits(trials: Sequence[Trial]) -> tuple[int, int]:
    """(hits, ended trials) of a search: how forgiving its space is."""
    search = [trial for trial in trials if trial.phase is Phase.SEARCH and trial.target is not None]
    ended = [trial for trial in search if trial.state not in NO_RESULT]
    return sum(trial.hit_at(trial.target) is not None for trial in ended), len(ended)


def test_metric_at_hit(trials: Sequence[Trial]) -> float | None:
    """Median of the test metric at the evaluation that reached the target, of those on record."""
    at_hit = [trial.test_values[at] for trial in trials if (at := trial.hit_at(trial.target)) is not None]
    known = [float(value) for value in at_hit if np.isfinite(value)]
    return statistics.median(known) if known else None


def merit(trials: Sequence[Trial]) -> tuple[float, float]:
    """Less is better: mean steps to target, and for points that all missed it how far the metric is from it."""
    steps = statistics.mean(_steps(trial, trial.hit_at(trial.target)) for trial in trials)
    sign = 1 if trials[0].lower_is_better else -1
    return steps, statistics.mean(math.inf if trial.best is None else sign * trial.best for trial in trials)


def _by_point(trials: Sequence[Trial]) -> list[list[Trial]]:
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[repr(sorted(trial.point.items()))].append(trial)
    return list(groups.values())


def _seeds(trials: Sequence[Trial]) -> str:
    n = len({trial.rng_seed for trial in trials})
    return f"{n} seed{'s' if n > 1 else ''}"
