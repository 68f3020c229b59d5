"""A trial of 2,000 steps and 50 evaluations of a small model; prints the memory after every evaluation.

    python tests/tuning/memory_of_a_trial.py FOLDER

A line: the bytes of this process on the host, and of all living arrays on the device. `test_memory.py` runs this.
Files that are mapped into the process, such as libraries, do not count: the system drops and reads their pages at will.
"""

import gc
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before an installed one

from tests.tuning.on_several_devices import Images
from tuning import submission
from tuning.claim import Claim
from tuning.description import describe
from tuning.trial import run_trial
from workloads.spec import Budget, Target

N_STEPS, N_EVALUATIONS = 2000, 50


class Endless(Images):
    validation_target = test_target = Target("accuracy", float("inf"))
    budget = Budget(N_STEPS, 10_000, 10_000, eval_period_steps=N_STEPS // N_EVALUATIONS)


def on_host() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(1024 * int(status[name].removesuffix("kB")) for name in ("RssAnon", "VmSwap"))


def main() -> None:
    chosen = submission.load("submissions/kfac_reduce").with_batch_sizes(16, 8)
    point = {"learning_rate": 1e-3, "damping": 1e-2}
    described = dict(rng_seed=0, trial_index=1, data_dir=sys.argv[1])
    seen = [0]

    def report(progress) -> None:
        if progress.n_evaluations > seen[0]:
            seen[0] = progress.n_evaluations
            gc.collect()
            on_device = sum(array.nbytes for array in jax.live_arrays())
            print(on_host(), on_device, flush=True)

    workload = Endless()
    description = describe("mnist_vit", workload, chosen, point, **described)
    with Claim.take(Path(sys.argv[1]) / "trial") as claim:
        run_trial(description, workload, chosen, claim, report=report, checkpoints_to_keep=2)


if __name__ == "__main__":
    main()
