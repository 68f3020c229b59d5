"""Results of trials: one for each submission on each workload, ratios to a first-order reference, and scores."""

import json
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuning import scoring
from tuning.report import protocols, provenance
from tuning.report.location import Phase
from tuning.report.protocols import Cost, Scored
from tuning.report.reading import STATES, FileProblem, Records, Trial
from tuning.scoring import SeedMedian
from workloads import budgets


@dataclass(frozen=True)
class Ratio:
    """The ratio of a submission's median to the reference's.

    Attributes:
        interval: by bootstrap over the seeds of both; None if there are too few seeds, and for a bound.
        bound: "≤" if the reference's median depends on a miss, "≥" if the submission's does, "≈" if both do.
    """

    value: float
    interval: tuple[float, float] | None
    bound: str = ""


@dataclass(frozen=True)
class SubmissionResult:
    """One submission on one workload.

    Attributes:
        trials: all trials, of every phase.
        searched: dimension -> its values in the search; the least and the greatest if all are numbers.
        best_trials: the trials of the best point, one per seed. `protocol` describes how they were chosen.
        costs: cost -> median over `best_trials`, for the costs on record. If the workload has timed trials, but
            `best_trials` are not timed, only the steps.
        compile_seconds: median over `best_trials`; None if it is not on record.
        levels: target level -> steps to it, over `best_trials`.
        studies: study -> its trials that are scored; see `protocols.Scored`.
        study_medians: medians over `studies` of the best trial; None for a miss, NaN if not on record.
        search_hits: (hits, ended trials) of the search.
        test_at_hit: median test metric of `best_trials` when they reached the target.
    """

    submission: str
    trials: tuple[Trial, ...]
    searched: Mapping[str, Any]
    best_trials: tuple[Trial, ...]
    protocol: str
    costs: Mapping[Cost, SeedMedian]
    compile_seconds: float | None
    levels: Mapping[str, SeedMedian]
    studies: Mapping[int, Sequence[Trial]]
    study_medians: Mapping[Cost, float | None]
    search_hits: tuple[int, int]
    test_at_hit: float | None
    best: float | None

    @property
    def n_studies(self) -> int:
        return len(self.studies)

    @property
    def n_searched_trials(self) -> int:
        return sum(trial.phase is Phase.SEARCH for trial in self.trials)

    @property
    def counts(self) -> dict[str, int]:
        """State -> number of trials, for the states that occur."""
        counts = Counter(trial.state for trial in self.trials)
        return {state: counts[state] for state in STATES if counts[state]}


@dataclass(frozen=True)
class Comparison:
    """All submissions on one workload.

    Attributes:
        levels: target level -> its value.
        ratios: submission -> (cost or target level -> ratio to the reference).
    """

    workload: str
    metric: str
    target: float | None
    levels: Mapping[str, float]
    reference: str | None
    results: tuple[SubmissionResult, ...]
    ratios: Mapping[str, Mapping[str, Ratio]]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """
    Attributes:
        rank_by: the cost that orders the results, and by which the reference is chosen.
        score_by: the clock of the performance profile; AlgoPerf's, unless training seconds rank the submissions.
        scored: the times that `performance` and `speed_ups` are made from.
        performance: cost -> submission -> workload -> performance ratio, infinite for a miss or above 4; only of
            submissions whose times are all on record.
        speed_ups: submission -> (workload -> the reference's cost over its own, their geometric mean), by `score_by`.
        provenance: name -> the different values in the trials.
    """

    comparisons: tuple[Comparison, ...]
    rank_by: Cost
    score_by: Cost
    scored: Scored
    performance: Mapping[Cost, Mapping[str, Mapping[str, float]]]
    speed_ups: Mapping[str, tuple[Mapping[str, float], float | None]]
    provenance: Mapping[str, Sequence[str]]
    hardware_profile: str
    warnings: tuple[str, ...]
    problems: tuple[FileProblem, ...]

    @property
    def base_workloads(self) -> tuple[str, ...]:
        """AlgoPerf's, of the round that these results belong to."""
        return budgets.base_workloads(self.hardware_profile, [c.workload for c in self.comparisons])

    @property
    def n_official(self) -> int:
        """The number of official base workloads that are present."""
        return sum(comparison.workload in self.base_workloads for comparison in self.comparisons)

    def score(self, submission: str, cost: Cost) -> float:
        """The score over the workloads that are present."""
        return scoring.score(self.performance[cost][submission], len(self.comparisons))

    def official_score(self, submission: str, cost: Cost) -> float:
        """The score over AlgoPerf's base workloads; other workloads do not count."""
        ratios = self.performance[cost][submission]
        official = {name: ratio for name, ratio in ratios.items() if name in self.base_workloads}
        return scoring.score(official, len(self.base_workloads))


