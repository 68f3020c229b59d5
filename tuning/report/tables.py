"""A summary as tables: for the terminal, a paper, a spreadsheet and a program."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from tuning import records
from tuning.report import escapes
from tuning.report.protocols import Cost
from tuning.report.summary import Comparison, Ratio, SubmissionResult, Summary
from tuning.scoring import SeedMedian

COLUMNS = (
    "submission",
    "hits",
    "steps",
    "steps ratio",
    "seconds",
    "seconds ratio",
    "training seconds",
    "training seconds ratio",
    "compile s",
    "test at hit",
    "points that hit",
    "best",
    "dimensions",
)
_DIGITS = {Cost.STEPS: 0, Cost.SECONDS: 1, Cost.TRAINING_SECONDS: 1}


def rows(comparison: Comparison) -> list[list[str]]:
    """A row for each submission, in the order of `COLUMNS`."""
    return [_row(comparison, result) for result in comparison.results]


def _row(comparison: Comparison, result: SubmissionResult) -> list[str]:
    ratios = comparison.ratios.get(result.submission, {})
    cells = [result.submission + (" (reference)" if result.submission == comparison.reference else ""), hits(result)]
    for cost, digits in _DIGITS.items():
        cells += [seed_median(result.costs.get(cost), digits), ratio(ratios.get(cost))]
    cells += [number(result.compile_seconds, 1), number(result.test_at_hit, 4), share(result), number(result.best, 4)]
    return [*cells, str(len(result.searched))]


def hits(result: SubmissionResult) -> str:
    """Hits among the best point's trials."""
    trials = [trial for trial in result.best_trials if trial.target is not None]
    return f"{sum(trial.hit_at(trial.target) is not None for trial in trials)}/{len(trials)}" if trials else "–"


def share(result: SubmissionResult) -> str:
    """The search's points that reached the target, of those that ended."""
    n_hits, n_ended = result.search_hits
    return f"{n_hits}/{n_ended}" if n_ended else "–"


def outcomes(result: SubmissionResult) -> str:
    """The outcomes of its trials: '13: 12 hit, 1 budget'."""
    return f"{len(result.trials)}: " + ", ".join(f"{n} {state}" for state, n in result.counts.items())


def seed_median(value: SeedMedian | None, digits: int) -> str:
    """The median, with '≥' if it depends on a miss, which counts as the budget, and 'miss' if all trials missed."""
    if value is None:
        return "–"
    median = f"{'≥ ' if value.is_lower_bound else ''}{value.median:.{digits}f}"
    return f"{median}, miss" if value.n_misses == value.n else median


def ratio(value: Ratio | None) -> str:
    if value is None:
        return "–"
    interval = "" if value.interval is None else f" ({value.interval[0]:.2f}–{value.interval[1]:.2f})"
    return f"{value.bound} {value.value:.2f}{interval}".lstrip()


def number(value: float | None, digits: int) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def known(value: float | None) -> float | None:
    """The value; None for NaN, which means that it is not on record."""
    return None if value is None or math.isnan(value) else value


def scored_time(result: SubmissionResult, cost: Cost) -> str:
    """The time that is scored, 'miss', or a dash if there is none on record."""
    median = result.study_medians[cost]
    return "miss" if median is None and result.studies else number(median, _DIGITS[cost])


def heading(comparison: Comparison) -> str:
    target = "no target" if comparison.target is None else f"{comparison.metric} {comparison.target:.6g}"
    return f"{comparison.workload}: to {target}"


def terminal(comparison: Comparison) -> Table:
    # As Text, since rich reads square brackets in a str as markup.
    table = Table(title=Text(escapes.printable(heading(comparison))))
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for row in rows(comparison):
        table.add_row(*(Text(escapes.printable(cell)) for cell in row))
    return table


def markdown(summary: Summary) -> str:
    parts = []
    for comparison in summary.comparisons:
        lines = [f"| {' | '.join(map(escapes.markdown, row))} |" for row in rows(comparison)]
        head = [f"### {escapes.markdown(heading(comparison))}", "", f"| {' | '.join(COLUMNS)} |"]
        parts += [*head, "|---" * len(COLUMNS) + "|", *lines, ""]
    return "\n".join([*parts, FOOTNOTE, ""])


