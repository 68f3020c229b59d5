"""What a person, or a program, sees of a sweep."""

import csv
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tuning.outcome import Miss
from tuning.point_status import PointStatus
from tuning.sweep import Sweep

Status = Sequence[tuple[int, PointStatus]]
_PLAIN_PERIOD_S = 10.0
_METRIC = "best_validation_metric"
_MISSES = tuple(str(miss) for miss in Miss)


def ranking(status: Status) -> list[dict[str, Any]]:
    """Finished points, those that reached the target in the fewest steps first, then by the best metric."""
    rows = [
        {"study": study, "trial": point.index, **(point.result or {}), "hyperparameters": point.point}
        for study, point in status
        if point.state == "done"
    ]

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        steps, metric = row.get("steps_to_target"), row.get(_METRIC)
        sign = -1 if row.get("higher_is_better", True) else 1
        return math.inf if steps is None else steps, math.inf if metric is None else sign * metric

    return sorted(rows, key=rank)


def summary(status: Status) -> dict[str, Any]:
    """How far a sweep is: points by state, the first of the ranking so far, mean seconds of a finished one."""
    states = [point.state for _, point in status]
    ranked = ranking(status)
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


def table(status: Status) -> Table:
    shown = Table("study", "trial", "outcome", "steps to target", "seconds", "best metric", "hyperparameters")
    for row in ranking(status):
        values = row["hyperparameters"].items()
        point = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values)
        steps, seconds, metric = (row.get(name) for name in ("steps_to_target", "seconds_to_target", _METRIC))
        cells = (
            str(row["study"]),
            str(row["trial"]),
            row.get("reason") or "target",
            "–" if steps is None else str(steps),
            "–" if seconds is None else f"{seconds:.2f}",
            "–" if metric is None else f"{metric:.4f}",
            point,
        )
        shown.add_row(*map(Text, cells))  # a hyperparameter's value may look like rich's markup
    return shown


def show(status: Status, *, as_json: bool = False) -> None:
    """Prints the ranking and the summary."""
    if as_json:
        print(json.dumps({"summary": summary(status), "ranking": ranking(status)}))
    else:
        Console().print(table(status))
        Console().print(counts(status), highlight=False, markup=False)


def counts(status: Status) -> str:
    """How many points are at what, on a line."""
    s = summary(status)
    named = [f"{s[name]} {name}" for name in ("running", "waiting", "hit", *_MISSES) if s[name] or name == "hit"]
    line, best = f"{s['done']}/{s['points']} done, {', '.join(named)}", s["best"]
    if best is None:
        return line
    merit = f"{best[_METRIC]:.4f}" if best["steps_to_target"] is None else f"{best['steps_to_target']} steps"
    return f"{line}; best {merit} (trial {best['trial']})"


def last_evaluation(trial_dir: Path, metric: str) -> str:
    """How far a running trial is, by the last evaluation that it wrote down."""
    try:
        with open(trial_dir / "eval_measurements.csv", newline="", encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
        return f"step {last['global_step']}, {metric} {float(last[metric]):.4f}"
    except (OSError, IndexError, KeyError, TypeError, ValueError):
        return "started"


class View:
    """`with View() as show: supervise(…, show)`: live lines on a terminal, else plain ones every ten seconds.

    Args:
        as_json: an object on a line every ten seconds instead: the summary, living workers, seconds left, and each
            running trial's last evaluation.
    """

    def __init__(self, console: Console | None = None, *, as_json: bool = False):
        self._console, self._as_json = console or Console(), as_json
        is_live = self._console.is_terminal and not as_json
        self._live = Live(console=self._console, auto_refresh=False) if is_live else None
        self._shown_at = float("-inf")

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, sweep: Sweep, n_alive: int) -> None:
        now = time.monotonic()
        if not self._live and n_alive and now - self._shown_at < _PLAIN_PERIOD_S:
            return
        self._shown_at = now
        seen = self._seen(sweep, sweep.status(), n_alive)
        if self._as_json:
            print(json.dumps(seen), flush=True)
        elif self._live:
            self._live.update(Text("\n".join(_lines(seen))), refresh=True)
        else:
            self._console.print("\n".join(_lines(seen)), highlight=False, markup=False)

    def _seen(self, sweep: Sweep, status: Status, n_alive: int) -> dict[str, Any]:
        metric = f"validation/{sweep.workload.target_metric_name}"
        running = []
        for study, point in status:
            if point.state == "running":
                place = sweep.request.trial_dir(study, point.index)
                running.append({"study": study, "trial": point.index, "at": last_evaluation(place, metric)})
        s, left_s = summary(status), None
        if s["mean_trial_seconds"] and n_alive:
            left_s = (s["points"] - s["done"]) * s["mean_trial_seconds"] / n_alive
        return {"summary": s, "line": counts(status), "workers": n_alive, "seconds_left": left_s, "trials": running}


def _lines(seen: dict[str, Any]) -> list[str]:
    left = "" if seen["seconds_left"] is None else f", about {seen['seconds_left'] / 60:.0f} min left"
    running = [f"  study {row['study']} trial {row['trial']}: {row['at']}" for row in seen["trials"]]
    return [f"{seen['line']}; {seen['workers']} workers{left}", *running]
