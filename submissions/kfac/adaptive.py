"""Adam in the eigenbasis of the Kronecker factors, and EK-FAC, as an optax gradient transformation.

    layers = find_layers(params)
    optimizer = eigenbasis_adam(layers, learning_rate=3e-3)
    state = optimizer.init(params)
    batch = estimate(forward, loss, params, layers=layers, layout=…, geometry=…, key=…)
    updates, state = optimizer.update(batch.gradients, state, params, factors=batch.factors, refresh=Refresh.FULL)

Later refreshes are cheap with `Refresh.POWER`. On steps without new factors, call `estimate` without layers and
`update` with gradients alone. For EK-FAC also give `bases=bases_by_layer(state, layers)` to `estimate`, and the
`eigenvalues=batch.eigenvalues` that come of it to `update`.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from .eigenbasis import Bases, Refresh, identity, refresh, rotate, rotate_back, transfer
from .groups import Group, Parts, for_each, group_by_shape, join, split, unstack
from .intake import (
    Average,
    Fallbacks,
    accumulate,
    clip_finite,
    count_false,
    finite_gradients,
    is_informed,
    no_average,
    no_factors,
    no_fallbacks,
    values,
)
from .layers import Layer
from .trust_region import kl_clip as kl_clip_factor

PyTree = Any
Scalar = float | Array


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
        fallbacks: times that a layer went without its new curvature or gradient.
        factors: group name -> averages of (A, B).
        bases: group name -> its layers' eigenbases, as of the last refresh; the identity before there is one, and None
            for a side too wide, whose average then only tells whether estimates were informative.
        eigenvalues: group name -> average of the Fisher's in those bases `[n_layers, n_rows, d_out]`; empty with
            `Scaling.ADAM`.
        first_moment: moving average of the gradient.
        second_moment: moving average of its square; a layer's matrix is in its eigenbasis.
    """

    count: Array
    fallbacks: Fallbacks
    factors: dict[str, tuple[Average, Average]]
    bases: dict[str, Bases]
    eigenvalues: dict[str, Average]
    first_moment: Parts
    second_moment: Parts


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
    mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NAdamW in the eigenbases of the layers' Kronecker factors. Every number may be a traced array.

    Args:
        layers: the layers with factors, from `find_layers`; every other parameter has NAdamW in its own axes.
        learning_rate: multiplies the whole update.
        beta1, beta2, epsilon: NAdamW's.
        relative_epsilon: added to the root of a layer's second moments, in units of their root mean square: where the
            gradient is zero but for rounding, as in a factor's null space, Adam would make full steps of the noise.
        weight_decay: decoupled, multiplied by the learning rate.
        grad_clip: largest global norm of the gradient; None for no bound.
        factor_decay: decay of the factors' moving average, and of EK-FAC's eigenvalues.
        scaling: what divides the gradient in the eigenbasis; the arguments below are EK-FAC's alone.
        damping: λ added to the eigenvalues.
        kl_clip: see `kfac`.
        fallback_rate: multiplies NAdamW's update where it stands in for EK-FAC's.
        mesh: devices, on one axis, to spread the refreshes over.
    """
    return optax.chain(
        optax.identity() if grad_clip is None else clip_finite(layers, grad_clip),
        scale_by_eigenbasis(
            layers,
            beta1,
            beta2,
            epsilon,
            relative_epsilon,
            factor_decay,
            scaling,
            damping,
            kl_clip,
            fallback_rate,
            mesh,
        ),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def scale_by_eigenbasis(
    layers: Sequence[Layer],
    beta1: Scalar,
    beta2: Scalar,
    epsilon: Scalar,
    relative_epsilon: Scalar,
    factor_decay: Scalar,
    scaling: Scaling,
    damping: Scalar,
    kl_clip: Scalar,
    fallback_rate: Scalar,
    mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `eigenbasis_adam`.

    `update` takes `factors` (layer name -> (A, B) of this batch, or None), `eigenvalues` (layer name -> the Fisher's in
    the state's bases, for EK-FAC) and `refresh` (static; None leaves the bases).

    Source: George et al., "Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis", 2018; Vyas et
    al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024, for Adam in a slowly changing basis.
    """
    groups = group_by_shape(layers)

    def init(params: PyTree) -> EigenbasisState:
        has_eigenvalues = scaling is Scaling.EKFAC
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
        refresh: Refresh | None = None,
    ) -> tuple[PyTree, EigenbasisState]:
        del params
        if factors and scaling is Scaling.EKFAC and set(factors) != set(eigenvalues or {}):
            raise ValueError("EK-FAC needs the eigenvalues of every layer with factors: give `estimate` the bases")
        parts, n_lost = finite_gradients(split(gradients, groups))
        state = state._replace(count=state.count + 1, fallbacks=state.fallbacks.plus(n_faulty=n_lost))
        if factors:
            state = _learn(state, groups, factors, eigenvalues, factor_decay)
        if refresh is not None:
            state = _refresh(state, refresh, mesh)
        state, ahead, squares = _moments(state, parts, beta1, beta2)
        updates = _adam(ahead, squares, epsilon, relative_epsilon)
        if scaling is Scaling.EKFAC:
            updates = _ekfac(state, updates, ahead, damping, kl_clip, fallback_rate)
        back = {name: rotate_back(stack, state.bases[name]) for name, stack in updates.matrices.items()}
        return join(gradients, groups, updates._replace(matrices=back)), state

    return optax.GradientTransformationExtraArgs(init, update)


