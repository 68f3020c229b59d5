"""Sweeps a submission's search space on one workload, over as many workers and machines as join in.

    python scripts/run_sweep.py --workload=b3db --submission_path=submissions/kfac_reduce \
        --num_tuning_trials=20 --workers=2 --experiment_dir=experiments --experiment_name=sweep

Run again, it continues; with --show it only prints the ranking, for which the experiment's folder and name will do.
"""

import functools
import sys
from typing import Any

import command
from absl import flags

from tuning import launch, point_status, pruning, slurm, sweep, sweep_view, worker
from tuning.errors import UserError
from tuning.interruption import RUN_AGAIN, Interruption
from tuning.report.protocols import Cost
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
    "AlgoPerf's: points of a search space, or the submission's own setting and 1.5 times the budget.",
)
flags.DEFINE_string("tuning_search_space", None, "JSON file; the submission's own if not given.")
flags.DEFINE_integer("num_tuning_trials", 5, "Points of each study.", lower_bound=1)
flags.DEFINE_integer("num_studies", 1, "Studies, each with points and a seed of its own.", lower_bound=1)
flags.DEFINE_enum("sampling", "random", ["random", "halton", "sobol"], "How points are drawn from ranges.")
flags.DEFINE_string("storage", None, "postgresql://… for several machines; an SQLite file in the folder if not given.")
flags.DEFINE_integer("max_global_steps", None, "Stop before the workload's budget.", lower_bound=1)
flags.DEFINE_enum("hardware_profile", None, [*budgets.BUDGETS], "Time budget of an official workload, on this machine.")
flags.DEFINE_integer("batch_size", None, "Training batch size, in place of the submission's own.", lower_bound=1)
flags.DEFINE_integer("eval_batch_size", None, "Evaluation batch size, in place of the workload's.", lower_bound=1)
flags.DEFINE_integer(
    "checkpoints_to_keep", 2, "Checkpoints kept of each trial; every evaluation makes one.", lower_bound=1
)
flags.DEFINE_integer(
    "checkpoint_period_s",
    600,
    "Wall seconds after which a checkpoint is made between two evaluations, too; 0: never.",
    0,
)
flags.DEFINE_integer(
    "max_retries", 3, "How often a trial is retried after its worker died or its machine failed.", lower_bound=0
)
flags.DEFINE_integer(
    "heartbeat_s",
    20,
    "Seconds between a worker's heartbeats; after three missed ones it counts as dead.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "prune",
    "none",
    [*pruning.Pruning],
    "Stop a trial when it is past the best one's steps, or behind the median; not for official scores.",
)
_REQUEST = (*flags.FLAGS.get_key_flags_for_module(__name__),)
flags.DEFINE_integer("workers", 1, "Worker processes on this machine.", lower_bound=1)
flags.DEFINE_integer("devices_per_trial", 1, "CUDA devices of each worker; without any, the cores are divided.")
flags.DEFINE_enum("launcher", "processes", ["processes", "slurm"], "Where the workers run: here, or as a Slurm array.")
flags.DEFINE_multi_string(
    "slurm_option", [], "sbatch's, as --slurm_option=partition=gpu --slurm_option=time=12:00:00, for --launcher=slurm."
)
flags.DEFINE_bool("retry_crashed", False, "Carry out again the trials that crashed, from their last checkpoints.")
flags.DEFINE_enum("rank_by", Cost.STEPS, [*Cost], "Cost that orders the ranking; `seconds` include compilation.")
flags.DEFINE_bool("show", False, "Only print the ranking.")
flags.DEFINE_bool("json", False, "Print JSON: the ranking, or while the sweep runs one object per line.")
flags.DEFINE_bool("worker", False, "Be one worker without supervision, for a launcher of your own.")


def main(chosen: dict[str, Any]) -> None:
    names = {flag.name for flag in _REQUEST} | {"data_dir", "rng_seed"}
    request = sweep.Request(**{name: chosen[name] for name in names})
    if chosen["show"]:
        stored = point_status.stored(request.place, request.experiment_folder.name)
        return sweep_view.show(stored, as_json=chosen["json"], rank_by=Cost(chosen["rank_by"]))
    for name in ("workload", "submission_path"):
        if not chosen[name]:
            raise UserError(f"flag --{name} must have a value, except with --show (--help lists the flags)")
    with Interruption(RUN_AGAIN) as interruption, interruption.ends_at_once():  # the storage may let one wait
        shared = sweep.Sweep(request)
    if chosen["worker"]:
        return worker.Worker(shared).work()
    if chosen["retry_crashed"]:
        print(f"{shared.retry_crashed()} crashed trials are carried out again", flush=True)
    start = launch.supervise
    if chosen["launcher"] == "slurm":
        start = functools.partial(slurm.submit, options=_options(chosen["slurm_option"]))
    with sweep_view.View(as_json=chosen["json"]) as show:
        start([*sys.argv, "--worker"], shared, chosen["workers"], chosen["devices_per_trial"], show)
    sweep_view.show(shared.status(), as_json=chosen["json"], rank_by=Cost(chosen["rank_by"]))


def _options(words: list[str]) -> dict[str, str]:
    if bad := [word for word in words if "=" not in word]:
        raise UserError(f"--slurm_option={bad[0]} is no name=value: write --slurm_option=partition=gpu")
    return dict(word.lstrip("-").split("=", 1) for word in words)


command.run(__name__, main)
