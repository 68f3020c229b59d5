"""A workload and one batch, as the functions of the parameters that a training algorithm needs."""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from . import micro_batches
from .micro_batches import n_examples

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Problem:
    """The training loss on one batch.

    Attributes:
        workload: an AlgoPerf workload.
        batch: `inputs`, `targets` and perhaps `weights`.
        model_state: the model's state, None where it has none.
        label_smoothing: for the loss.
        dropout_rate: for the model; None leaves the workload's own.
        key: random key of the forward pass.
        mesh: the devices that the batch is split over.
    """

    workload: Any
    batch: Mapping[str, Any]
    model_state: PyTree
    label_smoothing: float | Array
    dropout_rate: float | Array | None
    key: Array
    mesh: Mesh | None = None

    @property
    def weights(self) -> Array | None:
        return self.batch.get("weights")

    @property
    def n_examples(self) -> int:
        return n_examples(self.batch)

    def summed(
        self, n_micro_batches: int, function: Callable[["Problem", Array | None], tuple[PyTree, PyTree]]
    ) -> tuple[PyTree, PyTree]:
        """Call `function(problem, index)` for every micro-batch: the sum of its first results, the last model state.

        Args:
            function: (the problem on one micro-batch, its index, None where it is the whole batch) -> (sums, new model
                state).
        """
        if n_micro_batches == 1:
            return function(self, None)

        def one(batch: PyTree, model_state: PyTree, index: Array) -> tuple[PyTree, PyTree]:
            key = jax.random.fold_in(self.key, index)
            return function(dataclasses.replace(self, batch=batch, model_state=model_state, key=key), index)

        parts = micro_batches.divide(self.batch, n_micro_batches, self.mesh)
        return micro_batches.summed(one, parts, self.model_state, n_micro_batches)

    def forward(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """params -> (outputs, new model state), in training mode. The outputs are logits, or a tuple (logits, …)."""
        options = {} if self.dropout_rate is None else {"dropout_rate": self.dropout_rate}
        outputs, model_state = self.workload.model_fn(
            params,
            self.batch,
            self.model_state,
            _training_mode(self.workload),
            self.key,
            update_batch_norm=True,
            **options,
        )
        return outputs, _in_structure_of(self.model_state, model_state)

    def loss(self, logits: PyTree) -> tuple[Array, Array]:
        """The model's outputs -> (summed loss, number of terms)."""
        values = self.workload.loss_fn(
            label_batch=self.batch["targets"],
            logits_batch=logits,
            mask_batch=self.weights,
            label_smoothing=self.label_smoothing,
        )
        return values["summed"], jnp.asarray(values["n_valid_examples"])

    def position_loss(self, logits_shape: tuple[int, ...]) -> Callable[[Array], Array]:
        """The loss as a function of the logits `[n_outputs]` of one position, for a valid target, without smoothing.

        It calls the workload's loss on one example with one position, if that works and the loss is a sum over
        positions; otherwise on one example with all positions. With all positions of a large vocabulary, the compiler
        would spend minutes on constant folding.

        Args:
            logits_shape: of the batch's logits `[examples, *positions, n_outputs]`.

        Raises:
            ValueError: targets or weights are tuples, so that nothing is known of their axes.
        """
        targets, weights, positions = self.batch["targets"], self.weights, logits_shape[1:-1]
        if isinstance(targets, tuple) or isinstance(weights, tuple):
            raise ValueError("the targets or weights are a tuple: which of their axes are positions is not known")

        def one_example(shape: tuple[int, ...], length: int | None) -> tuple[int, ...]:
            """A shape with one example, and axes of positions cut to `length`; None leaves them."""
            kept = zip(shape[1:], positions, strict=False)
            cut = [min(size, length) if length is not None and size == n else size for size, n in kept]
            return (1, *cut, *shape[1 + len(positions) :])

        def summed(logits: Array, length: int | None) -> Array:
            # Everything is made inside, so that it holds none of the values of a step that is being traced.
            target = jnp.zeros(one_example(targets.shape, length), targets.dtype)
            if targets.ndim == len(logits_shape):
                target = target.at[..., 0].set(1)
            mask = None if weights is None else jnp.ones(one_example(weights.shape, length), weights.dtype)
            total: Array = self.workload.loss_fn(
                label_batch=target, logits_batch=logits, mask_batch=mask, label_smoothing=0.0
            )["summed"]
            return total

        def adds_up() -> bool:
            """Whether the loss of two positions along each axis is the sum of the losses of the single positions."""
            logits = np.random.default_rng(0).normal(size=one_example(logits_shape, 2)).astype(np.float32)
            each = logits.reshape(-1, *one_example(logits_shape, 1))
            with jax.ensure_compile_time_eval():
                alone = jax.jit(lambda values: summed(values, 1))
                total = jax.jit(lambda values: summed(values, 2))(logits)
                return math.isclose(total, sum(float(alone(values)) for values in each), rel_tol=1e-3)

        try:
            length = 1 if not positions or adds_up() else None
        except (TypeError, ValueError):  # the loss needs the whole number of positions
            length = None

        def loss(position: Array) -> Array:
            logits = jnp.zeros(one_example(logits_shape, length), position.dtype)
            return summed(logits.at[(0,) * (len(logits_shape) - 1)].set(position), length)

        return loss


def _in_structure_of(before: PyTree, after: PyTree) -> PyTree:
    """The new model state with the structure and shapes of the old one, if both hold the same arrays.

    A workload without a state may start from `{}` and return None. Another may return another kind of mapping, or
    averages with additional leading axes of length one, as a mean with `keepdims` has. With one form, all steps share
    one compiled program, and a checkpoint's arrays have the form that the run starts from.
    """
    old, new = jax.tree.leaves(before), jax.tree.leaves(after)
    shapes = [(jnp.shape(x), jnp.shape(y)) for x, y in zip(old, new, strict=False)]
    if len(old) != len(new) or not all(wide == (1,) * (len(wide) - len(shape)) + shape for shape, wide in shapes):
        return after
    values = [y if shape == wide else y.reshape(shape) for y, (shape, wide) in zip(new, shapes, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(before), values)


def _training_mode(workload: Any) -> Any:
    """The workload's own enum's TRAIN: another enum's would silently disable dropout.

    Raises:
        TypeError: no `model_fn` of the workload's classes says of what type its argument `mode` is.
    """
    functions = [vars(kind)["model_fn"] for kind in type(workload).__mro__ if "model_fn" in vars(kind)]
    for function in functions:
        if "mode" in (hints := typing.get_type_hints(function)):
            return hints["mode"].TRAIN
    raise TypeError(f"{type(workload).__name__}.model_fn must give the type of its argument `mode`: ForwardPassMode")
