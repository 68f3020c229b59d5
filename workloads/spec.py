"""The workload half of the AlgoPerf contract, with its names and meanings.

Source: mlcommons/algorithmic-efficiency, `algoperf/spec.py`. Added here: `Target`, `Budget`, `SplitSizes` as
data, evaluation by steps (`eval_period_steps`), and training queues that can be restored. `_loss_and_metrics`
takes the place of `_eval_model_on_split`.

A batch is a dict of flat global arrays, `{"inputs", "targets", "weights"}`; weight 0 marks padding or a
missing label.
"""

import abc
import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from workloads.tfds_data import PreparedData


class LossType(enum.Enum):
    SOFTMAX_CROSS_ENTROPY = 0
    SIGMOID_CROSS_ENTROPY = 1
    MEAN_SQUARED_ERROR = 2
    CTC_LOSS = 3
    MEAN_ABSOLUTE_ERROR = 4


class ForwardPassMode(enum.Enum):
    TRAIN = 0
    EVAL = 1


class ParameterType(enum.Enum):
    WEIGHT = 0
    BIAS = 1
    CONV_WEIGHT = 2
    BATCH_NORM_SCALE = 3
    BATCH_NORM_BIAS = 4
    LAYER_NORM_SCALE = 5
    LAYER_NORM_BIAS = 6
    EMBEDDING = 7
    ATTENTION_Q = 8
    ATTENTION_K = 9
    ATTENTION_V = 10
    ATTENTION_OUT = 11
    ATTENTION_QKV = 12
    ATTENTION_KV = 13
    ATTENTION_BIAS = 14


@dataclasses.dataclass(frozen=True)
class ShapeTuple:
    """A shape as one leaf, so that a tree of shapes has the structure of the tree of arrays."""

    shape_tuple: tuple[int, ...]


class Direction(enum.Enum):
    HIGHER_IS_BETTER = "higher"
    LOWER_IS_BETTER = "lower"

    @property
    def sign(self) -> int:
        """1 or -1: the metric multiplied by it is higher for a better value."""
        return 1 if self is Direction.HIGHER_IS_BETTER else -1


@dataclasses.dataclass(frozen=True)
class Target:
    """A metric's goal. An infinite `value` means "not set" and is never reached."""

    metric: str
    value: float
    direction: Direction = Direction.HIGHER_IS_BETTER

    def is_reached(self, value: float) -> bool:
        """Whether `value` equals or betters the target; a non-finite value never does."""
        are_finite = math.isfinite(value) and math.isfinite(self.value)
        return are_finite and self.direction.sign * value >= self.direction.sign * self.value


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long a trial may last and how often it is evaluated.

    `step_hint` is also the number of training steps allowed. `eval_period_steps=None` evaluates by time
    alone.
    """

    step_hint: int
    max_allowed_runtime_s: int
    eval_period_s: int
    eval_period_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class SplitSizes:
    """Examples in each split; `eval_train` is a fixed subset of `train`."""

    train: int
    eval_train: int
    validation: int
    test: int


class TrainingQueue(Protocol):
    """An endless iterator over training batches that can be set to any position of its sequence."""

    def __iter__(self) -> "TrainingQueue": ...

    def __next__(self) -> dict[str, Any]: ...

    def get_state(self) -> dict[str, int]:
        """The state with which `set_state` continues after the batches drawn so far."""

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continue as if the batches drawn when `state` was taken had just been drawn."""


