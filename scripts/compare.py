"""Compares submissions by steps and seconds to target: random points each, the best one again on fresh seeds.

python scripts/compare.py --workloads=b3db,mnist_vit --experiment_dir=experiments/comparison --out=results/comparison
"""

from pathlib import Path
from typing import Any

import command
from absl import flags

from tuning import comparison, records

_REFERENCES = ["nesterov", "nadamw"]
_CURVATURE = ["kfac_expand", "kfac_reduce", "ekfac_adam_expand", "ekfac_adam_reduce"]
_OTHERS = [*_CURVATURE, "soap", "muon", "schedule_free_adamw"]

flags.DEFINE_list("workloads", ["b3db", "mnist_vit"], "Names of the workloads.")
flags.DEFINE_list("submissions", [*_REFERENCES, *_OTHERS], "Folders under submissions/.")
flags.DEFINE_list("references", _REFERENCES, "The first-order ones; ratios are to the better of them.")
flags.DEFINE_integer("num_tuning_trials", 10, "Random points of each submission.", lower_bound=1)
flags.DEFINE_integer("num_seeds", 3, "Repetitions of the best point, on seeds after --rng_seed.", lower_bound=1)
flags.DEFINE_string("experiment_dir", None, "Where the trials go; finished ones are used again.", required=True)
flags.DEFINE_string("out", "results/comparison", "Where tables and trials go, a pair of files a workload.")


def main(chosen: dict[str, Any]) -> None:
    seed, out = chosen["rng_seed"], Path(chosen["out"])
    protocol = comparison.Protocol(
        n_points=chosen["num_tuning_trials"],
        seeds=tuple(range(seed + 1, seed + 1 + chosen["num_seeds"])),
        search_seed=seed,
        folder=Path(chosen["experiment_dir"]),
        data_dir=chosen["data_dir"],
    )
    for workload in chosen["workloads"]:
        paths = [f"submissions/{name}" for name in chosen["submissions"]]
        results = comparison.search_and_repeat(workload, paths, protocol, comparison.fewest_steps)
        records.write_text(out / f"{workload}.csv", comparison.trials_csv(results))
        text = comparison.report(workload, results, chosen["references"])
        records.write_text(out / f"{workload}.md", text)
        print(text)


command.run(__name__, main)