def scale_state(optimizer_state: PyTree) -> EigenbasisState:
    """The eigenbases and moments in the state of `eigenbasis_adam`."""
    return next(part for part in optimizer_state if isinstance(part, EigenbasisState))


def bases_by_layer(optimizer_state: PyTree, layers: Sequence[Layer]) -> dict[str, Bases]:
    """Layer name -> its eigenbases in the state of `eigenbasis_adam`."""
    return unstack(group_by_shape(layers), scale_state(optimizer_state).bases)


def _learn(
    state: EigenbasisState, groups: Sequence[Group], factors: Mapping, eigenvalues: Mapping, decay: Scalar
) -> EigenbasisState:
    if not state.eigenvalues:
        averages, left_out = accumulate(state.factors, groups, factors, decay)
        return state._replace(factors=averages, fallbacks=state.fallbacks.plus(*left_out))
    estimates = {name: (*pair, eigenvalues[name]) for name, pair in factors.items()}
    averages, left_out = accumulate(_with_eigenvalues(state), groups, estimates, decay)
    return state._replace(
        factors={name: triple[:2] for name, triple in averages.items()},
        eigenvalues={name: triple[2] for name, triple in averages.items()},
        fallbacks=state.fallbacks.plus(*left_out),
    )


def _with_eigenvalues(state: EigenbasisState) -> dict[str, tuple[Average, Average, Average]]:
    return {name: (*pair, state.eigenvalues[name]) for name, pair in state.factors.items()}


def _refresh(state: EigenbasisState, kind: Refresh, mesh: Mesh | None) -> EigenbasisState:
    new = refresh(values(state.factors), state.bases, kind, mesh)

    def transferred(matrices: Mapping[str, Array]) -> dict[str, Array]:
        return {name: transfer(stack, new.overlaps[name]) for name, stack in matrices.items()}

    eigenvalues = transferred(values(state.eigenvalues))
    return state._replace(
        bases=new.bases,
        eigenvalues={name: old._replace(value=eigenvalues[name]) for name, old in state.eigenvalues.items()},
        second_moment=state.second_moment._replace(matrices=transferred(state.second_moment.matrices)),
        fallbacks=state.fallbacks.plus(n_faulty=count_false(new.is_good.values())),
    )


def _moments(
    state: EigenbasisState, gradients: Parts, beta1: Scalar, beta2: Scalar
) -> tuple[EigenbasisState, Parts, Parts]:
    """The new state, and in the eigenbases, without bias: the first moment a step ahead (Nesterov), and the second."""
    first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.first_moment, gradients)
    here, ahead = (1 - beta1**n for n in (state.count, state.count + 1))
    lookahead = jax.tree.map(lambda m, g: beta1 * m / ahead + (1 - beta1) * g / here, first, gradients)
    gradients, lookahead = (
        parts._replace(matrices={name: rotate(stack, state.bases[name]) for name, stack in parts.matrices.items()})
        for parts in (gradients, lookahead)
    )
    second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.second_moment, gradients)
    squares = jax.tree.map(lambda v: v / (1 - beta2**state.count), second)
    return state._replace(first_moment=first, second_moment=second), lookahead, squares


def _adam(ahead: Parts, squares: Parts, epsilon: Scalar, relative_epsilon: Scalar) -> Parts:
    updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), ahead, squares)
    turned = {}
    for name, square in squares.matrices.items():
        noise = epsilon + relative_epsilon * jnp.sqrt(square.mean((1, 2), keepdims=True))
        turned[name] = ahead.matrices[name] / (jnp.sqrt(square) + noise)
    return updates._replace(matrices=turned)


def _ekfac(
    state: EigenbasisState, adam: Parts, ahead: Parts, damping: Scalar, kl_clip: Scalar, fallback_rate: Scalar
) -> Parts:
    """EK-FAC's steps in the eigenbases, bounded together; Adam's at a lower rate for what has no eigenvalues."""
    updates = jax.tree.map(lambda u: fallback_rate * u, adam)
    informed, steps, is_ready = is_informed(_with_eigenvalues(state)), {}, {}
    for name, gradient in ahead.matrices.items():
        step = gradient / (state.eigenvalues[name].value + damping)
        is_ready[name] = for_each(informed[name] & jnp.isfinite(step).all((1, 2)))
        steps[name] = jnp.where(is_ready[name], step, 0)
    inner_product = sum(jnp.vdot(step, ahead.matrices[name]) for name, step in steps.items())
    clip = kl_clip_factor(jnp.asarray(inner_product), jnp.asarray(kl_clip))
    steps = {name: jnp.where(is_ready[name], clip * step, updates.matrices[name]) for name, step in steps.items()}
    return updates._replace(matrices=steps)