class Workload(abc.ABC):
    """Data, model, loss, metric and target; a concrete class sets these attributes and the abstract ones."""

    validation_target: Target
    test_target: Target
    budget: Budget
    split_sizes: SplitSizes
    loss_type: LossType
    eval_batch_size: int
    training_batch_size: int | None = None  # for submissions without a batch size for this workload
    pads_batches: bool = False  # with padding; otherwise the number of devices must divide the batch size
    hardware_profile: str | None = None  # the budget's, if the user chose a profile
    prepared_data: tuple[PreparedData, ...] = ()  # data sets that `scripts/prepare_data.py` makes

    def __init__(self) -> None:
        self.metrics_logger = None
        self._param_shapes = None
        self._param_types = None

    def attach_metrics_logger(self, metrics_logger: Any) -> None:
        self.metrics_logger = metrics_logger

    @property
    def target_metric_name(self) -> str:
        return self.validation_target.metric

    @property
    def validation_target_value(self) -> float:
        return self.validation_target.value

    @property
    def test_target_value(self) -> float:
        return self.test_target.value

    def has_reached_validation_target(self, eval_result: Mapping[str, float]) -> bool:
        return self.validation_target.is_reached(eval_result[f"validation/{self.validation_target.metric}"])

    def has_reached_test_target(self, eval_result: Mapping[str, float]) -> bool:
        return self.test_target.is_reached(eval_result[f"test/{self.test_target.metric}"])

    @property
    def num_train_examples(self) -> int:
        return self.split_sizes.train

    @property
    def num_eval_train_examples(self) -> int:
        return self.split_sizes.eval_train

    @property
    def num_validation_examples(self) -> int:
        return self.split_sizes.validation

    @property
    def num_test_examples(self) -> int:
        return self.split_sizes.test

    @property
    def step_hint(self) -> int:
        return self.budget.step_hint

    @property
    def max_allowed_runtime_sec(self) -> int:
        return self.budget.max_allowed_runtime_s

    @property
    def eval_period_time_sec(self) -> int:
        return self.budget.eval_period_s

    @property
    def eval_period_steps(self) -> int | None:
        return self.budget.eval_period_steps

    @property
    def param_shapes(self) -> Any:
        """Tree of `ShapeTuple`, with the parameters' own structure and keys.

        Raises:
            ValueError: before `init_model_fn` was called.
        """
        if self._param_shapes is None:
            raise ValueError("the parameter shapes are not known yet: call init_model_fn first")
        return self._param_shapes

    @property
    def model_params_types(self) -> Any:
        """Tree of `ParameterType`, as `param_shapes`; raises likewise."""
        if self._param_types is None:
            raise ValueError("the parameter types are not known yet: call init_model_fn first")
        return self._param_types

    @abc.abstractmethod
    def is_output_params(self, param_key: str) -> bool:
        """Whether the top-level parameter `param_key` belongs to the output layer."""

    @abc.abstractmethod
    def init_model_fn(self, rng: Any) -> tuple[Any, Any]:
        """-> (float32 parameters, model state); the state is None for a model that has none."""

    @abc.abstractmethod
    def model_fn(
        self,
        params: Any,
        augmented_and_preprocessed_input_batch: Mapping[str, Any],
        model_state: Any,
        mode: ForwardPassMode,
        rng: Any,
        update_batch_norm: bool,
        dropout_rate: float | None = None,
    ) -> tuple[Any, Any]:
        """-> (logits, new model state).

        Dropout is active in TRAIN mode only. Its rate may be a traced value; None means the workload's own rate.
        """

    @abc.abstractmethod
    def loss_fn(
        self, label_batch: Any, logits_batch: Any, mask_batch: Any = None, label_smoothing: float = 0.0
    ) -> dict[str, Any]:
        """-> {"summed": [], "n_valid_examples": [] (what to divide by), "per_example": [batch]}."""

    @abc.abstractmethod
    def _build_input_queue(
        self,
        data_rng: Any,
        split: str,
        data_dir: str | None,
        global_batch_size: int,
        cache: bool | None = None,
        repeat_final_dataset: bool | None = None,
        num_batches: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Batches of `split`: a `TrainingQueue` for "train", otherwise every example once, in a fixed order.

        `cache` and `repeat_final_dataset` are upstream's and change nothing; `num_batches` stops a non-training split
        early. For training a ValueError about the batch size is raised at the call, not at the first batch.
        """

    @abc.abstractmethod
    def synthetic_queue(self, data_rng: Any, global_batch_size: int) -> Iterator[dict[str, Any]]:
        """Endless batches of random content in the form of training batches, to time steps without a data set."""

    @abc.abstractmethod
    def _loss_and_metrics(self, params: Any, model_state: Any, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
        """Loss and metrics over all batches of a split."""

    def eval_model(
        self,
        global_batch_size: int,
        params: Any,
        model_state: Any,
        rng: Any,
        data_dir: str | None,
        imagenet_v2_data_dir: str | None,
        global_step: int,
    ) -> dict[str, float]:
        """Loss and metrics of every split, as `"train/loss"`, `"validation/..."`, `"test/..."`.

        ImageNet-V2 is in `data_dir`, too, so `imagenet_v2_data_dir` has no effect.
        """
        del imagenet_v2_data_dir, global_step
        splits = [
            ("train", "eval_train", self.num_eval_train_examples),
            ("validation", "validation", self.num_validation_examples),
            ("test", "test", self.num_test_examples),
        ]
        results: dict[str, float] = {}
        for prefix, split, n_examples in splits:
            batches = self._build_input_queue(rng, split, data_dir, global_batch_size)
            values = self._loss_and_metrics(params, model_state, batches)
            results |= {f"{prefix}/{name}": value for name, value in values.items()}
            if prefix != "train":
                results[f"{prefix}/num_examples"] = n_examples
        return results
