"""Losses and parameters of twenty steps on small models of given kinds, in the environment that runs this.

    python tests/harness/trajectory.py OUT SUBMISSION KIND... [--stop_at=10] [--restore=FOLDER]

`JAX_ENABLE_X64` makes everything float64. With `--stop_at` it saves to OUT and ends, as a killed run would leave it;
`--restore` goes on from there.
"""

import argparse
import importlib
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before an installed one

from submissions.algoperf import contract
from tests.harness.runner import Run
from tests.harness.workloads import KINDS

N_STEPS = 20
# Without dropout, whose keys are the libraries' own matter.
POINT = {
    "learning_rate": 5e-4,  # larger ones let rounding grow beyond the tolerance where the loss is CTC
    "damping": 1e-2,
    "refresh_share": 0.25,  # steps with factors and steps without
    "warmup_factor": 0.0,
    "dropout_rate": 0.0,
}


def trajectory(
    submission: str,
    kind: str,
    dtype: Any,
    stop_at: int | None = None,
    save: Path | None = None,
    restore: Path | None = None,
):
    """-> {"loss": `[n_steps]`, path of a parameter: its values after the last step}, from `restore` or the start."""
    module = importlib.import_module(f"submissions.{submission}.submission")
    point = namedtuple("Hyperparameters", POINT)(**POINT)
    run = Run(module, KINDS[kind](dtype), point)
    if restore:
        run.restore(restore)
    run.train((stop_at or N_STEPS) - run.global_step, evaluate_every=5)
    if save:
        run.save(save)
    losses = [
        run.logger.logged[step]["loss"] for step in sorted(run.logger.logged) if "loss" in run.logger.logged[step]
    ]
    params = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(run.params)}
    return {"loss": np.array(losses)} | params


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("submission")
    parser.add_argument("kinds", nargs="+")
    parser.add_argument("--stop_at", type=int)
    parser.add_argument("--restore", type=Path)
    flags = parser.parse_args()
    contract.LOG_PERIOD = 1
    jax.config.update("jax_disable_most_optimizations", True)
    dtype = np.float64 if jax.config.read("jax_enable_x64") else np.float32
    flags.out.mkdir(parents=True)
    for kind in flags.kinds:
        save = flags.out / f"{kind}.checkpoint" if flags.stop_at else None
        restore = flags.restore / f"{kind}.checkpoint" if flags.restore else None
        arrays = trajectory(flags.submission, kind, dtype, flags.stop_at, save, restore)
        np.savez(flags.out / f"{kind}.npz", **arrays)
    print(f"jax {jax.__version__}, {len(jax.devices())} devices")


if __name__ == "__main__":
    main()
