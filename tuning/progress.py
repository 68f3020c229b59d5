"""The display of a run on the terminal: live text while it runs, and a table of outcomes at its end."""

import datetime
import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tuning.outcome import Outcome, Progress

_LIVE_PERIOD_S = 0.5
_PLAIN_PERIOD_S = 10.0
_WINDOW_S = 15.0  # wall seconds over which the rate is averaged
_FORMS = {
    "steps_to_target": "d",
    "seconds_to_target": ".2f",
    "training_seconds_to_target": ".2f",
    "best_validation_metric": ".4f",
}
RESULT_COLUMNS = ("outcome", "steps to target", "seconds to target", "training seconds to target", "best metric")


class _Output(Console):
    """Standard output; a reader that leaves, as in `run_trial.py … | head -1`, does not end the trial."""

    def __init__(self) -> None:
        super().__init__(file=sys.stdout)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LiveText:
    """`with LiveText(…) as text: text.show(…)`: text that is replaced on a terminal, elsewhere plain lines.

    Args:
        live_period_s: the least seconds between two texts on a terminal.
    """

    def __init__(self, console: Console | None = None, live_period_s: float = 0.0):
        self._console = console or _Output()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._period_s = live_period_s if self._live else _PLAIN_PERIOD_S
        self._shown_at = float("-inf")

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def is_due(self) -> bool:
        """Whether the period since the last due text has passed; a new period begins then."""
        now = time.perf_counter()
        if now - self._shown_at < self._period_s:
            return False
        self._shown_at = now
        return True

    def show(self, text: str) -> None:
        if self._live:
            self._live.update(Text(text), refresh=True)  # wrapped on a narrow terminal
        else:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class ProgressLine(LiveText):
    """`with ProgressLine(...) as report: run_trial(..., report=report)`: a live line, or a plain one every 10 s."""

    def __init__(self, title: str, target_value: float, console: Console | None = None):
        super().__init__(console, _LIVE_PERIOD_S)
        self._title, self._target_value = title, target_value
        self._latest: Progress | None = None
        self._recent_steps: deque[tuple[float, int]] = deque()  # (wall seconds, step)

    def __exit__(self, *exception: object) -> None:
        if self._latest:
            self.show(self._line(self._latest))
        super().__exit__()

    def __call__(self, progress: Progress) -> None:
        now = time.perf_counter()
        self._latest = progress
        self._recent_steps.append((now, progress.global_step))
        while now - self._recent_steps[0][0] > _WINDOW_S:
            self._recent_steps.popleft()
        if self.is_due():
            self.show(self._line(progress))

    def _line(self, progress: Progress) -> str:
        return describe(self._title, progress, self._target_value, self._steps_per_s())

    def _steps_per_s(self) -> float | None:
        (first_s, first_step), (last_s, last_step) = self._recent_steps[0], self._recent_steps[-1]
        return (last_step - first_step) / (last_s - first_s) if last_step > first_step else None


def describe(title: str, progress: Progress, target_value: float, steps_per_s: float | None) -> str:
    """One line: step and budget, metric and target, steps per wall second and the time left at that rate."""
    metric = "-" if progress.metric is None else f"{progress.metric:.4f}"
    target = f"target {target_value:.4f}" if math.isfinite(target_value) else "no target"
    parts = [
        f"{title}  step {progress.global_step}/{progress.step_budget}",
        f"{progress.metric_name} {metric} ({target})",
    ]
    if steps_per_s:
        left_s = (progress.step_budget - progress.global_step) / steps_per_s
        parts.append(f"{steps_per_s:.1f} steps/s, at most {datetime.timedelta(seconds=round(left_s))} left")
    return "  ".join(parts)


def print_outcomes(outcomes: Sequence[Outcome], console: Console | None = None) -> None:
    """Prints a row per trial."""
    table = Table("trial", *RESULT_COLUMNS)
    for outcome in outcomes:
        table.add_row(str(outcome.trial_index), *result_cells(outcome.to_json()))
    (console or _Output()).print(table)


def result_cells(result: Mapping[str, Any]) -> list[str]:
    """The `RESULT_COLUMNS` of a result as in outcome.json: "-" for a value that is missing."""
    values = [(result.get(name), form) for name, form in _FORMS.items()]
    return [
        result.get("reason") or "target",
        *("-" if value is None else format(value, form) for value, form in values),
    ]
