"""What trials come to: a line for each submission on each workload, ratios to a first-order reference, and scores."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuning import scoring
from tuning.outcome import Miss
from tuning.report.protocols import (
    NO_RESULT,
    best_point,
    counted_steps,
    median_of_best,
    steps_to,
    training_seconds,
)
from tuning.report.reading import STATES, Problem, Records, Trial
from tuning.scoring import Spread


@dataclass(frozen=True)
class Ratio:
    """To the reference.

    Attributes:
        interval: by bootstrap over both's seeds; None where there are too few.
        bound: "≤" where the reference's misses count as its budget, "≥" where one's own do, "≈" where both do.
    """

    value: float
    interval: tuple[float, float] | None
    bound: str = ""


@dataclass(frozen=True)
class Line:
    """One submission on one workload.

    Attributes:
        trials: all of them, search and repetitions.
        searched: dimension -> the values, or least and most, that its search had.
        chosen: the trials of the best point, one a seed, and `protocol` how they came about.
        steps, seconds: to target, of `chosen`; seconds are the submission's without compilation, and None where one of
            them broke off.
        compile_seconds: mean of `chosen`, None where it is not on record and `seconds` has it.
        levels: target level -> steps to it, of `chosen`.
        algoperf_seconds, algoperf_steps: median over studies of the best trial, compilation included, None for a miss.
    """

    submission: str
    trials: tuple[Trial, ...]
    searched: Mapping[str, Any]
    chosen: tuple[Trial, ...]
    protocol: str
    steps: Spread | None
    seconds: Spread | None
    compile_seconds: float | None
    levels: Mapping[str, Spread]
    n_studies: int
    algoperf_seconds: float | None
    algoperf_steps: float | None
    best: float | None

    @property
    def n_searched_trials(self) -> int:
        return sum(not trial.is_repetition for trial in self.trials)

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
        ratios: submission -> quantity ("steps", "seconds", or a level's steps) -> ratio to the reference.
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
        performance: submission -> workload -> performance ratio, infinite for a miss or above 4.
        scores: submission -> score with the workloads present as the denominator.
        speed_ups: submission -> (workload -> the reference's seconds over its own, their geometric mean).
        provenance: what was found in the trials -> the different values.
    """

    comparisons: tuple[Comparison, ...]
    performance: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, float]
    speed_ups: Mapping[str, tuple[Mapping[str, float], float | None]]
    provenance: Mapping[str, Sequence[str]]
    warnings: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def n_official(self) -> int:
        """How many of the official base workloads are present."""
        return sum(comparison.workload in scoring.OFFICIAL_WORKLOADS for comparison in self.comparisons)


def summarise(records: Records, references: Sequence[str]) -> Summary:
    """All numbers of a report.

    Args:
        references: names of the first-order submissions; each workload's ratios are to the one with the fewest steps.
    """
    by_workload: dict[str, list[Trial]] = defaultdict(list)
    for trial in records.trials:
        by_workload[trial.workload].append(trial)
    comparisons = tuple(_compare(name, trials, references) for name, trials in sorted(by_workload.items()))
    times: dict[str, dict[str, float]] = defaultdict(dict)
    for comparison in comparisons:
        for line in comparison.lines:
            seconds = line.algoperf_seconds
            times[line.submission][comparison.workload] = math.inf if seconds is None else seconds
    performance = scoring.performance_ratios(times)
    of_reference = {c.workload: times[c.reference][c.workload] for c in comparisons if c.reference}
    provenance = _provenance(records.trials)
    return Summary(
        comparisons,
        performance,
        {name: scoring.score(ratios, len(comparisons)) for name, ratios in performance.items()},
        {name: scoring.speed_up(own, of_reference) for name, own in times.items()},
        provenance,
        tuple(f"The trials differ in {name}: {', '.join(values)}." for name, values in _mixed(provenance)),
        tuple(records.problems),
    )


def _compare(workload: str, trials: Sequence[Trial], references: Sequence[str]) -> Comparison:
    names = sorted({trial.submission for trial in trials})
    metric, target = trials[0].metric, trials[0].target
    goals = {(trial.metric, trial.target) for trial in trials}
    levels = {}
    if target is not None:
        levels = {name: scoring.easier(target, part, metric) for name, part in scoring.LEVELS.items()}
    lines = [_line(name, [trial for trial in trials if trial.submission == name], levels) for name in names]
    lines.sort(key=lambda line: (line.steps.mean if line.steps else math.inf, line.submission))
    # A reference may carry its folder's name, where two are called alike.
    able = [line for line in lines if line.submission.split(" (")[0] in references and line.steps]
    reference = able[0] if able else None
    ratios = {line.submission: _ratios(line, reference) for line in lines if reference and line.steps}
    warnings = _warnings(lines, reference, references)
    if len(goals) > 1:
        told = ", ".join(f"{name} {value}" for name, value in sorted(goals, key=str))
        warnings.append(f"The trials differ in their target: {told}. Ratios are to the first one's.")
    name = reference.submission if reference else None
    return Comparison(workload, metric, target, levels, name, tuple(lines), ratios, tuple(warnings))


