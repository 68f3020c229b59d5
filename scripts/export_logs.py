"""Copies experiments' trials into the folders that the official AlgoPerf scorer reads.

python scripts/export_logs.py --out=logs experiments/first experiments/second
"""

from typing import Any

import command
from absl import flags

from tuning import disk, official_logs
from tuning.errors import UserError, one_line

flags.DEFINE_string("out", None, "Folder that SUBMISSION/study_N/WORKLOAD_jax/trial_N is written to.", required=True)


def main(values: dict[str, Any], experiments: list[str]) -> None:
    out = disk.expanded(values["out"], "out")
    try:
        trials = official_logs.export([disk.expanded(experiment) for experiment in experiments], out)
    except OSError as error:
        raise UserError(f"cannot copy the trials to {str(out)!r} ({one_line(error)}): give another --out") from error
    print(f"{len(trials)} trials written to {out}")


command.run(__name__, main, arguments="name the experiments' folders after the flags")
