"""Flags that run_trial.py and run_sweep.py define alike, fields of `tuning.trials_request.TrialsRequest`."""

from absl import flags

from tuning.description import MatmulPrecision
from tuning.ruleset import TuningRuleset
from workloads import budgets

flags.DEFINE_string("workload", None, "Name of the workload.")
flags.DEFINE_string("submission_path", None, "Folder with submission.py, or the file.")
flags.DEFINE_string("experiment_dir", None, "Folder of all experiments.", required=True)
flags.DEFINE_string("experiment_name", None, "This experiment's folder in it.", required=True)
flags.DEFINE_enum(
    "tuning_ruleset",
    str(TuningRuleset.EXTERNAL),
    [str(ruleset) for ruleset in TuningRuleset],
    "external: hyperparameters are drawn from a search space. "
    "self: the submission's own hyperparameters, with 1.5 times the budget.",
)
flags.DEFINE_string("tuning_search_space", None, "JSON file; the submission's own if not given.")
flags.DEFINE_integer("max_global_steps", None, "Step budget of a trial, if smaller than the workload's.", lower_bound=1)
flags.DEFINE_enum(
    "hardware_profile",
    None,
    [*budgets.BUDGETS],
    "Hardware whose official step and time budget replaces the workload's (v100x8: eight V100, a100x4: four A100).",
)
flags.DEFINE_integer("batch_size", None, "Training batch size, in place of the submission's own.", lower_bound=1)
flags.DEFINE_integer("eval_batch_size", None, "Evaluation batch size, in place of the workload's.", lower_bound=1)
flags.DEFINE_enum(
    "matmul_precision",
    str(MatmulPrecision.DEFAULT),
    [str(precision) for precision in MatmulPrecision],
    "Precision of float32 matrix products. default: TF32 on NVIDIA GPUs since Ampere, float32 elsewhere.",
)
flags.DEFINE_boolean(
    "stop_at_target", True, "End a trial that reaches the target; --nostop_at_target trains to the end of the budget."
)
flags.DEFINE_integer(
    "checkpoint_period_s",
    600,
    "Also save a checkpoint when this many seconds have passed since the last one; 0: only at evaluations.",
    0,
)
flags.DEFINE_boolean("tensorboard", False, "Write the measurements as TensorBoard's scalars, too.")
flags.DEFINE_string("wandb_project", None, "Show the measurements in this project of Weights & Biases, too.")
