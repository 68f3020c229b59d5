"""A summary as tables: for the terminal, a paper, a spreadsheet and a program."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from tuning.report.summary import Comparison, Line, Ratio, Summary
from tuning.scoring import Spread

COLUMNS = ("submission", "trials", "searched", "steps to target", "ratio", "seconds", "ratio", "compile s", "best")


def rows(comparison: Comparison) -> list[list[str]]:
    """A row a submission, in the order of `COLUMNS`."""
    found = []
    for line in comparison.lines:
        ratios = comparison.ratios.get(line.submission, {})
        found.append(
            [
                line.submission + (" (reference)" if line.submission == comparison.reference else ""),
                outcomes(line),
                ", ".join(line.searched) or "nothing",
                spread(line.steps, 0),
                ratio(ratios.get("steps")),
                spread(line.seconds, 1),
                ratio(ratios.get("seconds")),
                number(line.compile_seconds, 1),
                number(line.best, 4),
            ]
        )
    return found


def outcomes(line: Line) -> str:
    """How its trials came out: '13: 12 hit, 1 budget'."""
    return f"{len(line.trials)}: " + ", ".join(f"{n} {state}" for state, n in line.counts.items())


def spread(value: Spread | None, digits: int) -> str:
    """Mean ± standard error; '≥' before a mean with misses, which count as the budget, and a word if all missed."""
    if value is None:
        return "–"
    error = "" if value.standard_error is None else f" ± {value.standard_error:.{digits}f}"
    if value.n_misses == value.n:
        return f"≥ {value.mean:.{digits}f}, miss"
    return f"{'≥ ' if value.n_misses else ''}{value.mean:.{digits}f}{error}"


def ratio(value: Ratio | None) -> str:
    if value is None:
        return "–"
    interval = "" if value.interval is None else f" ({value.interval[0]:.2f}–{value.interval[1]:.2f})"
    return f"{value.bound} {value.value:.2f}{interval}".lstrip()


def number(value: float | None, digits: int) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def heading(comparison: Comparison) -> str:
    target = "no target" if comparison.target is None else f"{comparison.metric} {comparison.target:.4g}"
    return f"{comparison.workload}: to {target}"


def terminal(comparison: Comparison) -> Table:
    table = Table(*COLUMNS, title=heading(comparison))
    for row in rows(comparison):
        table.add_row(*row)
    return table


def markdown(summary: Summary) -> str:
    parts = []
    for comparison in summary.comparisons:
        lines = [f"| {' | '.join(row)} |" for row in rows(comparison)]
        head = [f"### {heading(comparison)}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        parts += [*head, *lines, ""]
    return "\n".join([*parts, _FOOTNOTE, ""])


def latex(summary: Summary) -> str:
    r"""A `tabular` a workload, for `\input`; needs the package booktabs."""
    parts = []
    for comparison in summary.comparisons:
        lines = [" & ".join(map(_escaped, row)) + r" \\" for row in rows(comparison)]
        head = [r"\begin{tabular}{ll" + "l" * (len(COLUMNS) - 2) + "}", r"\toprule"]
        names = " & ".join(_escaped(name) for name in COLUMNS) + r" \\"
        tail = [r"\bottomrule", r"\end{tabular}", ""]
        parts += [f"% {heading(comparison)}", *head, names, r"\midrule", *lines, *tail]
    return "\n".join([*parts, f"% {_FOOTNOTE}", ""])


def as_csv(summary: Summary) -> str:
    """A row for each workload and submission; what is not there is empty."""
    records = [record for comparison in summary.comparisons for record in _records(comparison)]
    text = io.StringIO()
    columns = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(text, columns or ["workload"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in record.items()} for record in records)
    return text.getvalue()


def as_json(summary: Summary) -> dict[str, Any]:
    """All numbers, for programs; a miss is null."""
    return {
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
        "scores": dict(summary.scores),
        "performance_ratios": summary.performance,
        "speed_ups": {name: {"workloads": each, "mean": mean} for name, (each, mean) in summary.speed_ups.items()},
        "n_official_workloads": summary.n_official,
        "provenance": summary.provenance,
        "warnings": list(summary.warnings),
        "problems": [{"file": problem.file, "what": problem.what} for problem in summary.problems],
    }


def _records(comparison: Comparison) -> list[dict[str, Any]]:
    return [_record(comparison, line) for line in comparison.lines]


def _record(comparison: Comparison, line: Line) -> dict[str, Any]:
    record: dict[str, Any] = {
        "workload": comparison.workload,
        "submission": line.submission,
        "protocol": line.protocol,
        "n_trials": len(line.trials),
        "n_searched_trials": line.n_searched_trials,
        **{f"n_{state}": n for state, n in line.counts.items()},
        "searched": list(line.searched),
        "best_metric": line.best,
        "compile_seconds": line.compile_seconds,
        "n_studies": line.n_studies,
        "algoperf_seconds": line.algoperf_seconds,
        "algoperf_steps": line.algoperf_steps,
    }
    for name, value in (("steps", line.steps), ("seconds", line.seconds), *line.levels.items()):
        if value is not None:
            own = {"mean": value.mean, "standard_error": value.standard_error, "n_misses": value.n_misses}
            record |= {f"{name}_{what}": number for what, number in own.items()}
    for name, value in comparison.ratios.get(line.submission, {}).items():
        low, high = value.interval or (None, None)
        record |= {f"{name}_ratio": value.value, f"{name}_ratio_bound": value.bound}
        record |= {f"{name}_ratio_low": low, f"{name}_ratio_high": high}
    return record


def _cell(value: Any) -> Any:
    return " ".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _escaped(text: str) -> str:
    replaced = {"_": r"\_", "%": r"\%", "&": r"\&", "–": "--", "±": r"$\pm$"}
    replaced |= {"≥": r"$\geq$", "≤": r"$\leq$", "≈": r"$\approx$"}
    return "".join(replaced.get(letter, letter) for letter in text)


_FOOTNOTE = (
    "Mean ± standard error over seeds; a miss counts as the whole budget (≥, and of a ratio ≥, ≤ or ≈). Ratios to the "
    "reference, with 95 % bootstrap intervals. Seconds are the submission's, without compilation."
)
