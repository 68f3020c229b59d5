"""Which of a submission's trials count, and their cost, by two protocols.

The K-FAC paper's: the best point, repeated over seeds. AlgoPerf's: the median over studies of the best trial.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import numpy as np

from tuning.outcome import Miss
from tuning.report.location import Phase
from tuning.report.reading import UNFINISHED, Trial
from tuning.scoring import SeedMedian

# States that are neither a hit nor a miss. Medians over seeds leave these trials out. In medians over studies, a study
# with no other trials counts as a miss.
NO_RESULT = (str(Miss.PRUNED), UNFINISHED)
# States of trials that ended before the budget, so that their seconds are not the budget's.
_ENDED_EARLY = (str(Miss.DIVERGED), str(Miss.CRASHED))


class Cost(StrEnum):
    """A cost of reaching the target. `words` is its name in texts.

    Training seconds are AlgoPerf's seconds without compilation. They are known only if the trial's compile seconds are
    on record; the official harness records none.
    """

    STEPS = "steps"
    SECONDS = "seconds"
    TRAINING_SECONDS = "training_seconds"

    @property
    def words(self) -> str:
        return self.value.replace("_", " ")


class Scored(StrEnum):
    """The times that performance profiles and scores are made from. The value is their name in texts."""

    STUDIES = "AlgoPerf's median over studies of each one's best trial"
    REPEATS = "the median over the timed repeats"

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> "Scored":
        """REPEATS for a report with timed trials: the seconds of its searches cannot be compared with theirs."""
        return cls.REPEATS if any(trial.phase.is_timed for trial in trials) else cls.STUDIES

    def studies(self, trials: Sequence[Trial]) -> dict[int, list[Trial]]:
        """Study -> the trials of one submission on one workload that count. Each timed repeat is a study of its own."""
        if self is Scored.REPEATS:
            timed = (trial for trial in best_point(trials)[0] if trial.phase.is_timed)
            return {number: [trial] for number, trial in enumerate(timed, start=1)}
        studies: dict[int, list[Trial]] = defaultdict(list)
        for trial in trials:
            if trial.phase is Phase.SEARCH:
                studies[trial.study].append(trial)
        return studies


def best_point(trials: Sequence[Trial]) -> tuple[list[Trial], str]:
    """The trials of the best point, one per seed, and a description of how they were chosen."""
    ended = [trial for trial in trials if trial.state not in NO_RESULT]
    for phase, description in (
        (Phase.REFERENCE, "the target's own configuration"),
        (Phase.REPEAT, "the search's best point"),
    ):
        repeated = by_point([trial for trial in ended if trial.phase is phase])
        if repeated:
            most_seeds = max(repeated, key=lambda point: (len(_one_per_seed(point)), len(point)))
            return most_seeds, f"{description}, on {_seeds(most_seeds)}"
    searched = [trial for trial in trials if trial.phase in (Phase.SEARCH, Phase.CONFIRM)]
    if on_several_seeds := _on_several_seeds(searched):
        best = min(on_several_seeds, key=rank_key)
        is_confirmed = any(trial.phase is Phase.CONFIRM for trial in searched)
        return best, f"the best of {'the confirmed' if is_confirmed else 'all'} points, on {_seeds(best)}"
    if not ended:
        return [], "no trial has ended"
    return [min(ended, key=lambda trial: rank_key([trial]))], "the search's best trial, on one seed"


def _on_several_seeds(trials: Sequence[Trial]) -> list[list[Trial]]:
    """One trial per seed of each point that was run on several seeds and has ended on all.

    These are the confirmed points; without a confirmation there are none unless every point was run on several seeds.
    Otherwise a point with several seeds was only drawn twice by chance, and gets no preference.
    """
    points = by_point(trials)
    confirmed = [point for point in points if any(trial.phase is Phase.CONFIRM for trial in point)]
    if not confirmed and any(len(_one_per_seed(point)) == 1 for point in points):
        return []
    have_ended = [
        _one_per_seed(point) for point in confirmed or points if all(trial.state not in NO_RESULT for trial in point)
    ]
    return [point for point in have_ended if len(point) > 1]


def _one_per_seed(trials: Sequence[Trial]) -> list[Trial]:
    """The first trial of each seed."""
    firsts: dict[int | None, Trial] = {}
    for trial in trials:
        firsts.setdefault(trial.rng_seed, trial)
    return list(firsts.values())


def median_of_best(studies: Mapping[int, Sequence[Trial]], cost: Cost) -> float | None:
    """The median over studies of the best trial; None if it is a miss, NaN if a hit's cost is not on record."""
    best, is_known = [], True
    for trials in studies.values():
        hits = [trial for trial in trials if trial.hit_at(trial.target) is not None]
        times = known_costs(hits, cost)
        is_known = is_known and len(times) == len(hits)
        best.append(min(times, default=0.0 if hits else math.inf))
    median = statistics.median(best or [math.inf])
    if math.isinf(median):
        return None  # whatever the hits' costs are
    return median if is_known else math.nan


