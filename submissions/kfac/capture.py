"""Layer inputs and output gradients of a model, without a change to the model.

The forward pass is traced once, its products with the layers' kernels are found in the jaxpr, and the jaxpr is
evaluated: the products' inputs are read, and a zero *perturbation* is added to their outputs, whose gradient is the
layer's output gradient. One forward pass serves any number of backward passes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr

from .arguments import checked_forward
from .convolution import Convolution, patches
from .devices import AxisNames, vary
from .finder import Products, find_products
from .layers import Layer, Path, leaf_path
from .products import Key, Kind, Product
from .replay import replay

PyTree = Any
Forward = Callable[[PyTree], tuple[PyTree, PyTree]]  # params -> (outputs, auxiliary values)


class KernelUse(NamedTuple):
    """One use of a family's layers in the forward pass.

    Attributes:
        product: where the kernel meets the input.
        is_transposed: whether the kernel's outputs are contracted, as by an embedding's `attend`.
    """

    product: Product
    is_transposed: bool

    @property
    def positions(self) -> tuple[int, ...]:
        """Lengths of the product's own axes of positions `[lead, *sites]`, without time."""
        shape, axes = self.product.output.shape, self.product.output_axes
        rows = axes[:-1] if self.product.convolution else self._rows(len(shape), axes)
        return tuple(shape[axis] for axis in rows)

    @property
    def time(self) -> tuple[int, ...]:
        """Lengths of the scans that use the kernel again at each step."""
        pairs = zip(self.product.lengths, self.product.is_sliced, strict=True)
        return tuple(length for length, is_sliced in pairs if not is_sliced)

    @property
    def raw_convolution(self) -> Convolution | None:
        """How to read the arranged input as patches; None where it is no convolution's, or patches already."""
        return None if self.time else self.product.convolution

    def arrange_input(self, x: Array) -> Array:
        """An equation's input, with the scans' axes in front, as `[n_layers, lead, *time, *sites, d]`.

        There is an axis `n_layers` only where a scan stacks layers. A convolution's input ends with
        `[*spatial, channels]`, or is patches where there is an axis of time. Indices of a lookup have no axis d.
        """
        product, n_scans = self.product, len(self.product.lengths)
        if product.convolution is not None:
            x = x.transpose(*range(n_scans), *(n_scans + axis for axis in product.input_axes))
            if not self.time:
                return x
            merged = patches(x.reshape(-1, *x.shape[n_scans + 1 :]), product.convolution)
            return self._time_behind(merged.reshape(*x.shape[: n_scans + 1], *merged.shape[1:]))
        return self._time_behind(self._merged(x, product.input_axes))

    def arrange_gradient(self, gradient: Array) -> Array:
        """An output gradient in the same order `[n_layers, lead, *time, *sites, d]`."""
        product, n_scans = self.product, len(self.product.lengths)
        if product.columns is not None:
            axis, start, stop = product.columns
            gradient = jax.lax.slice_in_dim(gradient, start, stop, axis=n_scans + axis)
        if product.kind is Kind.CONVOLUTION:
            return self._time_behind(gradient.transpose(*range(n_scans), *(n_scans + a for a in product.output_axes)))
        return self._time_behind(self._merged(gradient, product.output_axes))

    def _merged(self, x: Array, axes: Sequence[int]) -> Array:
        """The axes behind all others and merged; of a lookup's indices dropped."""
        n_scans = len(self.product.lengths)
        rows = self._rows(x.ndim - n_scans, axes)
        x = x.transpose(*range(n_scans), *(n_scans + axis for axis in (*rows, *axes)))
        is_index = not jnp.issubdtype(x.dtype, jnp.inexact) and self.product.kind is Kind.LOOKUP
        if is_index and self.product.last_index is not None:
            x = jnp.clip(x, 0, self.product.last_index)
        features = () if is_index else (math.prod(x.shape[n_scans + len(rows) :]),)
        return x.reshape(*x.shape[: n_scans + len(rows)], *features)

    def _rows(self, n_axes: int, axes: Sequence[int]) -> list[int]:
        return [axis for axis in range(n_axes) if axis not in axes]

    def _time_behind(self, x: Array) -> Array:
        """`[*scans, lead, ...]` -> `[layers, lead, *time, ...]`."""
        sliced = [i for i, is_sliced in enumerate(self.product.is_sliced) if is_sliced]
        time = [i for i, is_sliced in enumerate(self.product.is_sliced) if not is_sliced]
        n_scans = len(self.product.lengths)
        return x.transpose(*sliced, n_scans, *time, *range(n_scans + 1, x.ndim)) if time else x


