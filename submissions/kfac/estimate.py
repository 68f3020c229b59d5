"""One batch's loss, gradients and Kronecker factors from one forward pass."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .arguments import check_geometry, check_layers, check_member, checked_forward, checked_loss
from .capture import Captured, Family, Forward, Traced, capture, families, trace
from .coverage import Reasons, left_out, report, report_positions
from .devices import AxisNames, check_axes, sum_over, vary
from .family import InputSums, OutputSums, combined, input_products, output_products
from .fisher import Fisher, Geometry, n_root_columns, root_column, sample_cotangent
from .heads import Head, heads_of
from .layers import Layer, Path, at_least_float32
from .placement import with_described_rows
from .sharing import Layout, Sharing

PyTree = Any
Loss = Callable[[PyTree], tuple[Array, Array]]  # outputs -> (summed loss, number of terms that it is divided by)
ByLayer = dict[str, OutputSums]
OutputSumsOf = Callable[[Mapping[Path, list[Array]]], ByLayer]  # kernel -> output gradients at its uses, to their sums

# Folded into the key: for draws of rows apart from those of pseudo-targets, and for heads after the first.
_ROWS, _HEADS = 1, 2


class Estimate(NamedTuple):
    """What one batch gave.

    Attributes:
        loss: mean loss `[]`.
        gradients: of the mean loss, like params; None if they were left out.
        aux: the forward pass's auxiliary values.
        factors: layer name -> (A `[n_rows, n_rows]`, B `[d_out, d_out]`), diagonals `[n, 1]` in place of sides too
            wide; B is None without output factors; empty where none were asked for.
        uncaptured: layer name -> why it has no factors. It is static, so that an estimate may leave `jit`.
    """

    loss: Array
    gradients: PyTree
    aux: PyTree
    factors: dict[str, tuple[Array, Array | None]]
    uncaptured: Reasons


class Sums(NamedTuple):
    """Sums over one batch, not yet divided by any count. Those of several micro-batches add up to those of the batch.

    Attributes:
        loss: summed loss `[]`.
        n_terms: number of terms M of the loss `[]`.
        gradients: of the summed loss, like params; None if they were left out.
        inputs: layer name -> sums of its inputs.
        outputs: layer name -> sums of its output gradients; empty without output factors.
    """

    loss: Array
    n_terms: Array
    gradients: PyTree
    inputs: dict[str, InputSums]
    outputs: dict[str, OutputSums]

    def mean(self, aux: PyTree, uncaptured: Mapping[str, str]) -> Estimate:
        """The estimate that the sums make, with the forward pass's auxiliary values and what was not captured."""

        def per_term(sums: Array) -> Array:
            # In float32 at least: half precision holds neither a large number of terms nor its reciprocal.
            wide = at_least_float32(sums)
            return (wide / self.n_terms.astype(wide.dtype)).astype(sums.dtype)

        return Estimate(
            self.loss / self.n_terms,
            jax.tree.map(per_term, self.gradients),
            aux,
            {name: combined(sums, self.outputs.get(name), self.n_terms) for name, sums in self.inputs.items()},
            Reasons(uncaptured),
        )


def estimate(forward: Forward, loss: Loss, params: PyTree, **options: Any) -> Estimate:
    """Mean loss, its gradients, and the factors of `layers`; the arguments are those of `estimate_sums`."""
    sums, aux, uncaptured = estimate_sums(forward, loss, params, **options)
    return sums.mean(aux, uncaptured)


