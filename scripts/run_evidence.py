"""Compares submissions by the protocol of docs/evidence.md, and writes its tables. Run again, it continues.

    python scripts/run_evidence.py --workloads=b3db,mnist_vit --experiment_dir=experiments/evidence

A reduced run: --num_tuning_trials=4 --num_confirmed=1 --num_seeds=2 --submissions=nadamw,kfac_reduce.
"""

import sys
from pathlib import Path
from typing import Any

import command
from absl import flags

from tuning import disk, evidence, submission, supervised_command
from tuning.report import archive, files

_REFERENCES = ["nesterov", "nadamw"]
_CURVATURE = ["kfac_expand", "kfac_reduce", "kfac_muon_expand", "kfac_muon_reduce"]

flags.DEFINE_list("workloads", ["b3db", "mnist_vit", "pydoc_lm"], "Names of the workloads.")
flags.DEFINE_list(
    "submissions", [*_REFERENCES, *_CURVATURE, "soap", "muon", "schedule_free_adamw"], "Folders under submissions/."
)
flags.DEFINE_list("references", _REFERENCES, "First-order submissions; ratios are to the best of their rows.")
flags.DEFINE_integer("num_tuning_trials", 20, "Random points of each submission.", lower_bound=1)
flags.DEFINE_integer(
    "num_confirmed",
    3,
    "Number of best configurations per submission that are run again on a second seed, before one is chosen.",
    lower_bound=1,
)
flags.DEFINE_integer("num_seeds", 10, "Timed repetitions of the best point, each on a seed of its own.", lower_bound=1)
flags.DEFINE_integer("workers", 2, "Processes of a search, which share the cores.", lower_bound=1)
flags.DEFINE_integer("max_global_steps", None, "Stop trials before the workload's budget.", lower_bound=1)
flags.DEFINE_string(
    "targets", "results/targets", "Folder of the target files, whose configurations are timed, too; empty for none."
)
flags.DEFINE_string("experiment_dir", "experiments/evidence", "Where the trials go; finished ones are used again.")
flags.DEFINE_string("out", "results/evidence", "Where the archives of the trials go, and the report made from them.")
# Targets were set and settings explored with smaller seeds.
flags.FLAGS.set_default("rng_seed", 2000)


def main(values: dict[str, Any]) -> None:
    folder, out = (disk.expanded(values[flag], flag) for flag in ("experiment_dir", "out"))
    trial_flags = [f"--data_dir={values['data_dir']}"]
    trial_flags += [f"--max_global_steps={values['max_global_steps']}"] if values["max_global_steps"] else []
    archives = []
    for workload in values["workloads"]:
        protocol = evidence.Protocol(
            workload=workload,
            submissions=tuple(map(submission.submission_path, values["submissions"])),
            folder=folder,
            n_points=values["num_tuning_trials"],
            n_confirmed=values["num_confirmed"],
            n_seeds=values["num_seeds"],
            seed=values["rng_seed"],
            workers=values["workers"],
            targets=disk.expanded(values["targets"], "targets") if values["targets"] else None,
            flags=tuple(trial_flags),
            search_flags=(f"--compilation_cache_dir={flags.FLAGS['compilation_cache_dir'].value}",),
        )
        evidence.carry_out(protocol, supervised_command.run)
        archives.append(out / f"{workload}{files.ARCHIVE_ENDING}")
        archive.pack([folder / workload], archives[-1])
    report = Path(__file__).with_name("report.py")
    references = f"--references={','.join(values['references'])}"
    supervised_command.run([sys.executable, str(report), *map(str, archives), f"--out={out}", references])


command.run(__name__, main)
