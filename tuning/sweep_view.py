"""Displays of a sweep, for people and for programs."""

import csv
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuning.outcome import Miss
from tuning.plain_output import print_at_once
from tuning.point_status import PointStatus
from tuning.progress import RESULT_COLUMNS, LiveText, result_cells
from tuning.report.protocols import Cost
from tuning.sweep import Sweep

Status = Sequence[tuple[int, PointStatus]]
_METRIC = "best_validation_metric"
_MISSES = tuple(str(miss) for miss in Miss)


def ranking(status: Status, rank_by: Cost = Cost.STEPS) -> list[dict[str, Any]]:
    """Finished points in order: first those that reached the target, by cost, then the others, by the best metric."""
    rows = [
        {"study": study, "trial": point.index, **(point.result or {}), "hyperparameters": point.point}
        for study, point in status
        if point.state == "done"
    ]

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        cost, metric = row.get(f"{rank_by}_to_target"), row.get(_METRIC)
        sign = -1 if row.get("higher_is_better", True) else 1
        return math.inf if cost is None else cost, math.inf if metric is None else sign * metric

    return sorted(rows, key=rank)


def summary(status: Status, rank_by: Cost = Cost.STEPS) -> dict[str, Any]:
    """The progress of a sweep: points by state, the best point so far, mean seconds of the finished ones."""
    states = [point.state for _, point in status]
    ranked = ranking(status, rank_by)
    reasons = [row.get("reason") for row in ranked]
    seconds = [row["submission_seconds"] for row in ranked if row.get("submission_seconds")]
    return {
        "points": len(states),
        "done": states.count("done"),
        "running": states.count("running"),
        "waiting": states.count("waiting"),
        "hit": reasons.count(None),
        **{reason: reasons.count(reason) for reason in _MISSES},
        "best": ranked[0] if ranked and ranked[0].get(_METRIC) is not None else None,
        "mean_trial_seconds": statistics.mean(seconds) if seconds else None,
    }


def table(status: Status, rank_by: Cost = Cost.STEPS) -> Table:
    """A row for each finished point, with its seconds to the target by both clocks."""
    table = Table("study", "trial", *RESULT_COLUMNS, "hyperparameters")
    for row in ranking(status, rank_by):
        values = row["hyperparameters"].items()
        point = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values)
        # A hyperparameter's value may look like rich's markup.
        table.add_row(str(row["study"]), str(row["trial"]), *result_cells(row), Text(point))
    return table


def show(status: Status, *, as_json: bool = False, rank_by: Cost = Cost.STEPS) -> None:
    """Prints the ranking and the summary."""
    if as_json:
        print_at_once(json.dumps({"summary": summary(status, rank_by), "ranking": ranking(status, rank_by)}))
    else:
        Console().print(table(status, rank_by))
        Console().print(counts(status, rank_by), highlight=False, markup=False)


def counts(status: Status, rank_by: Cost = Cost.STEPS) -> str:
    """One line: how many points are in each state, and the best one."""
    s = summary(status, rank_by)
    states = [f"{s[name]} {name}" for name in ("running", "waiting", "hit", *_MISSES) if s[name] or name == "hit"]
    line, best = f"{s['done']}/{s['points']} done, {', '.join(states)}", s["best"]
    if best is None:
        return line
    cost = best.get(f"{rank_by}_to_target")
    merit = f"{best[_METRIC]:.4f}" if cost is None else f"{cost:g} {rank_by.words}"
    return f"{line}; best {merit} (trial {best['trial']})"


def last_evaluation(trial_dir: Path, metric: str) -> str:
    """The progress of a running trial, from its last evaluation on disk."""
    try:
        with open(trial_dir / "eval_measurements.csv", newline="", encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
        return f"step {last['global_step']}, {metric} {float(last[metric]):.4f}"
    except (OSError, IndexError, KeyError, TypeError, ValueError):
        return "started"


class View(LiveText):
    """`with View() as show: supervise(…, show)`: live lines on a terminal, elsewhere plain ones every ten seconds.

    Args:
        as_json: instead print a JSON object on a line every ten seconds: the summary, living workers, seconds left, and
            each running trial's last evaluation.
    """

    def __init__(self, *, as_json: bool = False):
        super().__init__(Console(force_terminal=False) if as_json else None)
        self._as_json = as_json

    def __call__(self, sweep: Sweep, n_alive: int) -> None:
        if self.is_due() or not n_alive:
            progress = _progress(sweep, sweep.status(), n_alive)
            if self._as_json:
                print_at_once(json.dumps(progress))
            else:
                self.show("\n".join(_lines(progress)))


def _progress(sweep: Sweep, status: Status, n_alive: int) -> dict[str, Any]:
    metric = f"validation/{sweep.workload.target_metric_name}"
    running = []
    for study, point in status:
        if point.state == "running":
            trial_dir = sweep.request.trial_dir(study, point.index)
            running.append({"study": study, "trial": point.index, "at": last_evaluation(trial_dir, metric)})
    s, left_s = summary(status), None
    if s["mean_trial_seconds"] and n_alive:
        left_s = (s["points"] - s["done"]) * s["mean_trial_seconds"] / n_alive
    return {"summary": s, "line": counts(status), "workers": n_alive, "seconds_left": left_s, "trials": running}


def _lines(progress: dict[str, Any]) -> list[str]:
    left = "" if progress["seconds_left"] is None else f", about {progress['seconds_left'] / 60:.0f} min left"
    running = [f"  study {row['study']} trial {row['trial']}: {row['at']}" for row in progress["trials"]]
    return [f"{progress['line']}; {progress['workers']} workers{left}", *running]
