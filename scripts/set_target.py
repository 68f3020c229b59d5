"""Sets workloads' targets with their first-order references, and writes the targets and every trial behind them.

Run again, it continues.

python scripts/set_target.py --workloads=b3db,mnist_vit,pydoc_lm --experiment_dir=experiments/targets --workers=2
"""

from typing import Any

import command
from absl import flags

from tuning import disk, plain_output, target
from tuning.interruption import RUN_AGAIN, Interruption

flags.DEFINE_list("workloads", None, "Names of the workloads, whose targets are not set yet.", required=True)
flags.DEFINE_list("references", ["submissions/nesterov", "submissions/nadamw"], "First-order submissions.")
flags.DEFINE_integer("num_tuning_trials", 40, "Random points of each reference.", lower_bound=1)
flags.DEFINE_integer("num_seeds", 20, "Repetitions of the best point.", lower_bound=1)
flags.DEFINE_list(
    "rungs",
    [],
    "Shares of the step budget at which the search stops the worse half (as in 0.1,0.25,0.5).",
)
flags.DEFINE_integer("workers", 1, "Parallel processes, each on one core.", lower_bound=1)
flags.DEFINE_string("experiment_dir", None, "Folder of the trials; finished ones are used again.", required=True)
flags.DEFINE_string("out", "results/targets", "Where the results go.")
flags.DEFINE_string("presets", "presets", "Where the reference runs' points go, as search spaces.")


def _are_shares(texts: list[str]) -> bool:
    try:
        shares = [float(text) for text in texts]
    except ValueError:
        return False
    return shares == sorted(set(shares)) and all(0 < share < 1 for share in shares)


flags.register_validator("rungs", _are_shares, "give ascending shares between 0 and 1")


def main(values: dict[str, Any]) -> None:
    folder, out, presets = (disk.expanded(values[flag], flag) for flag in ("experiment_dir", "out", "presets"))
    open_workloads = [workload for workload in values["workloads"] if not target.is_set(out, workload)]
    for workload in set(values["workloads"]) - set(open_workloads):
        print(f"the target of {workload} is already set in {str(out)!r}, and is not changed", flush=True)
    protocols = [
        target.Protocol(
            workload=workload,
            references=tuple(values["references"]),
            n_points=values["num_tuning_trials"],
            n_seeds=values["num_seeds"],
            search_seed=values["rng_seed"],
            folder=folder,
            data_dir=values["data_dir"],
            rungs=tuple(map(float, values["rungs"])),
        )
        for workload in open_workloads
    ]
    with Interruption(RUN_AGAIN) as interruption, interruption.interruptible():
        for result in target.find_targets(protocols, values["workers"], log=plain_output.print_at_once):
            files = target.write(result, out, presets)
            print(
                f"{result['workload']}: validation target {result['validation_target']}, test {result['test_target']}"
            )
            print(f"written to {' and '.join(map(str, files))}; now set the targets in the workload", flush=True)


command.run(__name__, main)
