"""What a trial was run for and which experiment it belongs to, by the place of its folder.

    EXPERIMENT/[phase/][study_N/]WORKLOAD_jax/trial_N     trials, sweeps, evidence runs, the official harness
    EXPERIMENT/[phase/][study_N/]trial_N                  the trials that set a target

Names further above mean nothing, so that an experiment may lie anywhere.
"""

import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath

from tuning.report.files import TrialFolder

_WORKLOAD = re.compile(r"(.+)_(?:jax|pytorch)")
_STUDY = re.compile(r"study_(\d+)")


class Phase(StrEnum):
    """The purpose of a trial, which is the name of a folder above it; without such a folder it is SEARCH.

    SEARCH tries points, CONFIRM runs the best of them on one more seed, REPEAT runs the best one on fresh seeds, and
    REFERENCE runs the configuration that the target was set with.
    """

    SEARCH = "search"
    CONFIRM = "confirm"
    REPEAT = "repeat"
    REFERENCE = "target_reference"

    @property
    def is_timed(self) -> bool:
        """Whether its trials are there to be timed. Those of a search share the cores and the compiled programs."""
        return self in (Phase.REPEAT, Phase.REFERENCE)


@dataclass(frozen=True)
class Location:
    """
    Attributes:
        workload: None if the trial does not lie in a workload's folder.
        experiment: absolute path of its folder; the folder or archive that the user named, if no name above is known.
    """

    workload: str | None
    study: int
    phase: Phase
    experiment: PurePath

    @classmethod
    def of(cls, folder: TrialFolder) -> "Location":
        workload, study, phase, experiment = None, 1, Phase.SEARCH, absolute(folder.root)
        place = absolute(folder.path).parent
        if match := _WORKLOAD.fullmatch(place.name):
            workload, experiment, place = match[1], place.parent, place.parent
        if match := _STUDY.fullmatch(place.name):
            study, experiment, place = int(match[1]), place.parent, place.parent
        if place.name in list(Phase):
            phase, experiment = Phase(place.name), place.parent
        return cls(workload, study, phase, experiment)


def absolute(path: PurePath | str) -> PurePath:
    """The path in full, so that `.` and the folders above it have names, too."""
    return PurePath(os.path.abspath(path))


def distinct_names(experiments: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(workload, experiment's folder) -> the shortest end of the folder's path that no other experiment's path has.

    Folders above it that are called like the workload are left out, unless two experiments of the workload would then
    be equal. An evidence run has a folder for each workload, and a submission needs one name on all workloads.
    """
    whole = {key: absolute(key[1]).parts for key in experiments}
    short = {key: (*(part for part in parts[:-1] if part != key[0]), parts[-1]) for key, parts in whole.items()}
    n_alike = Counter((workload, short[workload, folder]) for workload, folder in experiments)
    parts = {key: short[key] if n_alike[key[0], short[key]] == 1 else whole[key] for key in experiments}
    return {key: str(PurePath(*_distinct_end(own, set(parts.values()) - {own}))) for key, own in parts.items()}


def _distinct_end(parts: tuple[str, ...], others: set[tuple[str, ...]]) -> tuple[str, ...]:
    lengths = range(1, len(parts))
    return next((parts[-n:] for n in lengths if all(other[-n:] != parts[-n:] for other in others)), parts)
