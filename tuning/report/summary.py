"""What trials come to: a line for each submission on each workload, ratios to a first-order reference, and scores."""

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
from tuning.report.protocols import Cost
from tuning.report.reading import STATES, FileProblem, Phase, Records, Trial
from tuning.scoring import Spread


@dataclass(frozen=True)
class Ratio:
    """To the reference.

    Attributes:
        interval: by bootstrap over both's seeds; None where there are too few.
        bound: "≤" where the reference's median depends on a miss, "≥" where one's own does, "≈" where both do.
    """

    value: float
    interval: tuple[float, float] | None
    bound: str = ""


@dataclass(frozen=True)
class Line:
    """One submission on one workload.

    Attributes:
        trials: all of them, of every phase.
        searched: dimension -> its search's values, or the least and the greatest where all are numbers.
        chosen: the trials of the best point, one a seed, and `protocol` how they came about.
        costs: medians of `chosen`, of the costs that are on record.
        compile_seconds: mean of `chosen`; None where it is not on record.
        levels: target level -> steps to it, of `chosen`.
        n_studies, algoperf: studies, and the median over them of the best trial; None for a miss or no record.
        search_hits: (hits, ended trials) of the search.
        test_at_hit: median test metric of `chosen` when they reached the target.
    """

    submission: str
    trials: tuple[Trial, ...]
    searched: Mapping[str, Any]
    chosen: tuple[Trial, ...]
    protocol: str
    costs: Mapping[Cost, Spread]
    compile_seconds: float | None
    levels: Mapping[str, Spread]
    n_studies: int
    algoperf: Mapping[Cost, float | None]
    search_hits: tuple[int, int]
    test_at_hit: float | None
    best: float | None

    @property
    def n_searched_trials(self) -> int:
        return sum(trial.phase is Phase.SEARCH for trial in self.trials)

    @property
    def counts(self) -> dict[str, int]:
        """How trials came out, those with none left out."""
        found = Counter(trial.state for trial in self.trials)
        return {state: found[state] for state in STATES if found[state]}


@dataclass(frozen=True)
class Comparison:
    """All submissions on one workload.

    Attributes:
        levels: target level -> its value.
        ratios: submission -> cost, or level -> ratio to the reference.
    """

    workload: str
    metric: str
    target: float | None
    levels: Mapping[str, float]
    reference: str | None
    lines: tuple[Line, ...]
    ratios: Mapping[str, Mapping[str, Ratio]]
    warnings: tuple[str, ...]

    def line(self, submission: str) -> Line:
        return next(line for line in self.lines if line.submission == submission)


@dataclass(frozen=True)
class Summary:
    """
    Attributes:
        rank_by: what lines are ordered by, and the reference is chosen by.
        performance: cost -> submission -> workload -> performance ratio, infinite for a miss or above 4.
        speed_ups: submission -> (workload -> the reference's cost over its own, their geometric mean), by `score_by`.
        provenance: what was found in the trials -> the different values.
    """

    comparisons: tuple[Comparison, ...]
    rank_by: Cost
    performance: Mapping[Cost, Mapping[str, Mapping[str, float]]]
    speed_ups: Mapping[str, tuple[Mapping[str, float], float | None]]
    provenance: Mapping[str, Sequence[str]]
    hardware_profile: str
    warnings: tuple[str, ...]
    problems: tuple[FileProblem, ...]

    @property
    def score_by(self) -> Cost:
        """The clock that the performance profile is drawn by: AlgoPerf's, unless the other one ranks."""
        return Cost.TRAINING_SECONDS if self.rank_by is Cost.TRAINING_SECONDS else Cost.SECONDS

    @property
    def n_official(self) -> int:
        """How many of the official base workloads are present."""
        return sum(comparison.workload in scoring.OFFICIAL_WORKLOADS for comparison in self.comparisons)

    def score(self, submission: str, cost: Cost) -> float:
        """With the workloads present as the denominator."""
        return scoring.score(self.performance[cost][submission], len(self.comparisons))

    def official_score(self, submission: str, cost: Cost) -> float:
        """With AlgoPerf's base workloads as the denominator; others add nothing."""
        ratios = self.performance[cost][submission]
        official = {name: ratio for name, ratio in ratios.items() if name in scoring.OFFICIAL_WORKLOADS}
        return scoring.score(official, len(scoring.OFFICIAL_WORKLOADS))


