"""The official runner's part, written from its public contract: what it calls, how, in which order and with what keys.

Source of the contract: mlcommons/algorithmic-efficiency, `submission_runner.py` and `checkpoint_utils.py`, v0.6.
"""

import inspect
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.serialization
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any


class MetricsLogger:
    """Keeps what a submission logs: step -> scalars."""

    def __init__(self):
        self.logged: dict[int, dict[str, float]] = {}

    def append_scalar_metrics(
        self, metrics: dict, global_step: int, preemption_count: int | None = None, is_eval: bool = False
    ) -> None:
        self.logged.setdefault(global_step, {}).update(metrics)


class Run:
    """One run of a submission on a workload.

    Args:
        submission: a module with the contract's functions.
        workload: one of `workloads`.
        hyperparameters: a namedtuple, or None under the self-tuning ruleset.
        seed: of parameters, batches and keys.

    Attributes:
        losses: what the submission logged, step by step.
        params, model_state, optimizer_state: as they are now.
    """

    def __init__(self, submission: Any, workload: Any, hyperparameters: Any, seed: int = 0):
        self._submission, self._workload, self._hyperparameters = submission, workload, hyperparameters
        key, _ = jax.random.split(jax.random.PRNGKey(seed), 2)
        data_key, init_key, model_key, self._key = jax.random.split(key, 4)
        self._queue_key = data_key
        self.global_step = 0
        self._train_state = {"accumulated_submission_time": 0.0, "last_eval_time": 0}
        self.logger = MetricsLogger()
        self.params, self.model_state = workload.init_model_fn(model_key)
        self.optimizer_state = submission.init_optimizer_state(
            workload, self.params, self.model_state, hyperparameters, init_key
        )
        workload.attach_metrics_logger(self.logger)

    def _queue(self):
        """The batches from the present step on, over all devices along their first axis."""
        sharding = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch"))
        step = self.global_step
        while True:
            batch = self._workload.batch(np.random.default_rng([*np.asarray(self._queue_key).tolist(), step % 4]))
            yield jax.device_put(batch, sharding)
            step += 1

    def train(self, n_steps: int, evaluate_every: int = 0) -> "Run":
        """Steps, and preparations for evaluation in between; the submission logs its loss at every one of them."""
        submission, workload, h = self._submission, self._workload, self._hyperparameters
        workload.attach_metrics_logger(self.logger)
        needs_train_state = "train_state" in inspect.signature(submission.update_params).parameters
        queue = self._queue()
        for _ in range(n_steps):
            step_key = jax.random.fold_in(self._key, self.global_step)
            select_key, update_key, prepare_key, _ = jax.random.split(step_key, 4)
            batch = submission.data_selection(
                workload, queue, self.optimizer_state, self.params, self.model_state, h, self.global_step, select_key
            )
            extra = {"train_state": MappingProxyType(self._train_state)} if needs_train_state else {}
            self.optimizer_state, self.params, self.model_state = submission.update_params(
                batch=batch, **self._common(update_key), **extra
            )
            self.global_step += 1
            if evaluate_every and self.global_step % evaluate_every == 0:
                self.optimizer_state, self.params, self.model_state = submission.prepare_for_eval(
                    **self._common(prepare_key)
                )
        return self

    def _common(self, key: jax.Array) -> dict[str, Any]:
        return {
            "workload": self._workload,
            "current_param_container": self.params,
            "current_params_types": self._workload.model_params_types,
            "model_state": self.model_state,
            "hyperparameters": self._hyperparameters,
            "loss_type": self._workload.loss_type,
            "optimizer_state": self.optimizer_state,
            "eval_results": [],
            "global_step": self.global_step,
            "rng": key,
        }

    @property
    def _trees(self) -> dict[str, PyTree]:
        return {
            "model_params": self.params,
            "optimizer_state": self.optimizer_state[0],
            "model_state": self.model_state,
        }

    def save(self, file: Path) -> None:
        file.write_bytes(flax.serialization.to_bytes(self._trees | {"global_step": self.global_step}))

    def restore(self, file: Path) -> "Run":
        """Into this fresh run: the function stays, and every array comes back once per device, on a leading axis."""
        template = self._trees | {"global_step": 0}
        restored = flax.serialization.from_bytes(template, file.read_bytes())
        self.global_step = restored.pop("global_step")
        devices = jax.devices()
        sharding = NamedSharding(Mesh(np.array(devices), ("devices",)), PartitionSpec("devices"))
        copies = jax.tree.map(lambda x: jax.device_put(np.stack([np.asarray(x)] * len(devices)), sharding), restored)
        self.params, self.model_state = copies["model_params"], copies["model_state"]
        self.optimizer_state = copies["optimizer_state"], self.optimizer_state[1]
        return self
