"""Adam in the eigenbasis of the Kronecker factors, and EK-FAC, as an optax gradient transformation.

    layers = find_layers(params)
    optimizer = eigenbasis_adam(layers, learning_rate=3e-3)
    state = optimizer.init(params)
    batch = estimate(forward, loss, params, layers=layers, layout=…, geometry=…, key=…)
    updates, state = optimizer.update(batch.gradients, state, params, factors=batch.factors, refresh=True)

On steps without new factors, call `estimate` without layers and `update` with `factors=None`. For EK-FAC also give
`bases=bases_by_layer(state, layers)` to `estimate`, and the `eigenvalues=batch.eigenvalues` that it then returns to
`update`.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from .eigenbasis import Bases, identity, refresh, rotate, rotate_back, transfer
from .groups import Group, Parts, group_by_shape, join, split, unstack
from .intake import (
    Average,
    Fallbacks,
    accumulate,
    averaged_values,
    clip_finite,
    count_false,
    finite_gradients,
    is_informed,
    no_average,
    no_factors,
    no_fallbacks,
)
from .layers import Layer
from .moments import lookahead, mean_squares
from .precondition import bounded_or_fallback
from .routing import routed, states_of
from .schedules import Scalar, schedulable

PyTree = Any


class Scaling(enum.Enum):
    """What divides the gradient in the eigenbasis.

    ADAM: the root of the running square of the mean gradient, as Adam does in the parameters' own axes.
    EKFAC: the damped eigenvalues of the Fisher in that basis, from the squares of per-example gradients.
    """

    ADAM = "adam"
    EKFAC = "ekfac"


class EigenbasisState(NamedTuple):
    """Complete at init, of constant shapes.

    Attributes:
        count: `[]` int32, updates made.
        fallbacks: how often a layer's new curvature or gradient was not used.
        factors: group name -> averages of (A, B).
        bases: group name -> its layers' eigenbases, as of the last refresh; the identity before there is one, and None
            for a side too wide, whose average then only records whether there was an estimate.
        eigenvalues: group name -> average of the Fisher's in those bases `[n_layers, n_rows, d_out]`; empty with
            `Scaling.ADAM`.
        first_moment: moving average of the gradient.
        second_moment: moving average of its square; a layer's matrix is in its eigenbasis.
    """

    count: Array  # type: ignore[assignment]  # optax's name for it, which hides the tuple's method
    fallbacks: Fallbacks
    factors: dict[str, tuple[Average, Average]]
    bases: dict[str, Bases]
    eigenvalues: dict[str, Average]
    first_moment: Parts
    second_moment: Parts


@schedulable("layers", "scaling", "full_refreshes", "mesh")
def eigenbasis_adam(
    layers: Sequence[Layer],
    *,
    learning_rate: Scalar,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.99,
    epsilon: Scalar = 1e-8,
    relative_epsilon: Scalar = 3e-4,
    weight_decay: Scalar = 0.0,
    grad_clip: Scalar | None = None,
    factor_decay: Scalar = 0.95,
    scaling: Scaling = Scaling.ADAM,
    damping: Scalar = 1e-3,
    kl_clip: Scalar = 1.0,
    fallback_rate: Scalar = 0.1,
    full_refreshes: int | None = None,
    mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NAdamW in the eigenbases of the layers' Kronecker factors. Every number may be a traced array, or a schedule.

    Defaults without a source are choices of this project.

    Args:
        layers: the layers with factors, from `find_layers`; every other parameter has NAdamW in its own axes.
        learning_rate: multiplies the whole update.
        beta1, beta2, epsilon: NAdamW's; 1e-8 as in Kingma and Ba, 2015.
        relative_epsilon: added to the root of a layer's second moments, in units of their root mean square: where the
            gradient is zero but for rounding, as in a factor's null space, Adam would make full steps of the noise.
        weight_decay: decoupled, multiplied by the learning rate.
        grad_clip: largest global norm of the gradient; None for no bound.
        factor_decay: decay of the factors' moving average, and of EK-FAC's eigenvalues; 0.95 as in SOAP.
        scaling: what divides the gradient in the eigenbasis; the next three arguments are EK-FAC's alone.
        damping: λ added to the eigenvalues.
        kl_clip: see `kfac`.
        fallback_rate: multiplies NAdamW's update where it stands in for EK-FAC's.
        full_refreshes: refreshes after so many updates are a step of power iteration, as in SOAP; None makes
            eigendecompositions of all.
        mesh: devices, on one axis, to spread the refreshes over.
    """
    options = _Options(
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        relative_epsilon=relative_epsilon,
        factor_decay=factor_decay,
        scaling=scaling,
        damping=damping,
        kl_clip=kl_clip,
        fallback_rate=fallback_rate,
        full_refreshes=full_refreshes,
    )

    def build(layers: Sequence[Layer]) -> optax.GradientTransformationExtraArgs:
        return optax.chain(
            optax.identity() if grad_clip is None else clip_finite(layers, grad_clip),
            _scale_by_eigenbasis(layers, options, mesh),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )

    return routed(layers, build)


