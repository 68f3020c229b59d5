"""A model's outputs over a whole split, gathered on the host."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from workloads import shards
from workloads.spec import ForwardPassMode, Workload


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The rows of all batches of a split, in order, including padding rows, whose weights are 0."""

    logits: np.ndarray  # [rows, *positions, outputs] float32
    targets: np.ndarray  # [rows, outputs] float32, or class indices [rows, *positions] int32
    weights: np.ndarray  # [rows], [rows, *positions] or [rows, outputs] float32
    mean_loss: float  # summed loss / number of loss terms; NaN where no weight is above zero


class Predictor:
    """Runs one workload's forward pass in EVAL mode. It is compiled once per batch shape, and shared by all splits.

    The devices of all processes share each batch, whose number of rows must be a multiple of the number of devices.
    Every process has all outputs.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    def __call__(self, params: Any, model_state: Any, batches: Iterable[Mapping[str, Any]]) -> Predictions:
        outputs, labels = [], []
        for batch in batches:
            outputs.append(self._forward(params, batch, model_state))
            labels.append(shards.gathered((batch["targets"], batch["weights"])))
        logits, losses, counts = zip(*jax.device_get(outputs), strict=True)
        targets, weights = zip(*jax.device_get(labels), strict=True)
        n_terms = float(np.sum(counts, dtype=np.float64))
        mean_loss = float(np.sum(losses, dtype=np.float64)) / n_terms if n_terms else float("nan")
        return Predictions(np.concatenate(logits), np.concatenate(targets), np.concatenate(weights), mean_loss)

    @functools.cached_property
    def _forward(self) -> Any:
        """Compiled at the first evaluation, so that a workload that is only constructed uses no device."""
        replicated, split = shards.over_devices(), shards.over_devices("batch")
        return jax.jit(self._one_batch, in_shardings=(replicated, split, replicated), out_shardings=replicated)

    def _one_batch(self, params: Any, batch: Mapping[str, Any], model_state: Any) -> tuple[Any, Any, Any]:
        workload = self._workload
        logits, _ = workload.model_fn(params, batch, model_state, ForwardPassMode.EVAL, None, update_batch_norm=False)
        loss = workload.loss_fn(batch["targets"], logits, batch["weights"])
        return logits, loss["summed"], loss["n_valid_examples"]