def estimate_sums(
    forward: Forward | Traced,
    loss: Loss,
    params: PyTree,
    *,
    layers: Sequence[Layer] | None = None,
    layout: Layout | None = None,
    sharing: Sharing = Sharing.REDUCE,
    with_gradients: bool = True,
    output_factors: bool = True,
    fisher: Fisher = Fisher.SAMPLED,
    geometry: Geometry | Sequence[Geometry] | None = None,
    weights: Array | Sequence[Array | None] | None = None,
    logits: Callable[[PyTree], Array | Sequence[Array]] | None = None,
    rows_per_width: int = 0,
    key: Array | None = None,
    axis_name: AxisNames | None = None,
    strict: bool = False,
) -> tuple[Sums, PyTree, dict[str, str]]:
    """Summed loss, its gradients, and the products that the factors of `layers` are made of.

    The loss's gradients cost one backward pass. The sampled Fisher costs one more, the exact Fisher one for each column
    of the output Hessian's root, the empirical Fisher none. All use one forward pass. A layer without factors causes a
    warning, which is shown once.

    Args:
        forward: params -> (outputs, auxiliary values); with layers, it may also be the result of `capture.trace`.
        loss: outputs -> (summed loss, number of terms M). Label smoothing in it changes only the factors of the
            empirical Fisher.
        layers: the layers to estimate factors for. `()`, or None without a layout, makes this a plain
            value-and-gradient.
        layout: the batch's leading axes.
        with_gradients: False leaves out the loss's gradients, and with them its backward pass unless the Fisher is
            empirical: for a program that needs factors alone.
        output_factors: False estimates A alone, from the forward pass of the loss: no pseudo-targets and no second
            backward pass, whatever the loss; the arguments `fisher`, `geometry` and `weights` then have no effect.
        geometry: the loss's geometry; not needed by the empirical Fisher. One for each head, if there are several.
        weights: loss weights, as for `fisher.sample_cotangent`; one for each head, if there are several.
        logits: outputs -> the logits that the geometry is of, or a sequence of several heads' whose losses add up; None
            where the outputs are the logits.
        rows_per_width: see `factors.input_sums`.
        key: random key for the pseudo-targets, and for which rows are taken.
        axis_name: name of the axis (or names) of `shard_map`, `pmap` or `vmap` along which the batch is split: the sums
            are then those of the whole batch, the auxiliary values each device's own. None gives each device's own.
        strict: whether a layer without factors is an error.

    Returns:
        The sums, the forward pass's auxiliary values, and layer name -> why it has no factors.

    Raises:
        ValueError: an argument is missing or of the wrong form, or in strict mode a layer has no factors.
    """
    params = vary(params, axis_name)
    if key is not None and axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))  # each device's own
    loss = checked_loss(loss)
    if layers is None and layout is not None:
        raise ValueError("a layout, but no layers: give layers, or `layers=()` on a step without new factors")
    if not layers:
        if isinstance(forward, Traced):
            raise ValueError("a traced forward pass, but no layers: give the forward function itself")
        sums, aux = _plain_sums(forward, loss, params, axis_name)
        return sum_over(sums, axis_name), aux, {}
    layout = _checked(layers, layout, sharing, output_factors, fisher, geometry, rows_per_width, key)
    traced = forward if isinstance(forward, Traced) else trace(forward, params)
    found, uncaptured = _with_factors(traced, params, layers, layout, fisher if output_factors else None, strict)
    captured = capture(traced, params, found, output_factors, axis_name, backward=with_gradients or output_factors)
    check_axes(captured.outputs, axis_name)
    summed, loss_pullback, n_terms = jax.vjp(loss, captured.outputs, has_aux=True)
    gradients: PyTree = None
    at_outputs: dict[Path, list[Array]] = {}
    if with_gradients or (output_factors and fisher is Fisher.EMPIRICAL):
        gradients, at_outputs = captured.pullback(loss_pullback(jnp.ones_like(summed))[0])
    row_key = jax.random.fold_in(key, _ROWS) if rows_per_width and key is not None else None
    outputs: ByLayer = {}
    if output_factors and found:
        heads = heads_of(captured.outputs, logits, geometry, weights, fisher, layout)
        output_sums_of = functools.partial(output_products, found, layout=layout, sharing=sharing)
        outputs = _output_sums(captured, heads, fisher, key, at_outputs, output_sums_of, axis_name)
    inputs = input_products(found, captured.inputs, layout, sharing, rows_per_width, row_key)
    sums = Sums(summed, n_terms, gradients if with_gradients else None, inputs, outputs)
    return sum_over(sums, axis_name), captured.aux, uncaptured


def _plain_sums(forward: Forward, loss: Loss, params: PyTree, axis_name: AxisNames | None) -> tuple[Sums, PyTree]:
    """Loss and gradients alone; and the forward pass's auxiliary values."""
    outputs, pullback, aux = jax.vjp(checked_forward(forward), params, has_aux=True)
    check_axes(outputs, axis_name)
    summed, loss_pullback, n_terms = jax.vjp(loss, outputs, has_aux=True)
    (gradients,) = pullback(loss_pullback(jnp.ones_like(summed))[0])
    return Sums(summed, n_terms, gradients, {}, {}), aux