def latex(summary: Summary) -> str:
    r"""A `tabular` for each workload, for `\input`; needs the package booktabs, and T1 fonts for all letters."""
    parts = []
    for comparison in summary.comparisons:
        lines = [" & ".join(map(escapes.latex, row)) + r" \\" for row in rows(comparison)]
        head = [r"\begin{tabular}{" + "l" * len(COLUMNS) + "}", r"\toprule"]
        names = " & ".join(map(escapes.latex, COLUMNS)) + r" \\"
        tail = [r"\bottomrule", r"\end{tabular}", ""]
        parts += [f"% {escapes.printable(heading(comparison))}", *head, names, r"\midrule", *lines, *tail]
    return "\n".join([*parts, f"% {FOOTNOTE}", ""])


def as_csv(summary: Summary) -> str:
    """A row for each workload and submission; missing values are empty."""
    rows = [record | {"scored": summary.scored} for c in summary.comparisons for record in _records(c)]
    text = records.csv_text([{name: _cell(value) for name, value in row.items()} for row in rows])
    return text if rows else "workload\n"


def as_json(summary: Summary) -> dict[str, Any]:
    """All numbers, for programs. A miss is null, and so is what is not on record."""
    return {
        "ranked_by": summary.rank_by,
        "scored": summary.scored,
        "workloads": [
            {
                "workload": comparison.workload,
                "metric": comparison.metric,
                "target": comparison.target,
                "levels": dict(comparison.levels),
                "reference": comparison.reference,
                "submissions": _records(comparison),
                "warnings": list(comparison.warnings),
            }
            for comparison in summary.comparisons
        ],
        "scores": _scores(summary, summary.score),
        "official_scores": _scores(summary, summary.official_score) if summary.n_official else {},
        "performance_ratios": summary.performance,
        "speed_ups": {name: {"workloads": ratios, "mean": mean} for name, (ratios, mean) in summary.speed_ups.items()},
        "n_official_workloads": summary.n_official,
        "hardware_profile": summary.hardware_profile,
        "provenance": summary.provenance,
        "warnings": list(summary.warnings),
        "problems": [{"file": problem.file, "what": problem.what} for problem in summary.problems],
    }


def _scores(summary: Summary, score: Any) -> dict[str, dict[str, float]]:
    """Cost -> submission -> score."""
    return {cost: {name: score(name, cost) for name in ratios} for cost, ratios in summary.performance.items()}


def _records(comparison: Comparison) -> list[dict[str, Any]]:
    return [_record(comparison, result) for result in comparison.results]


def _record(comparison: Comparison, result: SubmissionResult) -> dict[str, Any]:
    n_hits, n_ended = result.search_hits
    record: dict[str, Any] = {
        "workload": comparison.workload,
        "submission": result.submission,
        "protocol": result.protocol,
        "n_trials": len(result.trials),
        "n_searched_trials": result.n_searched_trials,
        "n_searched_that_ended": n_ended,
        "n_searched_that_hit": n_hits,
        **{f"n_{state}": n for state, n in result.counts.items()},
        "searched": list(result.searched),
        "best_metric": result.best,
        "test_metric_at_hit": result.test_at_hit,
        "compile_seconds": result.compile_seconds,
        "n_studies": result.n_studies,
        **{f"algoperf_{cost}": known(median) for cost, median in result.study_medians.items()},
    }
    for name, value in (*result.costs.items(), *result.levels.items()):
        fields = {"median": value.median, "is_bound": value.is_lower_bound, "n": value.n, "n_misses": value.n_misses}
        record |= {f"{name}_{field}": number for field, number in fields.items()}
    for name, ratio in comparison.ratios.get(result.submission, {}).items():
        low, high = ratio.interval or (None, None)
        record |= {f"{name}_ratio": ratio.value, f"{name}_ratio_bound": ratio.bound}
        record |= {f"{name}_ratio_low": low, f"{name}_ratio_high": high}
    return record


def _cell(value: Any) -> Any:
    return " ".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


FOOTNOTE = (
    "Medians over the seeds of the best point. A miss counts as the whole budget (≥; so a ratio is a bound, or ≈). "
    "Ratios to the reference, with 95 % bootstrap intervals. Seconds are AlgoPerf's, compilation included; training "
    "seconds leave compilation out. Hits: of the best point's seeds. Test at hit: the test metric there, of hits. "
    "Points that hit: of the search. Best: the best validation metric of any trial. Dimensions: searched "
    'hyperparameters. A name with "(target\'s own)": a first-order configuration from the search that set the target.'
)