def summarise(records: Records, references: Sequence[str], rank_by: Cost = Cost.STEPS) -> Summary:
    """All numbers of a report.

    Args:
        references: names of the first-order submissions; each workload's ratios are to the best one of them.
        rank_by: what "best" means, for lines and references.
    """
    by_workload: dict[str, list[Trial]] = defaultdict(list)
    for trial in records.trials:
        by_workload[trial.workload].append(trial)
    comparisons = tuple(
        _compare(name, trials, references, rank_by)
        for name, trials in sorted(by_workload.items())
        if any(trial.metric for trial in trials)
    )
    times = {cost: _times(comparisons, cost) for cost in Cost if _is_on_record(comparisons, cost)}
    clock = Cost.TRAINING_SECONDS if rank_by is Cost.TRAINING_SECONDS else Cost.SECONDS
    own = times.get(clock, {})
    of_reference = {c.workload: own[c.reference][c.workload] for c in comparisons if own and c.reference}
    return Summary(
        comparisons,
        rank_by,
        {cost: scoring.performance_ratios(each) for cost, each in times.items()},
        {name: scoring.speed_up(each, of_reference) for name, each in own.items()},
        provenance.of(records.trials),
        records.hardware_profile,
        tuple(provenance.differences(records.trials)),
        tuple(records.problems),
    )


def _is_on_record(comparisons: Sequence[Comparison], cost: Cost) -> bool:
    """Whether any submission has this cost: the harness's logs have no training seconds, and no score by them."""
    return cost is not Cost.TRAINING_SECONDS or any(
        line.algoperf[cost] is not None for c in comparisons for line in c.lines
    )


def _times(comparisons: Sequence[Comparison], cost: Cost) -> dict[str, dict[str, float]]:
    times: dict[str, dict[str, float]] = defaultdict(dict)
    for comparison in comparisons:
        for line in comparison.lines:
            found = line.algoperf[cost]
            times[line.submission][comparison.workload] = math.inf if found is None else found
    return times


def _compare(workload: str, trials: Sequence[Trial], references: Sequence[str], rank_by: Cost) -> Comparison:
    names = sorted({trial.submission for trial in trials})
    goals = list(dict.fromkeys((trial.metric, trial.target, trial.lower_is_better) for trial in trials if trial.metric))
    # A trial whose target could not be read does not take it from the others.
    metric, target, lower_is_better = next((goal for goal in goals if goal[1] is not None), next(iter(goals)))
    levels = {}
    if target is not None:
        levels = {name: scoring.easier(target, part, lower_is_better) for name, part in scoring.LEVELS.items()}
    lines = [_line(name, [trial for trial in trials if trial.submission == name], levels) for name in names]
    lines.sort(key=lambda line: (_order(line, rank_by), line.submission))
    # A row of a reference may carry more than its name: its folder's, or that it is the target's own configuration.
    able = [line for line in lines if line.submission.split(" (")[0] in references and rank_by in line.costs]
    reference = able[0] if able else None
    ratios = {line.submission: _ratios(line, reference) for line in lines if reference and line.costs}
    warnings = _warnings(lines, reference, references, rank_by)
    if len(goals) > 1:
        told = ", ".join(f"{name} {value}" for name, value, _ in sorted(goals, key=str))
        warnings.append(f"The trials differ in their target: {told}. Ratios are to the first one's.")
    name = reference.submission if reference else None
    return Comparison(workload, metric, target, levels, name, tuple(lines), ratios, tuple(warnings))


def _order(line: Line, rank_by: Cost) -> tuple[bool, float]:
    found = line.costs.get(rank_by)
    return (True, math.inf) if found is None else (found.is_bound, found.median)


