"""One batch's loss, gradients and Kronecker factors from one forward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .capture import Captured, Forward, capture
from .devices import AxisNames, own_key, sum_over, vary
from .eigenbasis import Bases
from .factors import Use, fisher_diagonal, input_sums, output_factor
from .fisher import Fisher, Geometry, n_root_columns, root_column, sample_cotangent
from .layers import Layer
from .sharing import Layout, Sharing

PyTree = Any
Loss = Callable[[Array], tuple[Array, Array]]  # outputs -> (summed loss, number of terms that it is divided by)

_ROWS = 1  # folded into the key, for draws of rows apart from those of pseudo-targets


class Estimate(NamedTuple):
    """What one batch gave.

    Attributes:
        loss: mean loss `[]`.
        gradients: of the mean loss, like params.
        aux: the forward pass's auxiliary values.
        factors: layer name -> (A `[n_rows, n_rows]`, B `[d_out, d_out]`), diagonals `[n, 1]` in place of sides too
            wide; B is None without output factors; empty where none were asked for.
        eigenvalues: layer name -> those of the Fisher in the bases given `[n_rows, d_out]`; empty without bases.
        uncaptured: layer name -> why it has no factors.
    """

    loss: Array
    gradients: PyTree
    aux: PyTree
    factors: dict[str, tuple[Array, Array | None]]
    eigenvalues: dict[str, Array]
    uncaptured: dict[str, str]


class Sums(NamedTuple):
    """What one batch gave, before the divisions: of batches that make up a whole, the sums add up to the whole's.

    Attributes:
        loss: summed loss `[]`.
        n_terms: number of terms M of the loss `[]`.
        gradients: of the summed loss, like params.
        input_products: layer name -> (A times its number of rows, that number `[]`).
        output_products: layer name -> M B, or None without output factors.
        eigenvalues: layer name -> M times the Fisher's eigenvalues.
    """

    loss: Array
    n_terms: Array
    gradients: PyTree
    input_products: dict[str, tuple[Array, Array]]
    output_products: dict[str, Array | None]
    eigenvalues: dict[str, Array]

    def mean(self, aux: PyTree, uncaptured: dict[str, str]) -> Estimate:
        """The estimate that the sums make, with the forward pass's auxiliary values and what was not captured."""

        def per_term(sums: PyTree) -> PyTree:
            return jax.tree.map(lambda x: x / self.n_terms.astype(x.dtype), sums)

        a = {name: products / jnp.maximum(n_rows, 1) for name, (products, n_rows) in self.input_products.items()}
        b = per_term(self.output_products)
        return Estimate(
            self.loss / self.n_terms,
            per_term(self.gradients),
            aux,
            {name: (a[name], b[name]) for name in a},
            per_term(self.eigenvalues),
            uncaptured,
        )


def estimate(forward: Forward, loss: Loss, params: PyTree, **options: Any) -> Estimate:
    """Mean loss, its gradients, and the factors of `layers`; the arguments are those of `estimate_sums`."""
    sums, aux, uncaptured = estimate_sums(forward, loss, params, **options)
    return sums.mean(aux, uncaptured)