def _with_factors(
    traced: Traced, params: PyTree, layers: Sequence[Layer], layout: Layout, fisher: Fisher | None, strict: bool
) -> tuple[dict[Path, Family], dict[str, str]]:
    """The layers that will have factors, by kernel; and layer name -> why another has none, of which it warns.

    Args:
        fisher: None for input factors alone.
    """
    found, uncaptured = families(traced.products, params, layers, output_gradients=fisher is not None)
    found, undescribed = with_described_rows(found, layout, fisher or Fisher.SAMPLED)
    uncaptured |= undescribed
    report(params, layers, uncaptured, left_out(traced.products, params, layers), strict)
    report_positions(found, layout)
    return found, uncaptured


def _checked(
    layers: Sequence[Layer],
    layout: Layout | None,
    sharing: Sharing,
    output_factors: bool,
    fisher: Fisher,
    geometry: Geometry | Sequence[Geometry] | None,
    rows_per_width: int,
    key: Array | None,
) -> Layout:
    """The layout, once all arguments fit together."""
    check_member("sharing", sharing, Sharing)
    check_member("fisher", fisher, Fisher)
    check_layers(layers)
    needs_geometry = output_factors and fisher is not Fisher.EMPIRICAL
    if layout is None or (geometry is None and needs_geometry):
        raise ValueError("factors need the batch's layout, and the loss's geometry unless the Fisher is empirical")
    if not isinstance(layout, Layout):
        raise ValueError(f"the layout is {layout!r}: give that of `batch_layout`, `row_layout` or `graph_layout`")
    if geometry is not None:
        check_geometry(geometry)
    if key is None and output_factors and fisher is Fisher.SAMPLED:
        raise ValueError("the sampled Fisher draws pseudo-targets at random: give a key, a new one for each estimate")
    if rows_per_width and key is None:
        raise ValueError("rows_per_width draws the rows at random: give a key")
    return layout


def _output_sums(
    captured: Captured,
    heads: Sequence[Head],
    fisher: Fisher,
    key: Array | None,
    at_outputs: Mapping[Path, list[Array]],
    output_sums_of: OutputSumsOf,
    axis_name: AxisNames | None,
) -> ByLayer:
    """The sums over the output gradients that the Fisher is made of.

    Heads have pseudo-targets independent of one another, so that one backward pass is enough for all of them.
    """
    if fisher is Fisher.EMPIRICAL:
        return output_sums_of(at_outputs)
    if fisher is Fisher.SAMPLED:
        assert key is not None  # by `_checked`
        keys = [key, *(jax.random.fold_in(key, _HEADS + i) for i in range(len(heads) - 1))]
        drawn = [
            head.to_outputs(sample_cotangent(head.geometry, head.logits, head.weights, own))
            for head, own in zip(heads, keys, strict=True)
        ]
        total = drawn[0] if len(drawn) == 1 else jax.tree.map(_added, *drawn)
        return output_sums_of(captured.pullback(total)[1])
    sums = [_summed_over_columns(captured, head, output_sums_of, axis_name) for head in heads]
    total_sums: ByLayer = sums[0] if len(sums) == 1 else jax.tree.map(lambda *each: sum(each), *sums)
    return total_sums


def _added(*cotangents: Array) -> Array:
    """Their sum; those of an integer output are of dtype float0, which knows no sum."""
    return cotangents[0] if cotangents[0].dtype == jax.dtypes.float0 else sum(cotangents[1:], cotangents[0])


def _summed_over_columns(
    captured: Captured, head: Head, output_sums_of: OutputSumsOf, axis_name: AxisNames | None
) -> ByLayer:
    def one(index: Array) -> ByLayer:
        cotangent = root_column(head.geometry, head.logits, head.weights, index)
        return output_sums_of(captured.pullback(head.to_outputs(cotangent))[1])

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, 0))
    indices = jnp.arange(n_root_columns(head.logits))
    total: ByLayer
    total, _ = jax.lax.scan(
        lambda sums, k: (jax.tree.map(jnp.add, sums, one(k)), None), vary(zeros, axis_name), indices
    )
    return total
