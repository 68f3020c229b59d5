"""Nine small workloads of the official ones' kinds, with the official classes' names, types and habits.

What the official classes do and a submission must bear: an enum of their own for the mode, `{}` that becomes None,
running averages that a step gives more axes, tuples as inputs, targets and outputs, a loss type that is not the loss's,
parameter types under lower-cased names, and losses in whole-number or low-precision arithmetic. Parameters and batches
are drawn by NumPy, the same in every environment.
"""

import enum
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax
from jax import Array

from tests.harness import models

PyTree = Any
BATCH_SIZE = 8
N_LABELS, N_TOKENS, N_TASKS = 5, 12, 3


class ForwardPassMode(enum.Enum):
    TRAIN = 0
    EVAL = 1


class LossType(enum.Enum):
    SOFTMAX_CROSS_ENTROPY = 0
    MEAN_ABSOLUTE_ERROR = 4


class Workload:
    """What the nine have in common; `dtype` is of the parameters and the batches."""

    step_hint = 100
    loss_type = LossType.SOFTMAX_CROSS_ENTROPY

    def __init__(self, dtype: Any = jnp.float32):
        self.dtype = dtype
        self.metrics_logger = None
        self._param_shapes = None

    def attach_metrics_logger(self, metrics_logger: Any) -> None:
        self.metrics_logger = metrics_logger

    @property
    def model_params_types(self) -> PyTree:
        """One type for all, under names in lower case, as the official ones are."""

        def visit(node: PyTree) -> PyTree:
            if isinstance(node, Mapping):
                return {name.lower(): visit(value) for name, value in node.items()}
            return "WEIGHT"

        return visit(self._param_shapes)

    def init_model_fn(self, rng: Any) -> tuple[PyTree, PyTree]:
        drawn = np.random.default_rng(np.asarray(rng).tolist())
        batch = self.batch(np.random.default_rng(0))
        shapes = jax.eval_shape(lambda key: self.model.init(key, *self.arguments(batch, False, 0.0)), rng)
        variables = jax.tree_util.tree_map_with_path(lambda path, s: self._initial(drawn, path, s), shapes)
        variables = dict(variables)
        params = variables.pop("params")
        self._param_shapes = jax.tree.map(jnp.shape, params)
        return params, variables if variables or self.starts_from_an_empty_state else None

    def _initial(self, drawn: np.random.Generator, path: tuple, shape: jax.ShapeDtypeStruct) -> Array:
        names = [str(getattr(key, "key", key)) for key in path]
        values = drawn.normal(size=shape.shape)
        if names[-1] == "attn_scale":
            values = np.full_like(values, 3.0)
        elif names[-1] in ("scale", "var"):
            values = np.ones_like(values)
        elif names[-1] in ("bias", "mean") or names[-2] == "head":
            values = np.zeros_like(values)
        else:
            values = values / np.sqrt(max(np.prod(shape.shape[:-1]), 1))
        return jnp.asarray(values, self.dtype)

    starts_from_an_empty_state = False

    def arguments(self, batch: Mapping[str, Any], train: bool, rate: float | Array) -> tuple:
        """Of the model's call."""
        return batch["inputs"], train, rate

    def model_fn(
        self,
        params: PyTree,
        augmented_and_preprocessed_input_batch: Mapping[str, Any],
        model_state: PyTree,
        mode: ForwardPassMode,
        rng: Array,
        update_batch_norm: bool,
        dropout_rate: float = 0.1,
    ) -> tuple[PyTree, PyTree]:
        train = mode == ForwardPassMode.TRAIN
        arguments = self.arguments(augmented_and_preprocessed_input_batch, train, dropout_rate)
        if not model_state:
            return self.model.apply({"params": params}, *arguments, rngs={"dropout": rng}), None
        return self.model.apply(
            {"params": params, **model_state}, *arguments, rngs={"dropout": rng}, mutable=["batch_stats"]
        )

    def batch(self, drawn: np.random.Generator) -> dict[str, Any]:
        """One batch of random content; floating-point arrays in the workload's dtype."""
        return jax.tree.map(self._in_dtype, self.content(drawn))

    def _in_dtype(self, x: np.ndarray) -> np.ndarray:
        return x.astype(self.dtype) if np.issubdtype(x.dtype, np.floating) else x