def _line(name: str, trials: list[Trial], levels: Mapping[str, float]) -> Line:
    search = [trial for trial in trials if trial.phase is Phase.SEARCH]
    chosen, protocol = protocols.best_point(trials)
    costs = {cost: protocols.spread(chosen, cost) for cost in Cost}
    at_levels = {level: protocols.spread(chosen, Cost.STEPS, value) for level, value in levels.items()}
    compiles = [trial.compile_seconds for trial in chosen if trial.compile_seconds is not None]
    best = [trial.best for trial in trials if trial.best is not None]
    studies: dict[int, list[Trial]] = defaultdict(list)
    for trial in trials:  # every study present counts: one without a hit is a miss
        if trial.phase in (Phase.SEARCH, Phase.REFERENCE):
            studies[trial.study].append(trial)
    lower_is_better = any(trial.lower_is_better for trial in trials)
    return Line(
        submission=name,
        trials=tuple(trials),
        searched=_searched(search),
        chosen=tuple(chosen),
        protocol=protocol,
        costs={cost: found for cost, found in costs.items() if found is not None},
        compile_seconds=statistics.mean(compiles) if chosen and len(compiles) == len(chosen) else None,
        levels={level: found for level, found in at_levels.items() if found is not None},
        n_studies=len(studies),
        algoperf={cost: protocols.median_of_best(studies, cost) for cost in Cost},
        search_hits=protocols.share_of_hits(trials),
        test_at_hit=protocols.test_metric_at_hit(chosen),
        best=(min if lower_is_better else max)(best) if best else None,
    )


def _searched(trials: Sequence[Trial]) -> dict[str, Any]:
    """Dimensions whose values differ between points: (least, greatest), or as text where some are no numbers."""
    found = {}
    for name in sorted({name for trial in trials for name in trial.point}):
        values: list[Any] = list({repr(trial.point.get(name)): trial.point.get(name) for trial in trials}.values())
        if len(values) > 1:
            is_range = all(map(_is_plain_number, values))
            found[name] = (min(values), max(values)) if is_range else tuple(category(value) for value in values)
    return found


def _is_plain_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < sys.float_info.max


def category(value: Any) -> str:
    """A value of a dimension that is not all numbers, in tables and on axes; a word stands as it is."""
    return value if isinstance(value, str) else json.dumps(value)


def _ratios(line: Line, reference: Line) -> dict[str, Ratio]:
    if line is reference:
        return {name: Ratio(1.0, None) for name in (*line.costs, *line.levels)}
    found: dict[str, Ratio] = {}
    for cost in [cost for cost in line.costs if cost in reference.costs]:
        own, other = line.costs[cost], reference.costs[cost]
        values, others = (protocols.known_costs(each.chosen, cost) for each in (line, reference))
        if other.median > 0:
            interval = None if any(map(math.isnan, values + others)) else scoring.ratio_interval(values, others)
            found[cost] = Ratio(own.median / other.median, interval, _bound(own, other))
    for level, own in line.levels.items():
        base = reference.levels.get(level)
        if base is not None and base.median > 0:
            found[level] = Ratio(own.median / base.median, None, _bound(own, base))
    return found


def _bound(own: Spread, other: Spread) -> str:
    return {(False, False): "", (False, True): "≤", (True, False): "≥", (True, True): "≈"}[own.is_bound, other.is_bound]


def _warnings(lines: Sequence[Line], reference: Line | None, references: Sequence[str], rank_by: Cost) -> list[str]:
    warnings = []
    unknown = [line.submission for line in lines if line.chosen and line.compile_seconds is None]
    if unknown:
        warnings.append(
            f"Compilation is not on record, so that there are no training seconds, of {', '.join(unknown)}."
        )
    if reference is None:
        told = f"None of the first-order references ({', '.join(references)}) has {rank_by.words} on record here"
        return [*warnings, f"{told}: no ratios."]
    found = reference.costs[rank_by]
    if found.is_bound:
        warnings.append(
            f"The reference {reference.submission} missed the target on {found.n_misses} of {found.n} seeds: its "
            "medians are lower bounds, the budget, and ratios to them are too high."
        )
    most = max(line.n_searched_trials for line in lines)
    if reference.n_searched_trials < most and reference.chosen[0].phase is not Phase.REFERENCE:
        warnings.append(
            f"The reference {reference.submission} was searched with {reference.n_searched_trials} trials, another "
            f"submission with {most}."
        )
    return warnings
