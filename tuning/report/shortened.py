"""A trial's files, reduced to what a report reads. A trial, a copy of it and its archive give the same bytes."""

import csv
import io
import json
from pathlib import PurePosixPath
from typing import Any

from tuning.report import files
from tuning.report.files import TrialFolder

FLAGS, OUTCOME, EVALUATIONS = "flags_0.json", "outcome.json", "eval_measurements.csv"
NAMES = (OUTCOME, "hparams.json", "meta_data_0.json", FLAGS, EVALUATIONS)
_DIGITS = 6  # of a time; a metric is not rounded, since it might cross its target
# Entries of meta_data_0.json that are kept besides "workload.…"; the harness records hundreds of others.
_META_KEPT = ("rng_seed", "git_commit")
_FLAGS_KEPT = (
    "submission_path",
    "workload",
    "rng_seed",
    "framework",
    "hardware_profile",
    "tuning_ruleset",
    "step_budget",
)
_LOCAL_PATHS = ("data_dir", "submission_path")  # folders of the machine


def shortened(folder: TrialFolder, name: str) -> bytes:
    """One of the folder's files.

    Raises:
        OSError, ValueError, RecursionError, csv.Error: it cannot be read.
    """
    text = folder.text(name)
    if name == EVALUATIONS:
        return _csv(text)
    content = json.loads(text)
    if name == FLAGS and (last := files.last_flags(folder)) != FLAGS:
        content = _with_last_budget(content, folder.text(last))
    return _json(name, content)


def _with_last_budget(content: Any, text: str) -> Any:
    """The first start's flags, the only file of flags that an archive holds, with the budget of the last ones."""
    try:
        last = json.loads(text)
    except ValueError:
        return content
    if isinstance(content, dict) and isinstance(last, dict) and "step_budget" in last:
        return content | {"step_budget": last["step_budget"]}
    return content


def _json(name: str, content: Any) -> bytes:
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    if name == "meta_data_0.json":
        content = {key: value for key, value in content.items() if key.startswith("workload.") or key in _META_KEPT}
    if name == FLAGS:
        content = {key: value for key, value in content.items() if key in _FLAGS_KEPT}
    content = {key: value for key, value in content.items() if key != "data_dir"}
    if isinstance(path := content.get("submission_path"), str):
        content["submission_path"] = PurePosixPath(path).relative_to(PurePosixPath(path).parent.parent).as_posix()
    if isinstance(resumptions := content.get("resumptions"), list):
        content["resumptions"] = [_without_local_paths(resumption) for resumption in resumptions]
    return json.dumps(content, separators=(",", ":")).encode()


def _without_local_paths(resumption: Any) -> Any:
    if not isinstance(resumption, dict) or not isinstance(changes := resumption.get("changes"), dict):
        return resumption
    return resumption | {"changes": {name: change for name, change in changes.items() if name not in _LOCAL_PATHS}}


def _csv(text: str) -> bytes:
    short = io.StringIO()
    header, *rows = csv.reader(text.splitlines())
    writer = csv.writer(short, lineterminator="\n")
    writer.writerow(header)
    are_times = [name in files.TIMES or name in ("score", "total_duration") for name in header]
    writer.writerows(
        [_rounded(cell) if is_time else cell for cell, is_time in zip(row, are_times, strict=True)] for row in rows
    )
    return short.getvalue().encode()


def _rounded(time: str) -> str:
    return f"{float(time):.{_DIGITS}g}" if time else time
