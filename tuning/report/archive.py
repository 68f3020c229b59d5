"""Raw trial records, packed: one small archive that the report reads like the folders it was made of."""

import csv
import io
import json
import lzma
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuning import records
from tuning.errors import UserError
from tuning.report import files, reading

_DIGITS = 6  # of a time; a metric that is rounded might cross its target
_JSON_FILES = ("outcome.json", "hparams.json", "meta_data_0.json", "flags_0.json")
# Kept of meta_data_0.json beside "workload.…": the harness records the machine's counters by the hundred.
_META = ("rng_seed", "git_commit")
_FLAGS = ("submission_path", "workload", "rng_seed", "framework", "hardware_profile")
_EVALUATIONS = "eval_measurements.csv"


def pack(folders: Sequence[Path], out: Path, workload: str | None = None) -> int:
    """Write the trial folders under `folders` into the archive `out`, and return how many they are.

    Of each trial it keeps what a report reads: outcome, point, the workload's numbers, flags that name the submission,
    and every evaluation, in which times have six digits and metrics all of theirs. Equal folders give equal bytes.

    Args:
        workload: only this one's trials.

    Raises:
        UserError: there is no such trial, or a file cannot be read.
    """
    found = files.find(folders)
    chosen = [folder for folder in found.folders if workload in (None, reading.workload_of(folder))]
    if not chosen:
        told = "" if workload is None else f" of {workload}"
        raise UserError(f"no trial folder{told} under {', '.join(map(str, folders))}; name the experiment's folder")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for folder in sorted(chosen, key=lambda folder: str(folder.place)):
            for name in (*_JSON_FILES, _EVALUATIONS):
                if name in folder.names:
                    _add(archive, folder, name)
    records.write_bytes(out, lzma.compress(packed.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return len(chosen)


def _add(archive: tarfile.TarFile, folder: files.TrialFolder, name: str) -> None:
    try:
        text = folder.text(name)
        content = _shortened_csv(text) if name == _EVALUATIONS else _shortened_json(name, json.loads(text))
    except (OSError, ValueError, csv.Error) as error:
        problem = f"{folder.place / name} cannot be packed ({error})"
        raise UserError(f"{problem}; repair it, or move its trial folder away") from error
    member = tarfile.TarInfo((folder.place.relative_to(folder.root.parent) / name).as_posix())
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _shortened_json(name: str, content: Mapping[str, Any]) -> bytes:
    if name == "meta_data_0.json":
        content = {key: value for key, value in content.items() if key.startswith("workload.") or key in _META}
    if name == "flags_0.json":
        content = {key: value for key, value in content.items() if key in _FLAGS}
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