def estimate_sums(
    forward: Forward,
    loss: Loss,
    params: PyTree,
    *,
    layers: Sequence[Layer] = (),
    layout: Layout | None = None,
    sharing: Sharing = Sharing.REDUCE,
    output_factors: bool = True,
    fisher: Fisher = Fisher.SAMPLED,
    geometry: Geometry | None = None,
    weights: Array | None = None,
    rows_per_width: int = 0,
    key: Array | None = None,
    bases: Mapping[str, Bases] | None = None,
    axis_name: AxisNames | None = None,
) -> tuple[Sums, PyTree, dict[str, str]]:
    """Summed loss, its gradients, and the products that the factors of `layers` are made of.

    The loss costs one backward pass, the Fisher one more (none when empirical), on the same forward pass.

    Args:
        forward: params -> (outputs, auxiliary values).
        loss: outputs -> (summed loss, number of terms M); its label smoothing touches the empirical Fisher alone.
        layers: the layers to estimate factors for; none makes this a plain value-and-gradient.
        layout: the batch's leading axes.
        output_factors: False estimates A alone, from the forward pass of the loss: no pseudo-targets and no second
            backward pass, whatever the loss; the arguments `fisher`, `geometry` and `weights` then have no effect.
        geometry: the loss's geometry; not needed by the empirical Fisher.
        weights: loss weights, as for `fisher.sample_cotangent`.
        rows_per_width: see `factors.input_sums`.
        key: random key for the pseudo-targets, and for which rows are taken.
        bases: layer name -> the bases in which to estimate the Fisher's eigenvalues too, for EK-FAC.
        axis_name: name of the axis (or names) of `shard_map`, `pmap` or `vmap` along which the batch is split: the sums
            are then those of the whole batch, the auxiliary values each device's own. None gives each device's own.

    Returns:
        The sums, the forward pass's auxiliary values, and layer name -> why it has no factors.

    Raises:
        ValueError: layers without a layout, geometry or key where one is needed, bases without output factors, or rows
            of a layer that the layout does not have.
    """
    if bases is not None and not output_factors:
        raise ValueError("eigenvalues in the given bases need the output factors: leave out output_factors=False")
    needs_geometry = output_factors and fisher is not Fisher.EMPIRICAL
    if layers and (layout is None or (geometry is None and needs_geometry)):
        raise ValueError("factors need the batch's layout, and the loss's geometry unless the Fisher is empirical")
    if layers and rows_per_width and key is None:
        raise ValueError("rows_per_width draws the rows at random: give a key")
    params, key = vary(params), own_key(key, axis_name)
    captured = capture(forward, params, layers, output_factors)
    summed, loss_pullback, n_terms = jax.vjp(loss, captured.outputs, has_aux=True)
    gradients, at_outputs = captured.pullback(loss_pullback(jnp.ones_like(summed))[0])
    input_products, output_products, eigenvalues = {}, {}, {}
    if captured.inputs:
        by_name = {layer.name: layer for layer in layers if layer.name in captured.inputs}
        inputs = {name: _uses(name, values, layout, captured) for name, values in captured.inputs.items()}
        outputs = jax.lax.stop_gradient(captured.outputs)

        def second_order(gradients_at_outputs: dict[str, list[Array]]) -> tuple[dict[str, Array], dict[str, Array]]:
            uses = {name: _uses(name, gradients_at_outputs[name], layout) for name in by_name}
            return _second_order(by_name, inputs, uses, sharing, bases)

        if fisher is Fisher.SAMPLED and output_factors:
            at_outputs = captured.pullback(sample_cotangent(geometry, outputs, weights, key))[1]
        if not output_factors:
            output_products = dict.fromkeys(by_name)
        elif fisher is Fisher.EXACT:
            output_products, eigenvalues = _summed_over_columns(
                captured, lambda k: root_column(geometry, outputs, weights, k), second_order
            )
        else:
            output_products, eigenvalues = second_order(at_outputs)
        row_key = jax.random.fold_in(key, _ROWS) if rows_per_width else None
        input_products = {
            name: input_sums(inputs[name], sharing, layer.has_bias, layer.are_diagonal[0], rows_per_width, row_key)
            for name, layer in by_name.items()
        }
    sums = Sums(summed, n_terms, gradients, input_products, output_products, eigenvalues)
    return sum_over(sums, axis_name), captured.aux, captured.uncaptured


def _uses(name: str, values: list[Array], layout: Layout, captured: Captured | None = None) -> list[Use]:
    convolution = captured.convolutions.get(name) if captured else None
    return [Use(value, layout.rows(value.shape[0], name), convolution) for value in values]


def _second_order(
    layers: Mapping[str, Layer],
    inputs: Mapping[str, list[Use]],
    gradients: Mapping[str, list[Use]],
    sharing: Sharing,
    bases: Mapping[str, Bases] | None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What sums over rows of output gradients: M B, and where there are bases M times the Fisher's eigenvalues."""
    products, eigenvalues, one = {}, {}, jnp.ones([])
    for name, layer in layers.items():
        products[name] = output_factor(gradients[name], sharing, one, layer.are_diagonal[1])
        if bases is not None:
            sides = inputs[name], gradients[name]
            eigenvalues[name] = fisher_diagonal(*sides, sharing, layer.has_bias, one, *bases[name])
    return products, eigenvalues


def _summed_over_columns(captured: Captured, column: Callable, second_order: Callable) -> PyTree:
    def one(index: Array) -> PyTree:
        return second_order(captured.pullback(column(index))[1])

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, 0))
    indices = jnp.arange(n_root_columns(captured.outputs))
    return jax.lax.scan(lambda total, k: (jax.tree.map(jnp.add, total, one(k)), None), vary(zeros), indices)[0]
