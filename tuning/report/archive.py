"""Packs trial folders into one small archive, which the report reads like the folders themselves."""

import csv
import io
import lzma
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePath

from tuning import records
from tuning.errors import UserError, one_line
from tuning.report import copies, files, shortened
from tuning.report.files import TrialFolder


def pack(folders: Sequence[Path], out: Path) -> int:
    """Writes the trial folders under `folders` into the archive `out`, and returns their number.

    It keeps what a report reads: outcome, point, the workload's numbers, flags that name the submission, and every
    evaluation. Times are rounded to six digits, metrics are not rounded. The machine's folders of data and submissions
    are left out. Equal folders give equal bytes.

    Raises:
        UserError: there is no such trial, one of `folders` has none or those of another, two trials would have one
            name, a file cannot be read, or the archive cannot be written.
    """
    members = _members(folders)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, folder in members.items():
            for name in shortened.NAMES:
                if name in folder.names:
                    _add(archive, path, folder, name)
    try:
        records.write_bytes(out, lzma.compress(packed.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    except OSError as error:
        raise UserError(f"cannot write {str(out)!r} ({error.strerror}): give another --out") from error
    return len(members)


def _members(folders: Sequence[Path]) -> dict[PurePath, TrialFolder]:
    """Path in the archive -> trial folder."""
    found, problems = files.find(folders)
    if not found:
        raise UserError(f"no trial folder under {', '.join(map(str, folders))}; name the experiment's folder")
    if problems:
        raise UserError(f"{problems[0].file} {problems[0].what}; correct its name, or leave it out")
    trials = copies.without_copies(found, problems)
    if problems:
        raise UserError(f"{problems[0].file} holds trials of another folder, too: leave one of the two out")
    members: dict[PurePath, TrialFolder] = {}
    for folder in sorted(trials, key=lambda folder: str(folder.path)):
        path = folder.path.relative_to(folder.root.parent)
        if path in members:
            problem = f"{members[path].path} and {folder.path} would both be {path} in the archive"
            raise UserError(f"{problem}; give each folder an archive of its own, or pack the folder above them")
        members[path] = folder
    return members


def _add(archive: tarfile.TarFile, path: PurePath, folder: TrialFolder, name: str) -> None:
    try:
        content = shortened.shortened(folder, name)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        problem = f"{folder.path / name} cannot be packed ({one_line(error)})"
        raise UserError(f"{problem}; repair it, or move its trial folder away") from error
    member = tarfile.TarInfo((path / name).as_posix())
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