def masked_sum(losses: Array, weights: Array | None) -> dict[str, Any]:
    """Of losses `[examples]`; without weights the number of terms is a whole number of Python's."""
    if weights is None:
        return {"summed": losses.sum(), "n_valid_examples": len(losses), "per_example": losses}
    return {"summed": (losses * weights).sum(), "n_valid_examples": weights.sum(), "per_example": losses * weights}


class Criteo(Workload):
    name = "criteo1tb"
    model = models.ClickModel()

    def content(self, drawn):
        inputs = np.concatenate(
            [drawn.normal(size=(BATCH_SIZE, 4)), drawn.integers(0, 1000, (BATCH_SIZE, 3)).astype(float)], 1
        )
        return {"inputs": inputs, "targets": drawn.integers(0, 2, BATCH_SIZE).astype(float)}

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        targets, logits = label_batch.reshape(len(label_batch)), logits_batch.reshape(len(label_batch))
        losses = -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))
        return masked_sum(losses, mask_batch)


class FastMRI(Workload):
    name = "fastmri"
    model = models.UNet()
    loss_type = LossType.MEAN_ABSOLUTE_ERROR

    def content(self, drawn):
        images = drawn.normal(size=(2, BATCH_SIZE, 8, 8))
        scalars = {name: drawn.uniform(1, 2, BATCH_SIZE) for name in ("mean", "std", "volume_max")}
        return {"inputs": images[0], "targets": images[1] + images[0], **scalars}

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        return masked_sum(jnp.abs(logits_batch - label_batch).mean((1, 2)), mask_batch)


class _Images(Workload):
    def content(self, drawn):
        labels = np.eye(N_LABELS)[drawn.integers(0, N_LABELS, BATCH_SIZE)]
        return {"inputs": drawn.normal(size=(BATCH_SIZE, 8, 8, 3)), "targets": labels}

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        if label_batch.ndim == 1:
            label_batch = jax.nn.one_hot(label_batch, N_LABELS)
        targets = optax.smooth_labels(label_batch, label_smoothing)
        return masked_sum(-(targets * jax.nn.log_softmax(logits_batch)).sum(-1), mask_batch)


class ImagenetResNet(_Images):
    name = "imagenet_resnet"
    model = models.ResNet(N_LABELS)


class ImagenetViT(_Images):
    name = "imagenet_vit"
    model = models.ViT(N_LABELS)
    starts_from_an_empty_state = True


class _Speech(Workload):
    def content(self, drawn):
        n_frames, n_letters = 16, 3
        lengths = drawn.integers(n_frames - 3, n_frames + 1, BATCH_SIZE)
        paddings = (np.arange(n_frames) >= lengths[:, None]).astype(float)
        label_paddings = (np.arange(n_letters) >= drawn.integers(1, n_letters + 1, (BATCH_SIZE, 1))).astype(float)
        labels = drawn.integers(1, N_LABELS, (BATCH_SIZE, n_letters))
        return {
            "inputs": (drawn.normal(size=(BATCH_SIZE, n_frames, 4)), paddings),
            "targets": (labels, label_paddings),
        }

    def arguments(self, batch, train, rate):
        return *batch["inputs"], train, rate

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        (logits, logit_paddings), (labels, label_paddings) = logits_batch, label_batch
        losses = optax.ctc_loss(jax.nn.log_softmax(logits), logit_paddings, labels, label_paddings)
        present = 1 - label_paddings
        if mask_batch is not None:
            losses, present = losses * mask_batch, present * mask_batch[:, None]
        return {"summed": losses.sum(), "n_valid_examples": jnp.maximum(present.sum(), 1), "per_example": losses}


class Conformer(_Speech):
    name = "librispeech_conformer"
    model = models.Conformer(N_LABELS)


class DeepSpeech(_Speech):
    name = "librispeech_deepspeech"

    def __init__(self, dtype: Any = jnp.float32):
        super().__init__(dtype)
        self.model = models.DeepSpeech(N_LABELS, dtype)


