"""Packs trial folders into one small archive, which the report reads like the folders themselves."""

import csv
import io
import json
import lzma
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tuning import records
from tuning.errors import UserError
from tuning.report import files

_DIGITS = 6  # of a time; a metric is not rounded, since it might cross its target
_JSON_FILES = ("outcome.json", "hparams.json", "meta_data_0.json", "flags_0.json")
# Entries of meta_data_0.json that are kept besides "workload.…"; the harness records hundreds of others.
_META = ("rng_seed", "git_commit")
_FLAGS = ("submission_path", "workload", "rng_seed", "framework", "hardware_profile")
_EVALUATIONS = "eval_measurements.csv"


def pack(folders: Sequence[Path], out: Path) -> int:
    """Writes the trial folders under `folders` into the archive `out`, and returns their number.

    It keeps what a report reads: outcome, point, the workload's numbers, flags that name the submission, and every
    evaluation. Times are rounded to six digits, metrics are not rounded. The machine's folders of data and submissions
    are left out. Equal folders give equal bytes.

    Raises:
        UserError: there is no such trial, or a file cannot be read.
    """
    trials = files.find(folders)[0]
    if not trials:
        raise UserError(f"no trial folder under {', '.join(map(str, folders))}; name the experiment's folder")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for folder in sorted(trials, key=lambda folder: str(folder.path)):
            for name in (*_JSON_FILES, _EVALUATIONS):
                if name in folder.names:
                    _add(archive, folder, name)
    records.write_bytes(out, lzma.compress(packed.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return len(trials)


def _add(archive: tarfile.TarFile, folder: files.TrialFolder, name: str) -> None:
    try:
        text = folder.text(name)
        content = _shortened_csv(text) if name == _EVALUATIONS else _shortened_json(name, json.loads(text))
    except (OSError, ValueError, csv.Error) as error:
        problem = f"{folder.path / name} cannot be packed ({error})"
        raise UserError(f"{problem}; repair it, or move its trial folder away") from error
    member = tarfile.TarInfo((folder.path.relative_to(folder.root.parent) / name).as_posix())
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _shortened_json(name: str, content: Mapping[str, Any]) -> bytes:
    if name == "meta_data_0.json":
        content = {key: value for key, value in content.items() if key.startswith("workload.") or key in _META}
    if name == "flags_0.json":
        content = {key: value for key, value in content.items() if key in _FLAGS}
    content = {key: value for key, value in content.items() if key != "data_dir"}
    if isinstance(path := content.get("submission_path"), str):
        content["submission_path"] = PurePosixPath(path).relative_to(PurePosixPath(path).parent.parent).as_posix()
    return json.dumps(content, separators=(",", ":")).encode()


def _shortened_csv(text: str) -> bytes:
    shortened = io.StringIO()
    header, *rows = csv.reader(text.splitlines())
    writer = csv.writer(shortened, lineterminator="\n")
    writer.writerow(header)
    are_times = [name in files.TIMES or name in ("score", "total_duration") for name in header]
    writer.writerows(
        [_rounded(cell) if is_time else cell for cell, is_time in zip(row, are_times, strict=True)] for row in rows
    )
    return shortened.getvalue().encode()


def _rounded(time: str) -> str:
    return f"{float(time):.{_DIGITS}g}" if time else time