def _line(name: str, trials: list[Trial], levels: Mapping[str, float]) -> Line:
    search = [trial for trial in trials if not trial.is_repetition]
    chosen, protocol = best_point(trials)
    steps = seconds = None
    at_levels: dict[str, Spread] = {}
    if chosen and levels:
        at_levels = {level: steps_to(chosen, value) for level, value in levels.items()}
        steps = at_levels["target"]
    # The seconds of a trial that broke off are not those of the budget.
    if steps and not any(trial.state in (Miss.DIVERGED, Miss.CRASHED) for trial in chosen):
        seconds = Spread.of([training_seconds(trial) for trial in chosen], steps.n_misses)
    compiles = [trial.compile_seconds for trial in chosen if trial.compile_seconds is not None]
    best = [trial.best for trial in trials if trial.best is not None]
    studies: dict[int, list[Trial]] = defaultdict(list)
    for trial in search:
        if trial.state not in NO_RESULT:
            studies[trial.study].append(trial)
    lowest = trials[0].best is not None and scoring.lower_is_better(trials[0].metric)
    return Line(
        submission=name,
        trials=tuple(trials),
        searched=_searched(search),
        chosen=tuple(chosen),
        protocol=protocol,
        steps=steps,
        seconds=seconds,
        compile_seconds=statistics.mean(compiles) if chosen and len(compiles) == len(chosen) else None,
        levels=at_levels,
        n_studies=len(studies),
        algoperf_seconds=median_of_best(studies, lambda trial, at: trial.seconds[at]),
        algoperf_steps=median_of_best(studies, lambda trial, at: trial.steps[at]),
        best=(min if lowest else max)(best) if best else None,
    )


def _searched(trials: Sequence[Trial]) -> dict[str, Any]:
    """Dimensions whose values differ between points, as (least, most), or the values where they are no numbers."""
    found = {}
    for name in sorted({name for trial in trials for name in trial.point}):
        values = list({repr(trial.point.get(name)): trial.point.get(name) for trial in trials}.values())
        if len(values) > 1:
            is_range = all(isinstance(value, (int, float)) for value in values)
            found[name] = (min(values), max(values)) if is_range else tuple(map(str, values))
    return found


def _ratios(line: Line, reference: Line) -> dict[str, Ratio]:
    def ratio(quantity: Any) -> Ratio | None:
        own, other = ([quantity(trial) for trial in each.chosen] for each in (line, reference))
        if not statistics.mean(other):
            return None
        interval = scoring.ratio_interval(own, other)
        bound = _bound(line.steps, reference.steps)
        return Ratio(statistics.mean(own) / statistics.mean(other), interval, bound)

    if line is reference:
        return {name: Ratio(1.0, None) for name in ("steps", "seconds", *line.levels)}
    quantities = {"steps": lambda trial: counted_steps(trial, trial.target)[0], "seconds": training_seconds}
    if line.seconds is None or reference.seconds is None:
        del quantities["seconds"]
    found = {name: ratio(quantity) for name, quantity in quantities.items()}
    for level, spread in line.levels.items():
        other = reference.levels[level]
        found[level] = Ratio(spread.mean / other.mean, None, _bound(spread, other))
    return {name: value for name, value in found.items() if value is not None}


def _bound(own: Spread, other: Spread) -> str:
    return {(False, False): "", (False, True): "≤", (True, False): "≥", (True, True): "≈"}[
        own.n_misses > 0, other.n_misses > 0
    ]


def _warnings(lines: Sequence[Line], reference: Line | None, references: Sequence[str]) -> list[str]:
    if reference is None:
        return [f"None of the first-order references ({', '.join(references)}) has an ended trial here: no ratios."]
    warnings = []
    if reference.steps.n_misses == reference.steps.n:
        warnings.append(
            f"The reference {reference.submission} never reached the target: its steps and seconds are those of the "
            "whole budget, and ratios to it are too high."
        )
    elif reference.steps.n_misses:
        warnings.append(
            f"The reference {reference.submission} missed the target on {reference.steps.n_misses} of "
            f"{reference.steps.n} seeds, counted as the whole budget: ratios to it are too high."
        )
    most = max(line.n_searched_trials for line in lines)
    if reference.n_searched_trials < most:
        warnings.append(
            f"The reference {reference.submission} was searched with {reference.n_searched_trials} trials, another "
            f"submission with {most}."
        )
    included = [line.submission for line in lines if line.chosen and line.compile_seconds is None]
    if included:
        warnings.append(f"Compilation is not on record, and so in the seconds, of {', '.join(included)}.")
    return warnings


def _provenance(trials: Sequence[Trial]) -> dict[str, list[str]]:
    """What ran, on what: name -> the different values, in order."""
    found: dict[str, set[str]] = defaultdict(set)
    for trial in trials:
        e = trial.environment
        if e.get("git_commit"):
            found["commit"].add(e["git_commit"][:10] + (" with uncommitted changes" if e.get("git_dirty") else ""))
        hardware = [str(e[name]) for name in ("cpu_model", "n_cpu_cores", "memory_gib") if e.get(name)]
        if hardware:
            found["machine"].add(", ".join(hardware) + (" GiB" if e.get("memory_gib") else ""))
        if e.get("device_kind"):
            found["devices"].add(f"{e.get('n_devices', 1)} × {e['device_kind']}")
        for name in ("python", "jax", "jaxlib", "flax", "optax", "numpy"):
            if e.get(name):
                found[name].add(str(e[name]))
        if trial.rng_seed is not None:
            found["seeds"].add(str(trial.rng_seed))
    return {name: sorted(values) for name, values in found.items()}


def _mixed(provenance: Mapping[str, Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    return [(name, values) for name, values in provenance.items() if name != "seeds" and len(values) > 1]