class Ogbg(Workload):
    name = "ogbg"
    model = models.GraphModel(N_TASKS)

    def content(self, drawn):
        """Six molecules of four nodes in a ring, and two graphs of padding, one of them empty."""
        n_real, n_nodes, n_edges = BATCH_SIZE - 2, 28, 56
        of_molecule = np.repeat(np.arange(n_real) * 4, 8)
        ring = np.arange(4)
        senders = of_molecule + np.tile(np.concatenate([ring, (ring + 1) % 4]), n_real)
        receivers = of_molecule + np.tile(np.concatenate([(ring + 1) % 4, ring]), n_real)
        last = np.full(n_edges - len(senders), n_nodes - 1)
        graphs = jraph.GraphsTuple(
            nodes=drawn.normal(size=(n_nodes, 9)),
            edges=drawn.normal(size=(n_edges, 3)),
            globals=np.zeros((BATCH_SIZE, N_TASKS)),
            senders=np.concatenate([senders, last]).astype(np.int32),
            receivers=np.concatenate([receivers, last]).astype(np.int32),
            n_node=np.array([4] * n_real + [n_nodes - 4 * n_real, 0], np.int32),
            n_edge=np.array([8] * n_real + [n_edges - 8 * n_real, 0], np.int32),
        )
        targets = drawn.integers(0, 2, (BATCH_SIZE, N_TASKS)).astype(float)
        weights = drawn.integers(0, 2, (BATCH_SIZE, N_TASKS)).astype(float)
        weights[:n_real, 0], weights[n_real:] = 1, 0
        return {"inputs": graphs, "targets": np.where(weights > 0, targets, np.nan), "weights": weights}

    def model_fn(self, params, batch, model_state, mode: ForwardPassMode, rng, update_batch_norm, dropout_rate=0.1):
        if model_state is not None:
            raise ValueError(f"Expected model_state to be None, received {model_state}.")
        return super().model_fn(params, batch, model_state, mode, rng, update_batch_norm, dropout_rate)

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        mask = jnp.ones_like(logits_batch) if mask_batch is None else mask_batch
        labels = optax.smooth_labels(jnp.where(mask > 0, label_batch, 0), label_smoothing)
        losses = labels * jax.nn.softplus(-logits_batch) + (1 - labels) * jax.nn.softplus(logits_batch)
        losses = jnp.where(mask > 0, losses, 0)
        return {"summed": losses.sum(), "n_valid_examples": mask.sum(), "per_example": losses}


class _Text(Workload):
    def content(self, drawn):
        inputs, targets = drawn.integers(1, N_TOKENS, (2, BATCH_SIZE, 6))
        targets[:, 5] = targets[:, 4] = 0
        return {"inputs": inputs, "targets": targets, "weights": (targets > 0).astype(float)}

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        targets = optax.smooth_labels(jax.nn.one_hot(label_batch, N_TOKENS), label_smoothing)
        losses = -(targets * jax.nn.log_softmax(logits_batch)).sum(-1)
        weights = jnp.ones(losses.shape, losses.dtype) if mask_batch is None else mask_batch
        losses = jnp.where(weights, losses, 0)
        return {"summed": losses.sum(), "n_valid_examples": weights.sum(), "per_example": losses}


class Wmt(_Text):
    name = "wmt"
    model = models.Translator(N_TOKENS)

    def arguments(self, batch, train, rate):
        return batch["inputs"], batch["targets"], train, rate


class FineWebEdu(_Text):
    name = "finewebedu_lm"

    def __init__(self, dtype: Any = jnp.float32):
        super().__init__(dtype)
        self._compute_dtype = jnp.bfloat16 if dtype == jnp.float32 else dtype
        self.model = models.LanguageModel(N_TOKENS, self._compute_dtype)

    def arguments(self, batch, train, rate):
        return (batch["inputs"],)

    def model_fn(self, params, batch, model_state, mode: ForwardPassMode, rng, update_batch_norm, dropout_rate=0.0):
        params = jax.tree.map(lambda x: x.astype(self._compute_dtype), params)
        return self.model.apply({"params": params}, batch["inputs"]), None


KINDS = {
    kind.name: kind
    for kind in (Criteo, FastMRI, ImagenetResNet, ImagenetViT, Conformer, DeepSpeech, Ogbg, Wmt, FineWebEdu)
}
