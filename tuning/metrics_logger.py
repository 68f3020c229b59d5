"""The measurements of a trial."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from tuning import records


class MetricsLogger:
    """Writes measurements.csv and eval_measurements.csv of a trial, and checks that its training loss is finite.

    Submissions call `workload.metrics_logger.append_scalar_metrics({"loss": ..., ...}, global_step)`. Rows stay in
    memory until `flush`, which is called off the submission clock. Only then are values fetched from the device.

    Args:
        trial_dir: the folder of both files.
        write: writes a whole file.
    """

    def __init__(self, trial_dir: Path, write: records.Write = records.write_bytes):
        self._trial_dir, self._write = trial_dir, write
        self._rows: list[dict[str, Any]] = []
        self._eval_rows: list[dict[str, Any]] = []
        self._n_fetched = self._n_written = 0
        self._unread_losses: list[Any] = []
        self.show: Callable[[Mapping[str, Any]], None] = lambda row: None  # called with each row that was fetched
        self._n_not_finite = 0  # successive losses that are not finite

    def append_scalar_metrics(
        self,
        metrics: Mapping[str, Any],
        global_step: int,
        preemption_count: int | None = None,
        is_eval: bool = False,
    ) -> None:
        """Adds one row; name and arguments are AlgoPerf's. An evaluation goes to both files."""
        row = {"global_step": global_step}
        if preemption_count is not None:
            row["preemption_count"] = preemption_count
        row.update({name: value for name, value in metrics.items() if name not in row})
        self._rows.append(row)
        if is_eval:
            # AlgoPerf's order: the times, which have no split, then the metrics of the splits.
            self._eval_rows.append(dict(sorted(row.items(), key=lambda item: "/" in item[0])))
        if "loss" in metrics:
            self._unread_losses.append(metrics["loss"])

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of both files after a `flush`, for `restore`."""
        return {"rows": self._rows, "eval_rows": self._eval_rows}

    def restore(self, rows: Mapping[str, list[dict[str, Any]]]) -> None:
        """Continues from the rows of an earlier logger, which replace this one's."""
        self._rows, self._eval_rows = list(rows["rows"]), list(rows["eval_rows"])
        self._n_fetched = len(self._rows)
        self._n_not_finite, self._unread_losses = 0, [row["loss"] for row in self._rows if "loss" in row][-1:]

    @property
    def has_diverged(self) -> bool:
        """Whether two successive logged losses are known not to be finite. A single one may come from a bad batch.

        It does not wait for losses that are still being computed.
        """
        while self._unread_losses and _is_ready(self._unread_losses[0]):
            self._read_loss()
        return self._n_not_finite >= 2

    def _read_loss(self) -> None:
        is_finite = math.isfinite(float(self._unread_losses.pop(0)))
        if self._n_not_finite < 2:
            self._n_not_finite = 0 if is_finite else self._n_not_finite + 1

    def flush(self) -> None:
        """Writes both files if rows were added. A file without rows is not created.

        Rows are shown after that, so that a process that lost its claim, and so fails to write, shows none.
        """
        fetched = self._rows[self._n_fetched :]
        for row in fetched:
            row.update({name: _plain_number(value) for name, value in row.items()})
        self._n_fetched = len(self._rows)
        while self._unread_losses:
            self._read_loss()
        if len(self._rows) == self._n_written:
            return
        self._n_written = len(self._rows)
        self._write(self._trial_dir / "measurements.csv", records.csv_text(self._rows).encode("utf-8"))
        if self._eval_rows:
            self._write(self._trial_dir / "eval_measurements.csv", records.csv_text(self._eval_rows).encode("utf-8"))
        for row in fetched:
            self.show(row)


def _is_ready(value: Any) -> bool:
    is_array = isinstance(value, jax.Array)
    return not is_array or value.is_ready()


def _plain_number(value: Any) -> int | float | str:
    """Converts a scalar on a device or of NumPy to a Python number."""
    return value if isinstance(value, (int, float, str)) else float(value)
