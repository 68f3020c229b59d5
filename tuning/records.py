"""What a trial writes down, file by file, each one whole at any moment; and where it ran."""

import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

# AlgoPerf's columns, before the metrics of the splits.
EVAL_COLUMNS = (
    "global_step",
    "preemption_count",
    "score",
    "total_duration",
    "accumulated_submission_time",
    "accumulated_eval_time",
    "accumulated_logging_time",
)
_SPLITS = ("train", "validation", "test")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_PROJECT = Path(__file__).resolve().parents[1]


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a kill, finds the old content or the new, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk, which it would keep full


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Strict JSON: numbers that are not finite become null."""
    write_text(path, json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One column per key, in the order first seen; a row without the key leaves the cell empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class MetricsLogger:
    """measurements.csv and eval_measurements.csv of a trial, and whether its training loss is still finite.

    Submissions call `workload.metrics_logger.append_scalar_metrics({"loss": ..., ...}, global_step)`. Rows
    are kept in memory until `flush`, called off the submission clock; device values are fetched only then.
    """

    def __init__(self, trial_dir: Path):
        self._trial_dir = trial_dir
        self._rows: list[dict[str, Any]] = []
        self._eval_rows: list[dict[str, Any]] = []
        self._n_fetched = 0
        self._unread_losses: list[Any] = []
        self._n_lost = 0  # losses that were not finite since one that was

    def append_scalar_metrics(
        self,
        metrics: Mapping[str, Any],
        global_step: int,
        preemption_count: int | None = None,
        is_eval: bool = False,
    ) -> None:
        """Takes up one row; name and arguments are AlgoPerf's. An evaluation goes to both files."""
        row = {"global_step": global_step}
        if preemption_count is not None:
            row["preemption_count"] = preemption_count
        row.update({name: value for name, value in metrics.items() if name not in row})
        self._rows.append(row)
        if is_eval:
            self._eval_rows.append(_in_eval_order(row))
        if "loss" in metrics:
            self._unread_losses.append(metrics["loss"])

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """What both files hold after a `flush`, for `take_up`."""
        return {"rows": self._rows, "eval_rows": self._eval_rows}

    def take_up(self, rows: Mapping[str, list[dict[str, Any]]]) -> None:
        """Goes on from the rows of an earlier logger, in place of any of its own."""
        self._rows, self._eval_rows = list(rows["rows"]), list(rows["eval_rows"])
        self._n_fetched = len(self._rows)
        self._n_lost, self._unread_losses = 0, [row["loss"] for row in self._rows if "loss" in row][-1:]

    @property
    def has_diverged(self) -> bool:
        """Whether two logged "loss"es, one after the other, are known not to be finite; one may be a bad batch's alone.

        Does not wait for one that is still being computed.
        """
        while self._unread_losses and _is_ready(self._unread_losses[0]):
            self._read_loss()
        return self._n_lost >= 2

    def _read_loss(self) -> None:
        is_finite = math.isfinite(float(self._unread_losses.pop(0)))
        if self._n_lost < 2:
            self._n_lost = 0 if is_finite else self._n_lost + 1

    def flush(self) -> None:
        """Writes both files as they stand; a file without rows is not made."""
        for row in self._rows[self._n_fetched :]:
            row.update({name: _plain_number(value) for name, value in row.items()})
        self._n_fetched = len(self._rows)
        while self._unread_losses:
            self._read_loss()
        if self._rows:
            write_csv(self._trial_dir / "measurements.csv", self._rows)
        if self._eval_rows:
            write_csv(self._trial_dir / "eval_measurements.csv", self._eval_rows)


def _is_ready(value: Any) -> bool:
    return not isinstance(value, jax.Array) or value.is_ready()


def code_version() -> str | None:
    """The commit of this checkout; None outside one. Touches no device, as `environment` does."""
    return _git_state()[0]


def environment() -> dict[str, Any]:
    """Commit, package versions and hardware; `git_commit` and `git_dirty` are None outside a checkout."""
    commit, dirty = _git_state()
    devices = jax.devices()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "n_devices": len(devices),
        "cpu_model": _cpu_model(),
        "n_cpu_cores": _n_cpu_cores(),
        "memory_gib": _memory_gib(),
    }


def provenance(environments: Sequence[Mapping[str, Any]]) -> str:
    """Machines, versions and commits of one or more environments as a line of a report; differing ones all shown."""

    def machine(e: Mapping[str, Any]) -> str:
        cpu = f"{e['cpu_model']}, {e['n_cpu_cores']} cores, {e['memory_gib']} GiB"
        return f"{cpu}; {e['n_devices']} × {e['device_kind']} ({e['platform']})"

    def versions(e: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {e[name]}" for name in ("python", *_PACKAGES))

    def commit(e: Mapping[str, Any]) -> str:
        return f"{(e['git_commit'] or 'unknown')[:10]}{' with uncommitted changes' if e['git_dirty'] else ''}"

    parts = (("Machine", machine), ("Versions", versions), ("Commit", commit))
    return " ".join(f"{name}: {' / '.join(sorted(set(map(show, environments))))}." for name, show in parts)


def workload_properties(workload: Any) -> dict[str, Any]:
    """The workload's fixed numbers, under the names AlgoPerf's meta data gives them."""
    return {
        "workload.target_metric_name": workload.target_metric_name,
        "workload.validation_target_value": workload.validation_target_value,
        "workload.test_target_value": workload.test_target_value,
        "workload.num_train_examples": workload.num_train_examples,
        "workload.num_eval_train_examples": workload.num_eval_train_examples,
        "workload.num_validation_examples": workload.num_validation_examples,
        "workload.num_test_examples": workload.num_test_examples,
        "workload.eval_batch_size": workload.eval_batch_size,
        "workload.max_allowed_runtime_sec": workload.max_allowed_runtime_sec,
        "workload.eval_period_time_sec": workload.eval_period_time_sec,
        "workload.eval_period_steps": workload.eval_period_steps,
        "workload.step_hint": workload.step_hint,
    }


def _in_eval_order(row: dict[str, Any]) -> dict[str, Any]:
    def place(name: str) -> int:
        if name in EVAL_COLUMNS:
            return EVAL_COLUMNS.index(name)
        split = name.split("/")[0]
        return len(EVAL_COLUMNS) + (_SPLITS.index(split) if split in _SPLITS else len(_SPLITS))

    return {name: row[name] for name in sorted(row, key=place)}


def _plain_number(value: Any) -> int | float | str:
    """A device or NumPy scalar to a Python number; Python's own stay as they are."""
    return value if isinstance(value, (int, float, str)) else float(value)


def _plain(value: Any) -> Any:
    """Mappings, sequences and scalars to what strict JSON can hold."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    number = float(value)
    return number if math.isfinite(number) else None


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(_PROJECT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _git_state() -> tuple[str | None, bool | None]:
    # An installed copy may lie inside somebody else's repository, whose commit says nothing about this code.
    top = _git("rev-parse", "--show-toplevel")
    commit = _git("rev-parse", "HEAD") if top is not None and Path(top).resolve() == _PROJECT else None
    return (None, None) if commit is None else (commit, bool(_git("status", "--porcelain")))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _n_cpu_cores() -> int:
    """Cores this process may run on, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
