"""Finds a workload's target with its first-order references, and writes it with every trial behind it.

python scripts/set_target.py --workload=b3db --experiment_dir=experiments/targets --out=results/targets
"""

from pathlib import Path
from typing import Any

import command
from absl import flags

from tuning import target
from tuning.comparison import Protocol

flags.DEFINE_string("workload", None, "Name of the workload; its target must not be set yet.", required=True)
flags.DEFINE_list("references", ["submissions/nesterov", "submissions/nadamw"], "First-order submissions.")
flags.DEFINE_integer("num_tuning_trials", 16, "Random points of each reference.", lower_bound=1)
flags.DEFINE_string("experiment_dir", None, "Where the trials' folders go.", required=True)
flags.DEFINE_string("out", "results/targets", "Where the result goes.")


def main(chosen: dict[str, Any]) -> None:
    seed = chosen["rng_seed"]
    protocol = Protocol(
        n_points=chosen["num_tuning_trials"],
        seeds=tuple(range(seed + 1, seed + 1 + target.N_SEEDS)),
        search_seed=seed,
        folder=Path(chosen["experiment_dir"]),
        data_dir=chosen["data_dir"],
        stop_at_target=False,
    )
    found = target.find_target(chosen["workload"], chosen["references"], protocol)
    print(f"validation target {found['validation_target']}, test target {found['test_target']}")
    print(f"written to {target.write(found, Path(chosen['out']))}; now set them in the workload")


command.run(__name__, main)
