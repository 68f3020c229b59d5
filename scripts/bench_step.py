"""Times whole update steps of submissions side by side, against the first one named.

python scripts/bench_step.py --workloads=mnist_vit,b3db --submissions=nadamw,kfac_reduce,soap
"""

from pathlib import Path
from typing import Any

import command
from absl import flags

from tuning import bench, records
from tuning.submission import load

_SUBMISSIONS = ["nadamw", "kfac_reduce", "kfac_expand", "ekfac_adam_reduce", "ekfac_adam_expand", "soap"]

flags.DEFINE_list("workloads", ["mnist_vit", "b3db"], "Names of the workloads.")
flags.DEFINE_list("submissions", _SUBMISSIONS, "Folders under submissions/.")
flags.DEFINE_integer("num_blocks", 15, "Timed blocks of each submission.", lower_bound=1)
flags.DEFINE_integer("block_steps", 20, "Steps of a block: a multiple of every refresh period.", lower_bound=1)
flags.DEFINE_string("out", "results/bench_step.md", "Where the tables go.")


def main(chosen: dict[str, Any]) -> None:
    submissions = [load(f"submissions/{name}") for name in chosen["submissions"]]
    text = bench.report(
        chosen["workloads"],
        submissions,
        num_blocks=chosen["num_blocks"],
        block_steps=chosen["block_steps"],
        seed=chosen["rng_seed"],
        data_dir=chosen["data_dir"],
    )
    records.write_text(Path(chosen["out"]), text)
    print(text)


command.run(__name__, main)
