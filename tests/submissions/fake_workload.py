"""A small workload of nobody's classes, and a trial on it, called as the official AlgoPerf runner calls it."""

import enum
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

N_INPUTS, N_CLASSES, BATCH_SIZE, N_BATCHES = 8, 3, 32, 4
DROPOUT_RATE = 0.1


class Mode(enum.Enum):
    """Equal to no other enum: a submission that brings its own has no dropout here."""

    TRAIN = 0
    EVAL = 1


class Model(nn.Module):
    """Two layers; between them dropout at a rate that may be traced, and batch statistics without the padding."""

    n_hidden: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, is_example: jax.Array, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        x = nn.tanh(nn.Dense(self.n_hidden, name="hidden")(x))
        if train:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - dropout_rate, x.shape)
            x = jnp.where(keep, x / (1 - dropout_rate), 0)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x, mask=is_example[:, None])
        return nn.Dense(N_CLASSES, name="head")(x)


class Recorder:
    """A metrics logger: step -> what was logged."""

    def __init__(self):
        self.logged: dict[int, dict[str, float]] = {}

    def append_scalar_metrics(self, metrics: Mapping[str, float], global_step: int) -> None:
        self.logged.setdefault(global_step, {}).update(metrics)


class FakeWorkload:
    """Classes of Gaussian inputs by a random linear rule."""

    step_hint = 80

    def __init__(self, n_hidden: int = 32):
        self.metrics_logger = None
        self.model = Model(n_hidden)
        self._init = jax.jit(self.model.init, static_argnums=3)

    def init_model_fn(self, rng: Any) -> tuple[Any, Any]:
        arguments = jnp.zeros((1, N_INPUTS)), jnp.ones(1, bool), False, 0.0
        variables = dict(self._init(rng, *arguments))
        params = variables.pop("params")
        return params, variables

    def model_fn(
        self,
        params: Any,
        augmented_and_preprocessed_input_batch: Mapping[str, Any],
        model_state: Any,
        mode: Mode,
        rng: Any,
        update_batch_norm: bool,
        dropout_rate: float = DROPOUT_RATE,
    ) -> tuple[jax.Array, Any]:
        batch, train = augmented_and_preprocessed_input_batch, mode is Mode.TRAIN
        logits, new_state = self.model.apply(
            {"params": params, **model_state},
            batch["inputs"],
            batch["weights"] > 0,
            train,
            dropout_rate,
            rngs={"dropout": rng},
            mutable=["batch_stats"],
        )
        return logits, new_state if train and update_batch_norm else model_state

    def loss_fn(
        self,
        label_batch: jax.Array,
        logits_batch: jax.Array,
        mask_batch: jax.Array | None = None,
        label_smoothing: float | jax.Array = 0.0,
    ) -> dict[str, jax.Array]:
        losses = optax.softmax_cross_entropy(logits_batch, optax.smooth_labels(label_batch, label_smoothing))
        present = jnp.ones(losses.shape, bool) if mask_batch is None else mask_batch > 0
        losses = jnp.where(present, losses, 0)
        return {"summed": losses.sum(), "n_valid_examples": present.sum(), "per_example": losses}


def batches() -> list[dict[str, np.ndarray]]:
    """`N_BATCHES` batches whose last example is padding."""
    rng = np.random.default_rng(0)
    rule = rng.normal(size=(N_INPUTS, N_CLASSES))
    inputs = rng.normal(size=(N_BATCHES, BATCH_SIZE, N_INPUTS)).astype(np.float32)
    targets = np.eye(N_CLASSES, dtype=np.float32)[(inputs @ rule).argmax(-1)]
    weights = (np.arange(BATCH_SIZE) < BATCH_SIZE - 1).astype(np.float32)
    return [{"inputs": x, "targets": y, "weights": weights} for x, y in zip(inputs, targets, strict=True)]


class Trial:
    """One submission's training on one workload, with the runner's raw uint32 keys.

    Attributes:
        params, model_state, optimizer_state: after the last step.
        recorder: what the submission logged.
    """

    def __init__(self, submission: Any, workload: FakeWorkload, point: tuple, seed: int = 0):
        self._submission, self._workload, self._point = submission, workload, point
        self._key = jax.random.PRNGKey(seed)
        self.recorder = Recorder()
        self.params, self.model_state = workload.init_model_fn(self._key)
        self.optimizer_state = submission.init_optimizer_state(
            workload, self.params, self.model_state, point, self._key
        )

    def step(self, global_step: int, batch: Mapping[str, Any], key: jax.Array | None = None) -> None:
        """One update; without a key, with the step's own."""
        self._workload.metrics_logger = self.recorder
        self.optimizer_state, self.params, self.model_state = self._submission.update_params(
            workload=self._workload,
            current_param_container=self.params,
            current_params_types=None,
            model_state=self.model_state,
            hyperparameters=self._point,
            batch=batch,
            loss_type=None,
            optimizer_state=self.optimizer_state,
            eval_results=[],
            global_step=global_step,
            rng=jax.random.fold_in(self._key, global_step) if key is None else key,
        )

    def run(self, first: int, end: int, of: list[Mapping[str, Any]]) -> "Trial":
        """Steps `first`, …, `end - 1`, over the given batches in turn."""
        for global_step in range(first, end):
            self.step(global_step, of[global_step % len(of)])
        return self

    @property
    def trees(self) -> tuple[Any, Any, Any]:
        """Copies of (optimizer state, params, model state), which a step, that donates its arguments, leaves alone."""
        return jax.tree.map(np.array, (self.optimizer_state[0], self.params, self.model_state))

    def put(self, trees: tuple[Any, Any, Any]) -> None:
        """Continue from what `trees` gave."""
        state, self.params, self.model_state = trees
        self.optimizer_state = state, self.optimizer_state[1]
