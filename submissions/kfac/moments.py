"""Moving averages of the gradient, and the NAdam step that is made of them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .schedules import Scalar

PyTree = Any


def lookahead(average: PyTree, gradients: PyTree, beta1: Scalar, count: Array) -> tuple[PyTree, PyTree]:
    """The new average of the gradients, and its value one step ahead (Nesterov), corrected for its start from zero.

    Args:
        count: updates made, this one included `[]`.
    """
    first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, average, gradients)
    here, ahead = (1 - beta1**n for n in (count, count + 1))
    return first, jax.tree.map(lambda m, g: beta1 * m / ahead + (1 - beta1) * g / here, first, gradients)


def mean_squares(average: PyTree, gradients: PyTree, beta2: Scalar, count: Array) -> tuple[PyTree, PyTree]:
    """The new average of the squared gradients, and the same corrected for its start from zero."""
    second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, average, gradients)
    return second, jax.tree.map(lambda v: v / (1 - beta2**count), second)


def adam(
    average: PyTree, gradients: PyTree, ahead: PyTree, beta2: Scalar, epsilon: Scalar, count: Array
) -> tuple[PyTree, PyTree]:
    """The new average of the squared gradients, and NAdam's step with `ahead` of `lookahead`."""
    second, squares = mean_squares(average, gradients, beta2, count)
    return second, jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), ahead, squares)