class Family(NamedTuple):
    """The layers of one kernel: one, or those that a scan over depth stacks.

    Attributes:
        layers: in the order given.
        uses: of the kernel in the forward pass.
    """

    layers: tuple[Layer, ...]
    uses: tuple[KernelUse, ...]

    def of_layers(self, x: Array) -> Array:
        """These layers' rows `[n_layers, ...]` of a captured array: all, unless a scan stacks more layers in it."""
        indices = [layer.index for layer in self.layers]
        return x if indices in ([None], list(range(len(x)))) else x[jnp.array(indices)]


class Traced(NamedTuple):
    """A forward pass as a jaxpr.

    Attributes:
        closed: the jaxpr, from the parameters' leaves to those of (outputs, auxiliary values).
        results: these as a tree of shapes.
        products: of the parameters.
    """

    closed: ClosedJaxpr
    results: PyTree
    products: Products


class Captured(NamedTuple):
    """What one forward pass gave.

    Attributes:
        outputs: the model's outputs.
        aux: the forward pass's auxiliary values.
        inputs: kernel -> its input at each use, see `KernelUse.arrange_input`.
        pullback: cotangent of `outputs` -> (gradient like params, kernel -> output gradients at each use, see
            `KernelUse.arrange_gradient`); may be called more than once.
    """

    outputs: PyTree
    aux: PyTree
    inputs: dict[Path, list[Array]]
    pullback: Callable[[PyTree], tuple[PyTree, dict[Path, list[Array]]]]


