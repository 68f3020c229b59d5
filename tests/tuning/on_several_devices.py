"""Twenty steps and two evaluations of small models of both families, on the devices of one process or of several.

    python tests/tuning/on_several_devices.py OUT SUBMISSION... [--process=0 --processes=2 --port=12345]

Saves the losses, the parameters and the evaluations to OUT. With JAX_ENABLE_X64 everything is float64.
`test_several_devices.py` runs this.
"""

import argparse
import dataclasses
import importlib
import sys
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before an installed one

from submissions.algoperf import contract
from tests.submissions.fake_workload import Trial
from tests.workloads.graph_samples import random_graphs
from tuning import processes
from workloads.evaluation import Predictor
from workloads.graphs.model import GraphNetworkModel
from workloads.graphs.workload import GraphWorkload
from workloads.images.memory import LabelledImages
from workloads.images.vit import ViT
from workloads.images.workload import ImageWorkload
from workloads.spec import Budget, SplitSizes, Target

N_STEPS, BATCH_SIZE = 20, 16
KEY = np.zeros(2, np.uint32)


def real(tree):
    """The floating-point leaves in the precision of this run."""
    return jax.tree.map(
        lambda x: x.astype(jnp.result_type(float)) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


class Small:
    """What both workloads share; initial parameters are moved by N(0, 0.1²), so that no layer starts at zero."""

    budget = Budget(step_hint=100, max_allowed_runtime_s=1000, eval_period_s=1000)
    eval_batch_size = 8

    def init_model_fn(self, rng):
        params, state = super().init_model_fn(rng)
        noise = np.random.default_rng(1)
        return real(jax.tree.map(lambda x: x + jnp.asarray(0.1 * noise.normal(size=x.shape)), params)), state


class Graphs(Small, GraphWorkload):
    """A third of the labels is missing, so that the devices' shares have different numbers of them."""

    model = GraphNetworkModel(num_outputs=3, latent_dim=8, hidden_dims=(8,), num_message_passing_steps=2)
    sub_batches = 2
    validation_target = test_target = Target("mean_average_precision", 1.0)
    split_sizes = SplitSizes(train=30, eval_train=20, validation=30, test=30)

    def _load(self, data_dir):
        return dataclasses.replace(random_graphs(90), split_codes=np.arange(90, dtype=np.uint8) % 3)


class Images(Small, ImageWorkload):
    model = ViT(num_classes=4, patch_size=(4, 4), width=16, depth=1, mlp_dim=16, num_heads=2)
    image_shape = (8, 8, 1)
    pixel_mean, pixel_stddev = 0.5, 0.3
    validation_target = test_target = Target("accuracy", 1.0)
    split_sizes = SplitSizes(train=30, eval_train=20, validation=30, test=30)

    def _load_splits(self, data_dir):
        rng = np.random.default_rng(2)
        return {
            name: LabelledImages(
                rng.integers(0, 256, (30, *self.image_shape)).astype(np.uint8),
                rng.integers(0, 4, 30).astype(np.int32),
                n_classes=4,
            )
            for name in ("train", "validation", "test")
        }


def evaluation(workload, params, step):
    found = workload.eval_model(workload.eval_batch_size, params, None, KEY, None, None, step)
    return {f"{name} at {step}": np.array(value) for name, value in found.items()}


def flops_of_an_evaluation(workload) -> float:
    """Those of one device for one batch, as the compiler counts them."""
    params, model_state = workload.init_model_fn(KEY)
    batch = next(iter(workload._evaluation_batches("validation", None, workload.eval_batch_size)))
    compiled = Predictor(workload)._forward.lower(params, batch, model_state).compile()
    return compiled.cost_analysis()["flops"]


def trajectory(name: str, workload) -> dict[str, np.ndarray]:
    module = importlib.import_module(f"submissions.{name}.submission")
    values = {"learning_rate": 1e-3, "warmup_factor": 0.0}
    # Nothing is drawn at random: other devices pack graphs otherwise, and so draw for others.
    if name.startswith("kfac"):
        values |= {"damping": 1e-2, "refresh_share": 0.25, "rows_per_width": 0}
        values |= {} if "muon" in name else {"fisher": "exact"}
    trial = Trial(module, workload, namedtuple("Hyperparameters", values)(**values))
    found = evaluation(workload, trial.params, 0)
    trial.optimizer_state = real(trial.optimizer_state[0]), trial.optimizer_state[1]
    queue = workload._build_input_queue(KEY, "train", None, BATCH_SIZE)
    for step in range(N_STEPS):
        trial.step(step, next(queue))
    assert all(x.dtype != jnp.float32 for x in jax.tree.leaves(trial.params)) == jax.config.jax_enable_x64
    found |= evaluation(workload, trial.params, N_STEPS)
    found["losses"] = np.array([trial.recorder.logged[step]["loss"] for step in range(N_STEPS)])
    found |= {f"parameter {i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(trial.params))}
    return {f"{name}, {type(workload).__name__}, {key}": value for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("submissions", nargs="+")
    for flag in ("process", "processes", "port"):
        parser.add_argument(f"--{flag}", type=int)
    given = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # every program here runs a few times only
    contract.LOG_PERIOD = 1
    address = None if given.port is None else f"127.0.0.1:{given.port}"
    together = processes.join(address, given.processes, given.process)
    found = {}
    for workload in (Graphs(), Images()):
        for name in given.submissions:
            found |= trajectory(name, workload)
    counts = {"n_devices": jax.device_count(), "n_processes": jax.process_count()}
    if together.count == 1:
        counts["evaluation_flops"] = flops_of_an_evaluation(Images())
    if together.is_first:
        np.savez(given.out, **counts, **found)


if __name__ == "__main__":
    main()