def cost_to_target(trial: Trial, cost: Cost, target: float | None = None) -> float | None:
    """The cost until `target` (by default the trial's own), or of the whole trial if it missed; None if not on record.

    A miss counts as the whole budget of steps. The seconds of a miss that broke off are NaN: they are not the budget's.
    """
    at = trial.hit_at(trial.target if target is None else target)
    if cost is Cost.STEPS:
        return _steps(trial, at)
    compile_seconds = trial.compile_seconds if cost is Cost.TRAINING_SECONDS else 0.0
    if compile_seconds is None:
        return None
    if at is None and (trial.state in _ENDED_EARLY or not trial.seconds.size):
        return math.nan
    return max(0.0, float(trial.seconds[-1 if at is None else at]) - compile_seconds)


def known_costs(trials: Sequence[Trial], cost: Cost, target: float | None = None) -> list[float]:
    """The costs of those trials whose cost is on record; see `cost_to_target`."""
    costs = (cost_to_target(trial, cost, target) for trial in trials)
    return [value for value in costs if value is not None]


def _steps(trial: Trial, hit: int | None) -> float:
    last = trial.steps[-1] if trial.steps.size else 0
    return float(trial.steps[hit]) if hit is not None else float(trial.budget or last)


def seed_median(trials: Sequence[Trial], cost: Cost, target: float | None = None) -> SeedMedian | None:
    """The median over one point's trials; None if a cost is not on record, or a broken-off trial is the median."""
    targets = [trial.target if target is None else target for trial in trials]
    values = known_costs(trials, cost, target)
    if not trials or None in targets or len(values) < len(trials):
        return None
    missed = [trial.hit_at(value) is None for trial, value in zip(trials, targets, strict=True)]
    result = SeedMedian.of(values, missed)
    return None if math.isnan(result.median) else result


def share_of_hits(trials: Sequence[Trial]) -> tuple[int, int]:
    """(hits, ended trials) of a search: a high share means that many hyperparameters work."""
    search = [trial for trial in trials if trial.phase is Phase.SEARCH and trial.target is not None]
    ended = [trial for trial in search if trial.state not in NO_RESULT]
    return sum(trial.hit_at(trial.target) is not None for trial in ended), len(ended)


def test_metric_at_hit(trials: Sequence[Trial]) -> float | None:
    """The median test metric at the evaluation that reached the target; None if none is on record."""
    at_hit = [trial.test_values[at] for trial in trials if (at := trial.hit_at(trial.target)) is not None]
    known = [float(value) for value in at_hit if np.isfinite(value)]
    return statistics.median(known) if known else None


def rank_key(trials: Sequence[Trial]) -> tuple[float, float]:
    """Sorting key of points, where less is better: mean steps to target, then the mean best metric."""
    steps = statistics.mean(_steps(trial, trial.hit_at(trial.target)) for trial in trials)
    sign = 1 if trials[0].lower_is_better else -1
    return steps, statistics.mean(math.inf if trial.best is None else sign * trial.best for trial in trials)


def by_point(trials: Iterable[Trial]) -> list[list[Trial]]:
    """The trials of each point."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[repr(sorted(trial.point.items()))].append(trial)
    return list(groups.values())


def _seeds(trials: Sequence[Trial]) -> str:
    n = len(_one_per_seed(trials))
    return f"{n} seed{'s' if n > 1 else ''}"