def summarise(records: Records, references: Sequence[str], rank_by: Cost = Cost.STEPS) -> Summary:
    """All numbers of a report.

    Args:
        references: names of the first-order submissions; each workload's ratios are to the best one of them.
        rank_by: the cost by which results and references are compared.
    """
    trials_of: dict[str, list[Trial]] = defaultdict(list)
    for trial in records.trials:
        trials_of[trial.workload].append(trial)
    scored = Scored.of(records.trials)
    comparisons = tuple(
        _compare(name, trials, references, rank_by, scored)
        for name, trials in sorted(trials_of.items())
        if any(trial.metric for trial in trials)
    )
    times = {cost: _times(comparisons, cost) for cost in Cost}
    score_by = Cost.TRAINING_SECONDS if rank_by is Cost.TRAINING_SECONDS else Cost.SECONDS
    by_clock = times[score_by]
    of_reference = {c.workload: by_clock[c.reference][c.workload] for c in comparisons if c.reference}
    return Summary(
        comparisons,
        rank_by,
        score_by,
        scored,
        {cost: scoring.performance_ratios(known) for cost, own in times.items() if (known := _on_record(own))},
        {name: scoring.speed_up(by_workload, of_reference) for name, by_workload in by_clock.items()},
        provenance.of(records.trials),
        records.hardware_profile,
        tuple(provenance.differences(records.trials)),
        tuple(records.problems),
    )


