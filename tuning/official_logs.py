"""Copies trials into the folders that the official scorer reads: OUT/SUBMISSION/study_N/WORKLOAD_jax/trial_N.

Source: mlcommons/submissions_algorithms, `scoring/scoring_utils.py`. It takes every name in these folders as a study
or a workload, so that they may contain nothing else.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tuning.errors import UserError

_FILES = ("eval_measurements.csv", "measurements.csv", "hparams.json", "meta_data_*.json", "flags_*.json")
_STUDY = re.compile(r"study_\d+")


def export(experiments: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Copies every trial that has been evaluated, and returns the new folders.

    Args:
        experiments: folders that contain [study_N/]WORKLOAD_jax/trial_N. An experiment without studies becomes study_1.

    Raises:
        UserError: a folder has no trial, two trials have the same new folder, or flags_0.json cannot be read.
    """
    sources: dict[Path, Path] = {}
    for experiment in map(Path, experiments):
        trials = sorted(path.parent for path in experiment.rglob("*_jax/trial_*/eval_measurements.csv"))
        if not trials:
            raise UserError(f"no evaluated trial below {str(experiment)!r}; give an experiment's folder")
        for trial in trials:
            study = trial.parents[1].name if _STUDY.fullmatch(trial.parents[1].name) else "study_1"
            target = Path(out) / _submission(trial) / study / trial.parent.name / trial.name
            if target in sources or target.exists():
                raise UserError(f"{str(target)!r} is taken, and {str(trial)!r} belongs there too; give another --out")
            sources[target] = trial
    for target, trial in sources.items():
        target.mkdir(parents=True)
        for pattern in _FILES:
            for file in trial.glob(pattern):
                shutil.copyfile(file, target / file.name)
    return list(sources)


def _submission(trial: Path) -> str:
    try:
        return str(json.loads((trial / "flags_0.json").read_text(encoding="utf-8"))["submission"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(trial / 'flags_0.json')!r} does not name the submission; leave that trial out"
        ) from error
