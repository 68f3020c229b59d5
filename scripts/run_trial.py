"""Runs tuning trials of one submission on one workload, as AlgoPerf's submission_runner.py does.

    python scripts/run_trial.py --workload=b3db --submission_path=submissions/kfac_reduce \
        --experiment_dir=experiments --experiment_name=first
"""

from typing import Any

import command
from absl import flags

from tuning import experiment, processes, progress
from tuning.description import MatmulPrecision
from tuning.interruption import Interruption
from tuning.ruleset import TuningRuleset
from workloads import budgets

flags.DEFINE_string("workload", None, "Name of the workload.", required=True)
flags.DEFINE_string("submission_path", None, "Folder with submission.py, or the file.", required=True)
flags.DEFINE_enum(
    "tuning_ruleset",
    str(TuningRuleset.EXTERNAL),
    [str(ruleset) for ruleset in TuningRuleset],
    "AlgoPerf's: points of a search space, or the submission's own setting and 1.5 times the budget.",
)
flags.DEFINE_string("tuning_search_space", None, "JSON file; the submission's own if not given.")
flags.DEFINE_integer("num_tuning_trials", 1, "How many points of the space to run.", lower_bound=1)
flags.DEFINE_string("experiment_dir", None, "Folder of all experiments.", required=True)
flags.DEFINE_string("experiment_name", None, "This experiment's folder in it.", required=True)
flags.DEFINE_integer("max_global_steps", None, "Stop before the workload's budget.", lower_bound=1)
flags.DEFINE_enum("hardware_profile", None, [*budgets.BUDGETS], "Time budget of an official workload, on this machine.")
flags.DEFINE_integer("batch_size", None, "Training batch size, in place of the submission's own.", lower_bound=1)
flags.DEFINE_integer("eval_batch_size", None, "Evaluation batch size, in place of the workload's.", lower_bound=1)
flags.DEFINE_enum(
    "matmul_precision",
    str(MatmulPrecision.DEFAULT),
    [str(precision) for precision in MatmulPrecision],
    "Of float32 matrix products; default is the device's: TF32 on NVIDIA GPUs since Ampere, float32 elsewhere.",
)
flags.DEFINE_boolean("resume", False, "Continue an experiment of this name, from its newest checkpoints.")
flags.DEFINE_integer(
    "checkpoints_to_keep", 2, "Checkpoints kept of each trial; every evaluation makes one. 0 for none.", lower_bound=0
)
flags.DEFINE_integer(
    "checkpoint_period_s",
    600,
    "Wall seconds after which a checkpoint is made between two evaluations, too; 0 for never.",
    0,
)
flags.DEFINE_boolean("overwrite", False, "Remove an experiment of this name first.")
flags.DEFINE_string("profile", None, "FIRST:LAST, the steps that JAX's profiler traces; it costs time.")
flags.DEFINE_boolean("tensorboard", False, "Write the measurements as TensorBoard's scalars, too.")
flags.DEFINE_string("wandb_project", None, "Show the measurements in this project of Weights & Biases, too.")
_REQUEST = (*flags.FLAGS.get_key_flags_for_module(__name__),)
flags.DEFINE_string(
    "coordinator_address",
    None,
    "host:port of the first of several processes that train together; srun and mpirun tell.",
)
flags.DEFINE_integer("num_processes", None, "How many they are.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.", lower_bound=0)


def main(chosen: dict[str, Any]) -> None:
    names = {flag.name for flag in _REQUEST} | {"data_dir", "rng_seed"}
    request = experiment.Request(**{name: chosen[name] for name in names})
    with Interruption() as interruption:
        together = processes.join(chosen["coordinator_address"], chosen["num_processes"], chosen["process_id"])
        outcomes = experiment.run_experiment(request, interruption, together)
    if together.is_first:
        progress.print_outcomes(outcomes)


command.run(__name__, main)