def trace(forward: Forward, params: PyTree) -> Traced:
    """Trace `forward(params)` and find its products.

    Raises:
        ValueError: it does not return (outputs, auxiliary values).
    """
    # Of a new function each time: JAX remembers a function's jaxpr, with the values that it had from outside.
    closed, results = jax.make_jaxpr(checked_forward(forward), return_shape=True)(params)
    leaves = [leaf_path(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return Traced(closed, results, find_products(closed, leaves, len(jax.tree.leaves(results[0]))))


def families(
    products: Products, params: PyTree, layers: Sequence[Layer], output_gradients: bool = True
) -> tuple[dict[Path, Family], dict[str, str]]:
    """The layers that the forward pass uses as linear layers, by kernel; and layer name -> why another is not one.

    Without `output_gradients` the transposed uses of an embedding are left out, as their inputs make B, not A.
    """
    known = {leaf_path(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
    found: dict[Path, Family] = {}
    reasons: dict[str, str] = {}
    for layer in layers:
        uses, reason = _uses(products, known, layer)
        if not output_gradients:
            uses = tuple(use for use in uses if not use.is_transposed)
            only_transposed = "it is only used transposed, as by `attend`: that use's input factor is of the outputs"
            reason = reason or (None if uses else only_transposed)
        if reason:
            reasons[layer.name] = reason
        else:
            others = found[layer.kernel_path].layers if layer.kernel_path in found else ()
            found[layer.kernel_path] = Family((*others, layer), uses)
    return found, reasons


def capture(
    traced: Traced,
    params: PyTree,
    by_kernel: Mapping[Path, Family],
    output_gradients: bool = True,
    axis_name: AxisNames | None = None,
    *,
    backward: bool = True,
) -> Captured:
    """Carry out a traced forward pass once, capturing inputs, and prepare its backward passes.

    Args:
        output_gradients: False does not perturb the products; the pullback gives the gradient like params alone.
        backward: False prepares no backward pass, which saves tracing it; the pullback is then an error.
    """
    products = {use.product.key: use.product for family in by_kernel.values() for use in family.uses}
    perturbed = products if output_gradients else {}
    zeros = {key: jnp.zeros((*p.lengths, *p.output.shape), p.output.dtype) for key, p in perturbed.items()}
    structure = jax.tree.structure(traced.results)

    def run(p: PyTree, perturbations: dict[Key, Array]) -> tuple[PyTree, tuple[PyTree, dict[Key, Array]]]:
        results, inputs = replay(traced.closed.jaxpr, traced.closed.consts, jax.tree.leaves(p), products, perturbations)
        outputs, aux = jax.tree.unflatten(structure, results)
        return outputs, (aux, inputs)

    if backward:
        outputs, vjp, (aux, inputs) = jax.vjp(run, params, vary(zeros, axis_name), has_aux=True)
    else:
        (outputs, (aux, inputs)), vjp = run(params, {}), _no_backward

    def pullback(cotangent: PyTree) -> tuple[PyTree, dict[Path, list[Array]]]:
        gradient, at_outputs = vjp(jax.tree.map(_cast_like, cotangent, outputs))
        arranged = {
            kernel: [family.of_layers(use.arrange_gradient(at_outputs[use.product.key])) for use in family.uses]
            for kernel, family in by_kernel.items()
            if output_gradients
        }
        return gradient, arranged

    arranged = {
        kernel: [family.of_layers(use.arrange_input(inputs[use.product.key])) for use in family.uses]
        for kernel, family in by_kernel.items()
    }
    return Captured(outputs, aux, arranged, pullback)


def _no_backward(cotangent: PyTree) -> Any:
    raise ValueError("this forward pass was captured without a backward pass")


def _cast_like(cotangent: Array, output: Array) -> Array:
    """The cotangent in the output's dtype; of an integer output it is of dtype float0, and stays as it is."""
    return cotangent.astype(output.dtype) if jnp.issubdtype(output.dtype, jnp.inexact) else cotangent


def _uses(products: Products, known: set[Path], layer: Layer) -> tuple[tuple[KernelUse, ...], str | None]:
    """A layer's uses; or why these are not those of a linear layer."""
    kernel, bias = layer.kernel_path, layer.bias_path
    missing = [path for path in layer.leaf_paths if path not in known]
    if missing:
        return (), f"the parameters have no leaf {'.'.join(missing[0])}; were they meant for another tree?"
    if kernel in products.problems:
        return (), f"its {layer.kernel} goes into {products.problems[kernel]}, not into linear layers' products alone"
    if kernel not in products.by_leaf:
        return (), "the forward pass's outputs do not depend on it"
    uses = []
    for product in products.by_leaf[kernel]:
        use = _use(product, layer)
        if isinstance(use, str):
            return (), use
        uses.append(use)
    if not layer.is_embedding and all(use.is_transposed for use in uses):
        return (), f"its inputs meet the axes {layer.axes[1]} of its kernel; find the layers by `trace_layers`"
    if bias is not None and products.bias_of(kernel) != bias:
        return (), _bias_reason(products, kernel, bias, layer)
    return tuple(uses), None


def _use(product: Product, layer: Layer) -> KernelUse | str:
    """A layer's use; or why this is not that of a linear layer."""
    inputs, outputs = layer.axes
    if any(product.is_sliced) != (layer.index is not None):
        stacked = "a scan slices its kernel" if any(product.is_sliced) else "no scan slices its kernel"
        return f"{stacked}, unlike that of the layer given; find the layers by `trace_layers`"
    if product.contracted != inputs and not (not layer.has_bias and product.contracted == outputs):
        return (
            f"its inputs meet the axes {product.contracted} of its kernel, not {inputs}; "
            "find the layers by `trace_layers`"
        )
    use = KernelUse(product, product.contracted != inputs)
    if not jnp.issubdtype(product.output.dtype, jnp.floating):
        return f"its product is {product.output.dtype.name}, and factors are of real numbers"
    if not use.positions:
        return "its input has no axis of examples"
    return use


def _bias_reason(products: Products, kernel: Path, bias: Path, layer: Layer) -> str:
    all_uses = {use for product in products.by_leaf[kernel] for use in products.consumers[product.output_key]}
    consumers = sorted(use for use in all_uses if isinstance(use, str))
    if consumers:
        return f"its product goes into {', '.join(consumers)}, not into the sum with its {layer.bias} alone"
    if bias in products.problems:
        return f"its {layer.bias} goes into {products.problems[bias]}, not into the sum with its product alone"
    if products.is_added_elsewhere(bias, {product.output_key for product in products.by_leaf[kernel]}):
        return f"its {layer.bias} is added to another kernel's product too"
    return f"its {layer.bias} is not added to each of its products"
