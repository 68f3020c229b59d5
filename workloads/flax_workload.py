"""What all workloads here share: a stateless Flax model, trained with dropout and evaluated over whole splits."""

import abc
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from workloads import parameters
from workloads.evaluation import Predictions, Predictor
from workloads.spec import ForwardPassMode, Workload


class FlaxWorkload(Workload):
    """A model called as `model(inputs, train=…, dropout_rate=…)`. A subclass brings data, loss and metric."""

    model: nn.Module
    dropout_rate: float  # the workload's own, where a submission asks for none

    def __init__(self) -> None:
        super().__init__()
        self._predictor = Predictor(self)

    @abc.abstractmethod
    def _smallest_inputs(self) -> Any:
        """The model's inputs for one example, whose shapes decide the parameters'."""

    @abc.abstractmethod
    def _metrics(self, predictions: Predictions) -> dict[str, float]:
        """The metrics of a split, its loss apart."""

    def _model_inputs(self, inputs: Any) -> Any:
        """A batch's inputs as the model takes them."""
        return inputs

    def init_model_fn(self, rng: Any) -> tuple[Any, Any]:
        inputs = self._smallest_inputs()
        init = jax.jit(lambda key: self.model.init(key, inputs, train=False, dropout_rate=0.0)["params"])
        params = init(rng)
        self._param_shapes = parameters.param_shapes(params)
        self._param_types = parameters.param_types(params)
        return params, None

    def model_fn(
        self,
        params: Any,
        augmented_and_preprocessed_input_batch: Mapping[str, Any],
        model_state: Any,
        mode: ForwardPassMode,
        rng: Any,
        update_batch_norm: bool,
        dropout_rate: float | None = None,
    ) -> tuple[jax.Array, None]:
        """-> (logits [examples, outputs], None); there is no state. `rng` is unused in EVAL mode."""
        del model_state, update_batch_norm
        train = mode == ForwardPassMode.TRAIN
        logits: Any = self.model.apply(
            {"params": params},
            self._model_inputs(augmented_and_preprocessed_input_batch["inputs"]),
            train=train,
            dropout_rate=self.dropout_rate if dropout_rate is None else dropout_rate,
            rngs={"dropout": rng} if train else {},
        )
        return logits, None

    def _eval_model_on_split(
        self,
        split: str,
        num_examples: int,
        global_batch_size: int,
        params: Any,
        model_state: Any,
        rng: Any,
        data_dir: str | None,
        global_step: int = 0,
    ) -> dict[str, float]:
        del num_examples, global_step
        batches = self._build_input_queue(rng, split, data_dir, global_batch_size)
        predictions = self._predictor(params, model_state, batches)
        return {"loss": predictions.mean_loss, **self._metrics(predictions)}