def _on_record(times: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """The submissions whose times are all on record.

    Empty if all of these times are misses, and other submissions have times that are not on record.
    """
    known = {name: own for name, own in times.items() if not any(map(math.isnan, own.values()))}
    is_any_hit = any(math.isfinite(time) for own in known.values() for time in own.values())
    return known if is_any_hit or len(known) == len(times) else {}


def _times(comparisons: Sequence[Comparison], cost: Cost) -> dict[str, dict[str, float]]:
    """submission -> workload -> time; infinite for a miss, NaN if it is not on record."""
    times: dict[str, dict[str, float]] = defaultdict(dict)
    for comparison in comparisons:
        for result in comparison.results:
            median = result.study_medians[cost]
            times[result.submission][comparison.workload] = math.inf if median is None else median
    return times


def _compare(
    workload: str, trials: Sequence[Trial], references: Sequence[str], rank_by: Cost, scored: Scored
) -> Comparison:
    names = sorted({trial.submission for trial in trials})
    targets = list(
        dict.fromkeys((trial.metric, trial.target, trial.lower_is_better) for trial in trials if trial.metric)
    )
    # A trial without a readable target does not hide the others' target.
    metric, target, lower_is_better = next((t for t in targets if t[1] is not None), targets[0])
    levels = {}
    if target is not None:
        levels = {name: scoring.easier(target, share, lower_is_better) for name, share in scoring.LEVELS.items()}
    are_timed = any(trial.phase.is_timed for trial in trials)
    results = [
        _submission_result(name, [trial for trial in trials if trial.submission == name], levels, scored, are_timed)
        for name in names
    ]
    results.sort(key=lambda result: (_order(result, rank_by), result.submission))
    # A reference's name may have a suffix: its folder, or that it is the target's own configuration.
    candidates = [
        result for result in results if result.submission.split(" (")[0] in references and rank_by in result.costs
    ]
    candidates.sort(key=lambda result: Cost.SECONDS not in result.costs)  # those without seconds to compare come last
    reference = candidates[0] if candidates else None
    ratios = {result.submission: _ratios(result, reference) for result in results if reference and result.costs}
    warnings = _warnings(results, reference, references, rank_by)
    if len(targets) > 1:
        values = ", ".join(f"{name} {value}" for name, value, _ in sorted(targets, key=str))
        problem = f"The trials differ in their target: {values}. Each trial counts by its own target"
        warnings.append(f"{problem}; the heading and easier targets are of {metric} {target}.")
    name = reference.submission if reference else None
    return Comparison(workload, metric, target, levels, name, tuple(results), ratios, tuple(warnings))


def _order(result: SubmissionResult, rank_by: Cost) -> tuple[bool, float, float]:
    """By the median; of those that spent the same budget, the one with fewer misses comes first."""
    cost = result.costs.get(rank_by)
    return (True, math.inf, 1.0) if cost is None else (cost.is_lower_bound, cost.median, cost.n_misses / cost.n)


def _submission_result(
    name: str, trials: list[Trial], levels: Mapping[str, float], scored: Scored, are_timed: bool
) -> SubmissionResult:
    """Of one workload; `are_timed` is whether any submission has timed trials there."""
    search = [trial for trial in trials if trial.phase is Phase.SEARCH]
    best_trials, protocol = protocols.best_point(trials)
    is_comparable = not are_timed or any(trial.phase.is_timed for trial in best_trials)
    costs = {cost: protocols.seed_median(best_trials, cost) for cost in (Cost if is_comparable else (Cost.STEPS,))}
    at_levels = {level: protocols.seed_median(best_trials, Cost.STEPS, value) for level, value in levels.items()}
    compiles = [trial.compile_seconds for trial in best_trials if trial.compile_seconds is not None]
    metrics = [trial.best for trial in trials if trial.best is not None]
    studies = scored.studies(trials)
    lower_is_better = any(trial.lower_is_better for trial in trials)
    return SubmissionResult(
        submission=name,
        trials=tuple(trials),
        searched=_searched(search),
        best_trials=tuple(best_trials),
        protocol=protocol,
        costs={cost: own for cost, own in costs.items() if own is not None},
        compile_seconds=statistics.median(compiles) if best_trials and len(compiles) == len(best_trials) else None,
        levels={level: own for level, own in at_levels.items() if own is not None},
        studies=studies,
        study_medians={cost: protocols.median_of_best(studies, cost) for cost in Cost},
        search_hits=protocols.share_of_hits(trials),
        test_at_hit=protocols.test_metric_at_hit(best_trials),
        best=(min if lower_is_better else max)(metrics) if metrics else None,
    )


def _searched(trials: Sequence[Trial]) -> dict[str, Any]:
    """Dimension -> (least, greatest) value, or all values as text if some are no numbers; only if values differ."""
    dimensions = {}
    for name in sorted({name for trial in trials for name in trial.point}):
        values: list[Any] = list({repr(trial.point.get(name)): trial.point.get(name) for trial in trials}.values())
        if len(values) > 1:
            is_range = all(map(_is_plain_number, values))
            dimensions[name] = (min(values), max(values)) if is_range else tuple(category(value) for value in values)
    return dimensions


def _is_plain_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < sys.float_info.max


def category(value: Any) -> str:
    """The text of a value in tables and on axes, for a dimension whose values are not all numbers."""
    return value if isinstance(value, str) else json.dumps(value)


def _ratios(result: SubmissionResult, reference: SubmissionResult) -> dict[str, Ratio]:
    if result is reference:
        return {name: Ratio(1.0, None) for name in (*result.costs, *result.levels)}
    ratios: dict[str, Ratio] = {}
    for cost in [cost for cost in result.costs if cost in reference.costs]:
        own, base = result.costs[cost], reference.costs[cost]
        if base.median > 0:
            ratios[cost] = Ratio(own.median / base.median, scoring.ratio_interval(own, base), _bound(own, base))
    for level, own in result.levels.items():
        if level in reference.levels and (base := reference.levels[level]).median > 0:
            ratios[level] = Ratio(own.median / base.median, None, _bound(own, base))
    return ratios


def _bound(own: SeedMedian, base: SeedMedian) -> str:
    bounds = {(False, False): "", (False, True): "≤", (True, False): "≥", (True, True): "≈"}
    return bounds[own.is_lower_bound, base.is_lower_bound]


def _warnings(
    results: Sequence[SubmissionResult], reference: SubmissionResult | None, references: Sequence[str], rank_by: Cost
) -> list[str]:
    warnings = []
    unknown = [result.submission for result in results if result.best_trials and result.compile_seconds is None]
    if unknown:
        warnings.append(f"Compilation is not on record for {', '.join(unknown)}, which have no training seconds.")
    timed = [trial for result in results for trial in result.best_trials if trial.phase.is_timed]
    disturbed = [trial.folder for trial in timed if trial.is_timing_disturbed]
    if disturbed:
        warnings.append(
            "These timed trials were resumed or profiled, so that their seconds contain a second compilation or the "
            f"profiler's cost: {', '.join(disturbed)}."
        )
    if reference is None:
        problem = f"None of the first-order references ({', '.join(references)}) has {rank_by.words} to compare here"
        return [*warnings, f"{problem}: no ratios."]
    own = reference.costs[rank_by]
    if own.is_lower_bound:
        warnings.append(
            f"The reference {reference.submission} missed the target on {own.n_misses} of {own.n} seeds: its "
            "medians are lower bounds, the budget, and ratios to them are too high."
        )
    n_most = max(result.n_searched_trials for result in results)
    if reference.n_searched_trials < n_most and reference.best_trials[0].phase is not Phase.REFERENCE:
        warnings.append(
            f"The reference {reference.submission} was searched with {reference.n_searched_trials} trials, another "
            f"submission with {n_most}."
        )
    return warnings
