"""Times update steps and their parts side by side, and writes tables.

python scripts/bench_step.py --tables=steps --workloads=mnist_vit,b3db --submissions=nadamw,kfac_reduce,soap
python scripts/bench_step.py --suite=gpu --minutes=8
"""

from typing import Any

import command
import jax
from absl import flags

from benchmarks import tables
from benchmarks.timing import Deadline
from tuning import disk


def _is_positive(number: str) -> bool:
    return number.isdecimal() and int(number) > 0


_SUBMISSIONS = ["nadamw", "kfac_muon_reduce", "kfac_muon_expand", "kfac_reduce", "kfac_expand", "soap", "muon"]

flags.DEFINE_list("tables", ["steps", "flavours", "orthogonalisation"], f"Tables, of {', '.join(tables.NAMES)}.")
flags.DEFINE_list("workloads", ["mnist_vit", "b3db"], "Workloads of the steps, operations and scaling tables.")
flags.DEFINE_list("submissions", _SUBMISSIONS, "Folders under submissions/; ratios are to the first.")
flags.DEFINE_integer(
    "batch_size",
    None,
    "Batch size for the steps, operations and scaling tables; by default the first submission's.",
    lower_bound=1,
)
flags.DEFINE_bool("synthetic", False, "Time the steps table on random batches, which need no data set.")
flags.DEFINE_list(
    "batch_sizes",
    ["16", "32", "64"],
    "Batch sizes of the Wide ResNet in the flavours table; the paper uses 128,256,512,1024,2048.",
)
flags.DEFINE_list(
    "widths", ["128", "256", "512", "1024", "2048"], "Layer widths in the tables orthogonalisation and kfac_jax."
)
flags.DEFINE_integer("num_rounds", 7, "Number of timing rounds; the tables show their median.", lower_bound=1)
flags.DEFINE_enum(
    "suite",
    None,
    ["gpu"],
    "gpu: time the full-size models at full batch size on random data, then other tables. Replaces --tables, "
    "--workloads, --batch_size, --batch_sizes and --synthetic.",
)
flags.DEFINE_float(
    "minutes", None, "Start no measurement after so many minutes; finished ones are kept.", lower_bound=0.1
)
flags.DEFINE_string("out", "results/bench", "Folder of the tables.")
for name in ("batch_sizes", "widths"):
    flags.register_validator(name, lambda values: all(map(_is_positive, values)), "must be positive numbers, as 16,32")
flags.register_validator("tables", set(tables.NAMES).issuperset, f"must be of {','.join(tables.NAMES)}")


def main(values: dict[str, Any]) -> None:
    jax.config.update("jax_enable_compilation_cache", False)  # seconds of compilation are measured, too
    options = tables.Options(
        workloads=values["workloads"],
        submissions=values["submissions"],
        batch_size=values["batch_size"],
        synthetic=values["synthetic"],
        batch_sizes=[int(size) for size in values["batch_sizes"]],
        widths=[int(width) for width in values["widths"]],
        n_rounds=values["num_rounds"],
        deadline=Deadline(values["minutes"]),
        seed=values["rng_seed"],
        data_dir=values["data_dir"],
        out=disk.expanded(values["out"], "out"),
    )
    if values["suite"] == "gpu":
        tables.write_gpu_suite(options, print)
        return
    for name in values["tables"]:
        has_time = not options.deadline.has_passed
        print(tables.write(name, options) if has_time else options.deadline.not_run([name]))


command.run(__name__, main)
