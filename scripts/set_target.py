"""Sets a workload's target with its first-order references; writes it and every trial behind it.

A run that was cut short continues.

python scripts/set_target.py --workload=b3db --experiment_dir=experiments/targets --workers=2
"""

from pathlib import Path
from typing import Any

import command
from absl import flags

from tuning import target

flags.DEFINE_string("workload", None, "Name of the workload; its target must not be set yet.", required=True)
flags.DEFINE_list("references", ["submissions/nesterov", "submissions/nadamw"], "First-order submissions.")
flags.DEFINE_integer("num_tuning_trials", 40, "Random points of each reference.", lower_bound=1)
flags.DEFINE_integer("num_seeds", 20, "Repetitions of the best point.", lower_bound=1)
flags.DEFINE_integer("workers", 1, "Processes beside each other, a core each.", lower_bound=1)
flags.DEFINE_string(
    "experiment_dir", None, "Where the trials' folders go; finished ones are used again.", required=True
)
flags.DEFINE_string("out", "results/targets", "Where the result goes.")
flags.DEFINE_string("presets", "presets", "Where the reference run's point goes, as a search space.")


def main(chosen: dict[str, Any]) -> None:
    protocol = target.Protocol(
        workload=chosen["workload"],
        references=tuple(chosen["references"]),
        n_points=chosen["num_tuning_trials"],
        n_seeds=chosen["num_seeds"],
        search_seed=chosen["rng_seed"],
        folder=Path(chosen["experiment_dir"]),
        data_dir=chosen["data_dir"],
    )
    found = target.find_target(protocol, chosen["workers"])
    print(f"validation target {found['validation_target']}, test target {found['test_target']}")
    files = target.write(found, Path(chosen["out"]), Path(chosen["presets"]))
    print(f"written to {' and '.join(map(str, files))}; now set the targets in the workload")


command.run(__name__, main)
