"""Sweeps a submission's search space on one workload, with any number of workers and machines.

    python scripts/run_sweep.py --workload=b3db --submission_path=submissions/kfac_reduce \
        --num_tuning_trials=20 --workers=2 --experiment_dir=experiments --experiment_name=sweep

Run again, it continues. With --show it only prints the ranking; this needs only the experiment's folder and name.
"""

import functools
import sys
from dataclasses import fields
from typing import Any

import command
import trial_flags
from absl import flags

from tuning import launch, point_status, pruning, slurm, sweep, sweep_view, worker
from tuning.errors import UserError
from tuning.interruption import RUN_AGAIN, Interruption
from tuning.report.protocols import Cost

flags.adopt_module_key_flags(trial_flags)
flags.DEFINE_integer("num_tuning_trials", 5, "Points of each study.", lower_bound=1)
flags.DEFINE_integer("num_studies", 1, "Studies, each with points and a seed of its own.", lower_bound=1)
flags.DEFINE_enum("sampling", "random", ["random", "halton", "sobol"], "How points are drawn from ranges.")
flags.DEFINE_string("storage", None, "postgresql://… for several machines; an SQLite file in the folder if not given.")
flags.DEFINE_integer(
    "checkpoints_to_keep", 2, "Checkpoints kept of each trial; every evaluation makes one.", lower_bound=1
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
    "best: stop a trial once it has used as many steps as the best one needed for the target. "
    "median: stop it if its best metric so far is worse than the finished trials' median at the same evaluation. "
    "Neither is allowed in official scores.",
)
flags.DEFINE_integer("workers", 1, "Worker processes on this machine.", lower_bound=1)
flags.DEFINE_integer(
    "devices_per_trial",
    1,
    "Number of CUDA devices per worker. On a machine without CUDA devices the workers share the CPU cores.",
)
flags.DEFINE_enum("launcher", "processes", ["processes", "slurm"], "Where the workers run: here, or as a Slurm array.")
flags.DEFINE_multi_string(
    "slurm_option",
    [],
    "NAME=VALUE, an option of sbatch for --launcher=slurm, as --slurm_option=partition=gpu. May be given repeatedly.",
)
flags.DEFINE_bool("retry_crashed", False, "Carry out again the trials that crashed, from their last checkpoints.")
flags.DEFINE_enum("rank_by", Cost.STEPS, [*Cost], "Cost that orders the ranking; `seconds` include compilation.")
flags.DEFINE_bool("show", False, "Only print the ranking.")
flags.DEFINE_bool("json", False, "Print JSON: the ranking, or while the sweep runs one object per line.")
flags.DEFINE_bool("worker", False, "Be one worker without supervision, for a launcher of your own.")


def main(values: dict[str, Any]) -> None:
    request = sweep.Request(**{field.name: values[field.name] for field in fields(sweep.Request)})
    if values["show"]:
        status = point_status.stored(request.storage_location, request.experiment_folder.name)
        return sweep_view.show(status, as_json=values["json"], rank_by=Cost(values["rank_by"]))
    for name in ("workload", "submission_path"):
        if not values[name]:
            raise UserError(f"flag --{name} must have a value, except with --show (--help lists the flags)")
    with (
        Interruption(RUN_AGAIN) as interruption,
        interruption.interruptible(),
    ):  # a signal ends the wait for the storage
        this_sweep = sweep.Sweep(request)
    if values["worker"]:
        return worker.Worker(this_sweep).work()
    if values["retry_crashed"]:
        print(f"{this_sweep.retry_crashed()} crashed trials are carried out again", file=sys.stderr, flush=True)
    start = launch.supervise
    if values["launcher"] == "slurm":
        start = functools.partial(slurm.submit, options=_options(values["slurm_option"]))
    with sweep_view.View(as_json=values["json"]) as show:
        start([*sys.argv, "--worker"], this_sweep, values["workers"], values["devices_per_trial"], show)
    sweep_view.show(this_sweep.status(), as_json=values["json"], rank_by=Cost(values["rank_by"]))


def _options(words: list[str]) -> dict[str, str]:
    if malformed := [word for word in words if "=" not in word]:
        raise UserError(f"--slurm_option={malformed[0]} is no name=value: write --slurm_option=partition=gpu")
    return dict(word.lstrip("-").split("=", 1) for word in words)


command.run(__name__, main)