class _Options(NamedTuple):
    """Of `eigenbasis_adam`, under the same names."""

    beta1: Scalar
    beta2: Scalar
    epsilon: Scalar
    relative_epsilon: Scalar
    factor_decay: Scalar
    scaling: Scaling
    damping: Scalar
    kl_clip: Scalar
    fallback_rate: Scalar
    full_refreshes: int | None


def _scale_by_eigenbasis(
    layers: Sequence[Layer], options: _Options, mesh: Mesh | None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `eigenbasis_adam`.

    `update` takes `factors` (layer name -> (A, B) of this batch, or None), `eigenvalues` (layer name -> the Fisher's in
    the state's bases, for EK-FAC) and `refresh` (static), whether to make new bases.

    Source: George et al., "Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis", 2018; Vyas et
    al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024, for Adam in a slowly changing basis.
    """
    groups = group_by_shape(layers)

    def init(params: PyTree) -> EigenbasisState:
        has_eigenvalues = options.scaling is Scaling.EKFAC
        zeros = jax.tree.map(jnp.zeros_like, split(params, groups))
        return EigenbasisState(
            count=jnp.zeros([], jnp.int32),
            fallbacks=no_fallbacks(),
            factors=no_factors(groups),
            bases={group.name: identity(*group.factor_shapes) for group in groups},
            eigenvalues={group.name: no_average(*group.shape) for group in groups if has_eigenvalues},
            first_moment=zeros,
            second_moment=jax.tree.map(jnp.copy, zeros),  # a step that is given its buffers needs each once
        )

    def update(
        gradients: PyTree,
        state: EigenbasisState,
        params: PyTree | None = None,
        *,
        factors: Mapping[str, tuple[Array, Array]] | None = None,
        eigenvalues: Mapping[str, Array] | None = None,
        refresh: bool = False,
        **_: Any,
    ) -> tuple[PyTree, EigenbasisState]:
        del params
        if factors and options.scaling is Scaling.EKFAC and set(factors) != set(eigenvalues or {}):
            raise ValueError("EK-FAC needs the eigenvalues of every layer with factors: give `estimate` the bases")
        parts, n_lost = finite_gradients(split(gradients, groups))
        state = state._replace(count=state.count + 1, fallbacks=state.fallbacks.plus(n_faulty=n_lost))
        if factors:
            state = _with_estimates(state, groups, factors, eigenvalues or {}, options.factor_decay)
        if refresh:
            state = _refresh(state, options.full_refreshes, mesh)
        state, ahead, squares = _moments(state, parts, options)
        updates = _adam(ahead, squares, options)
        if options.scaling is Scaling.EKFAC:
            updates = _ekfac(state, updates, ahead, options)
        back = {name: rotate_back(stack, state.bases[name]) for name, stack in updates.matrices.items()}
        return join(gradients, groups, updates._replace(matrices=back)), state

    return optax.GradientTransformationExtraArgs(init, update)


def eigenbasis_state(optimizer_state: PyTree) -> EigenbasisState:
    """The eigenbases and moments in the state of `eigenbasis_adam`."""
    state: EigenbasisState = states_of(optimizer_state, EigenbasisState)[0]
    return state


def bases_by_layer(optimizer_state: PyTree, layers: Sequence[Layer]) -> dict[str, Bases]:
    """Layer name -> its eigenbases in the state of `eigenbasis_adam`.

    Raises:
        ValueError: the state is of other layers, as where `optax.masked` takes some of them, or their biases, out.
    """
    groups, bases = group_by_shape(layers), eigenbasis_state(optimizer_state).bases
    due = {group.name: identity(*group.factor_shapes) for group in groups}
    if jax.tree.map(jnp.shape, due) != jax.tree.map(jnp.shape, bases):
        raise ValueError(
            "the state's bases are those of other layers: give the layers that this optimizer preconditions"
        )
    return unstack(groups, bases)


def _with_estimates(
    state: EigenbasisState,
    groups: Sequence[Group],
    factors: Mapping[str, tuple[Array, Array]],
    eigenvalues: Mapping[str, Array],
    decay: Scalar,
) -> EigenbasisState:
    if not state.eigenvalues:
        averages, unused = accumulate(state.factors, groups, factors, decay)
        return state._replace(factors=averages, fallbacks=state.fallbacks.plus(*unused))
    estimates = {name: (*pair, eigenvalues[name]) for name, pair in factors.items()}
    averages, unused = accumulate(_with_eigenvalues(state), groups, estimates, decay)
    return state._replace(
        factors={name: triple[:2] for name, triple in averages.items()},
        eigenvalues={name: triple[2] for name, triple in averages.items()},
        fallbacks=state.fallbacks.plus(*unused),
    )


def _with_eigenvalues(state: EigenbasisState) -> dict[str, tuple[Average, Average, Average]]:
    return {name: (*pair, state.eigenvalues[name]) for name, pair in state.factors.items()}


def _refresh(state: EigenbasisState, full_refreshes: int | None, mesh: Mesh | None) -> EigenbasisState:
    is_full = None if full_refreshes is None else state.count <= full_refreshes
    new = refresh(averaged_values(state.factors), state.bases, is_full, mesh)

    def transferred(matrices: Mapping[str, Array]) -> dict[str, Array]:
        return {name: transfer(stack, new.overlaps[name]) for name, stack in matrices.items()}

    eigenvalues = transferred(averaged_values(state.eigenvalues))
    return state._replace(
        bases=new.bases,
        eigenvalues={name: old._replace(value=eigenvalues[name]) for name, old in state.eigenvalues.items()},
        second_moment=state.second_moment._replace(matrices=transferred(state.second_moment.matrices)),
        fallbacks=state.fallbacks.plus(n_faulty=count_false(new.is_good.values())),
    )


def _moments(state: EigenbasisState, gradients: Parts, options: _Options) -> tuple[EigenbasisState, Parts, Parts]:
    """The new state, and in the eigenbases, without bias: the first moment a step ahead (Nesterov), and the second."""
    first, ahead = lookahead(state.first_moment, gradients, options.beta1, state.count)
    gradients, ahead = (
        parts._replace(matrices={name: rotate(stack, state.bases[name]) for name, stack in parts.matrices.items()})
        for parts in (gradients, ahead)
    )
    second, squares = mean_squares(state.second_moment, gradients, options.beta2, state.count)
    return state._replace(first_moment=first, second_moment=second), ahead, squares


def _adam(ahead: Parts, squares: Parts, options: _Options) -> Parts:
    updates: Parts = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + options.epsilon), ahead, squares)
    turned = {}
    for name, square in squares.matrices.items():
        noise = options.epsilon + options.relative_epsilon * jnp.sqrt(square.mean((1, 2), keepdims=True))
        turned[name] = ahead.matrices[name] / (jnp.sqrt(square) + noise)
    return updates._replace(matrices=turned)


def _ekfac(state: EigenbasisState, adam: Parts, ahead: Parts, options: _Options) -> Parts:
    """EK-FAC's steps in the eigenbases, bounded together; Adam's at a lower rate for what has no eigenvalues."""
    fallback = jax.tree.map(lambda u: options.fallback_rate * u, adam)
    steps = {
        name: gradient / (state.eigenvalues[name].value + options.damping) for name, gradient in ahead.matrices.items()
    }
    has_curvature = is_informed(_with_eigenvalues(state))
    return bounded_or_fallback(steps, ahead, has_curvature, fallback, jnp.asarray(options.kl_clip))
