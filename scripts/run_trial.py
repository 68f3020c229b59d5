"""Runs tuning trials of one submission on one workload, as AlgoPerf's submission_runner.py does.

    python scripts/run_trial.py --workload=b3db --submission_path=submissions/kfac_reduce \
        --experiment_dir=experiments --experiment_name=first
"""

from dataclasses import fields
from typing import Any

import command
import trial_flags
from absl import flags

from tuning import experiment, processes, progress
from tuning.interruption import Interruption

flags.adopt_module_key_flags(trial_flags)
flags.mark_flags_as_required(["workload", "submission_path"])
flags.DEFINE_integer("num_tuning_trials", 1, "How many points of the space to run.", lower_bound=1)
flags.DEFINE_boolean("resume", False, "Continue an experiment of this name, from its newest checkpoints.")
flags.DEFINE_integer(
    "checkpoints_to_keep", 2, "Checkpoints kept of each trial; every evaluation makes one. 0 for none.", lower_bound=0
)
flags.DEFINE_boolean("overwrite", False, "Remove an experiment of this name first.")
flags.DEFINE_string("profile", None, "FIRST:LAST, the steps that JAX's profiler traces; it costs time.")
flags.DEFINE_string(
    "coordinator_address",
    None,
    "host:port of the first process, if several processes train one trial together. srun, and mpirun of Open MPI 4, "
    "make it unnecessary.",
)
flags.DEFINE_integer("num_processes", None, "Number of processes that train one trial together.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Index of this process, from 0 to num_processes - 1.", lower_bound=0)


def main(values: dict[str, Any]) -> None:
    request = experiment.Request(**{field.name: values[field.name] for field in fields(experiment.Request)})
    with Interruption() as interruption:
        trial_processes = processes.join(values["coordinator_address"], values["num_processes"], values["process_id"])
        outcomes = experiment.run_experiment(request, interruption, trial_processes)
    if trial_processes.is_first:
        progress.print_outcomes(outcomes)


command.run(__name__, main)
