"""Lets the optimisers work inside `optax.masked` and `optax.multi_transform`, which hide parameters from them.

These take leaves out of the parameters and gradients that an optimiser sees. A layer whose kernel is taken out is none
of this optimiser's; one whose bias is taken out is a layer without a bias.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from .arguments import check_layers
from .coverage import CurvatureWarning
from .layers import Layer, Path, check_names, is_diagonal, named_leaves

PyTree = Any


class NotGiven:
    """The default of an argument that must be given, if only as None."""


NOT_GIVEN = NotGiven()


def routed(
    layers: Sequence[Layer], build: Callable[[tuple[Layer, ...]], optax.GradientTransformationExtraArgs]
) -> optax.GradientTransformationExtraArgs:
    """The optimiser that `build` makes of those `layers` whose kernels are in the tree that it is given.

    It refuses complex parameters, and factors of layers that are not in `layers`. Its `update` ignores factors of
    layers that are not in its tree. `refresh` (static) says whether to recompute the preconditioner from the averaged
    factors; by default, whenever `factors` are given.
    """
    check_layers(layers)
    if not layers:
        warnings.warn(
            "the optimizer has no layers, so that nothing gets curvature. `find_layers` knows the names of Flax alone; "
            "`trace_layers` finds the layers of any model, and `describe` says why there are none",
            CurvatureWarning,
            stacklevel=4,
        )

    def init(params: PyTree) -> PyTree:
        check_names(params)
        for path, leaf in named_leaves(params).items():
            if jnp.iscomplexobj(leaf):
                raise ValueError(
                    f"the parameter {'.'.join(path)} is complex: give another optimizer to complex parameters, by "
                    "`optax.multi_transform`"
                )
        with _usual_promotion():
            return build(layers_in(layers, params)).init(params)

    def update(
        gradients: PyTree,
        state: PyTree,
        params: PyTree | None = None,
        *,
        factors: Mapping[str, tuple[Array, Array]] | None | NotGiven = NOT_GIVEN,
        refresh: bool | None = None,
        **options: Any,
    ) -> tuple[PyTree, PyTree]:
        if gradients is None:
            raise ValueError("the gradients are None: `estimate(..., with_gradients=False)` makes none")
        if isinstance(refresh, jax.core.Tracer):
            raise ValueError("refresh is a traced value; it must be a bool: use `jax.lax.cond`, or `static_argnames`")
        own = layers_in(layers, gradients)
        own_factors = _own_factors(_given(factors, layers), own)
        refresh = bool(own_factors) if refresh is None else refresh
        options |= {"factors": own_factors, "refresh": refresh}
        with _usual_promotion():
            updates, state = build(own).update(gradients, state, params, **options)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


@contextlib.contextmanager
def _usual_promotion() -> Iterator[None]:
    """JAX's default promotion of dtypes and ranks, whatever the user's code is checked for."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def layers_in(layers: Sequence[Layer], tree: PyTree) -> tuple[Layer, ...]:
    """The layers whose kernel is in a parameter-like tree. If a layer's bias is not in it, the layer has no bias.

    Raises:
        ValueError: a kernel or bias is missing from a tree that nothing was taken out of, or the layers are some, but
            not all, of those that a scan stacks in one kernel.
    """
    known = named_leaves(tree)
    missing = [".".join(path) for layer in layers for path in layer.leaf_paths if path not in known]
    if missing and not states_of(tree, optax.MaskedNode):
        raise ValueError(f"the parameters have no {', '.join(missing)}: find the layers of these parameters")
    own = [layer for layer in layers if layer.kernel_path in known]
    for path, indices in _stacked(own).items():
        if len(indices) < known[path].shape[0]:
            given = f"{len(indices)} of the {known[path].shape[0]} layers that are stacked in {'.'.join(path)}"
            raise ValueError(f"the optimizer has {given}: give it all of them, or none")
    return tuple(dataclasses.replace(layer, has_bias=layer.bias_path in known) for layer in own)


def _stacked(layers: Sequence[Layer]) -> dict[Path, set[int]]:
    """Kernel -> indices of the layers, of those that a scan stacks."""
    found: dict[Path, set[int]] = {}
    for layer in layers:
        if layer.index is not None:
            found.setdefault(layer.kernel_path, set()).add(layer.index)
    return found


def states_of(optimizer_state: PyTree, kind: type) -> list[Any]:
    """The nodes of one kind in an optimiser's state, however it is wrapped (chains, masks, schedules, accumulation)."""
    nodes = jax.tree.leaves(optimizer_state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]


def _given(factors: Mapping[str, PyTree] | None | NotGiven, layers: Sequence[Layer]) -> Mapping[str, PyTree]:
    if isinstance(factors, NotGiven):
        warnings.warn(
            "the optimizer's update was called without `factors`, so that no layer gets curvature from it: pass "
            "factors=estimate(...).factors, or factors=None on a step without new ones. Flax's "
            "TrainState.apply_gradients does not pass them on: call state.tx.update",
            CurvatureWarning,
            stacklevel=3,
        )
        return {}
    if not isinstance(factors, Mapping | None):
        raise ValueError(f"factors is a {type(factors).__name__}: give `estimate(...).factors`, or None")
    unknown = sorted(set(factors or {}) - {layer.name for layer in layers})
    if unknown:
        raise ValueError(
            f"factors of layers that the optimizer does not have: {', '.join(unknown)}; give `estimate` and the "
            "optimizer the same layers, also inside `optax.multi_transform`"
        )
    return factors or {}


def _own_factors(factors: Mapping[str, PyTree], own: Sequence[Layer]) -> dict[str, tuple[Array, Array | None]]:
    """The factors of the optimiser's own layers; A without the bias's row and column where the layer has no bias."""
    found = {}
    for layer in own:
        if layer.name in factors:
            a, b = factors[layer.name]
            if not layer.has_bias and len(a) == layer.n_rows + 1:
                a = a[:-1] if is_diagonal(a.shape) else a[:-1, :-1]
            found[layer.name] = a, b
    return found
