"""Copies experiments' trials into the folders that the official AlgoPerf scorer reads.

python scripts/export_logs.py --out=logs experiments/first experiments/second
"""

from typing import Any

import command
from absl import flags

from tuning import official_logs

flags.DEFINE_string("out", None, "Folder that SUBMISSION/study_N/WORKLOAD_jax/trial_N is written to.", required=True)


def main(values: dict[str, Any], experiments: list[str]) -> None:
    print(f"{len(official_logs.export(experiments, values['out']))} trials written to {values['out']}")


command.run(__name__, main, arguments="name the experiments' folders after the flags")
