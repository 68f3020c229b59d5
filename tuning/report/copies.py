"""Leaves out trials that were named twice: as a folder and as its archive, or as a copy."""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import PurePath

from tuning.report import shortened
from tuning.report.files import FileProblem, TrialFolder
from tuning.report.location import Location


def without_copies(folders: Sequence[TrialFolder], problems: list[FileProblem]) -> list[TrialFolder]:
    """The folders, without copies of trials that lie under an earlier root. The later root is listed as a problem."""
    if len({folder.root for folder in folders}) < 2:
        return list(folders)
    roots: dict[Hashable, PurePath] = {}
    copied: dict[PurePath, list[TrialFolder]] = defaultdict(list)  # root -> its copies
    for folder in folders:
        if roots.setdefault(_records(folder), folder.root) != folder.root:
            copied[folder.root].append(folder)
    dropped: set[PurePath] = set()
    for root, own in copied.items():
        # Trials of two runs may have equal records until they are evaluated: times differ.
        if any(shortened.EVALUATIONS in folder.names for folder in own):
            dropped |= {folder.path for folder in own}
            what = f"holds copies of trials that are read already ({len(own)}); counted once"
            problems.append(FileProblem(str(root), what))
    return [folder for folder in folders if folder.path not in dropped]


def _records(folder: TrialFolder) -> Hashable:
    """A key that is equal for a trial and its copies. If a file cannot be read: the folder's path, which is unique."""
    place = Location.of(folder)
    digest = hashlib.sha256()
    # Older archives lack some flags, and an outcome has all that a report takes from them.
    unused = {shortened.FLAGS} if shortened.OUTCOME in folder.names else set()
    try:
        for name in shortened.NAMES:
            if name in folder.names and name not in unused:
                digest.update(name.encode() + b"\0" + shortened.shortened(folder, name))
    except (OSError, ValueError, RecursionError, csv.Error):
        return folder.path
    return place.workload, place.study, place.phase, folder.path.name, digest.digest()
