"""Adam in the eigenbasis of the Kronecker factors, as an optax gradient transformation.

    layers = find_layers(params)
    optimizer = eigenbasis_adam(layers, learning_rate=3e-3)
    state = optimizer.init(params)
    batch = estimate(forward, loss, params, layers=layers, layout=…, geometry=…, key=…)
    updates, state = optimizer.update(batch.gradients, state, params, factors=batch.factors, refresh=True)

On steps without new factors, call `estimate` without layers and `update` with `factors=None`. The factors may be others
than K-FAC's: with `factors.gradient_covariances`, those of Shampoo, it is SOAP.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from .accumulation import (
    Average,
    Fallbacks,
    averaged_values,
    count_false,
    init_factors,
    init_fallbacks,
)
from .eigenbasis import Bases, identity, refresh, rotate, rotate_back
from .groups import Parts, group_by_shape, split
from .layers import Layer
from .moments import lookahead, mean_squares
from .routing import routed
from .schedules import Scalar, schedulable
from .updating import update_with_curvature

PyTree = Any


class EigenbasisState(NamedTuple):
    """The optimiser's state. `init` makes all of its arrays, and their shapes never change.

    Attributes:
        count: `[]` int32, updates made.
        fallbacks: how often a layer's new curvature or gradient was not used.
        factors: group name -> averages of (A, B).
        bases: group name -> its layers' eigenbases at the last refresh; before the first one, the identity. None for a
            side that is too wide: its average then only records whether there was an estimate.
        first_moment: moving average of the gradient.
        second_moment: moving average of its square; a layer's matrix is in its eigenbasis.
    """

    count: Array  # type: ignore[assignment]  # optax's name for it, which hides the tuple's method
    fallbacks: Fallbacks
    factors: dict[str, tuple[Average, Average]]
    bases: dict[str, Bases]
    first_moment: Parts
    second_moment: Parts


@schedulable("layers", "full_refreshes", "mesh")
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
    full_refreshes: int | None = None,
    mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NAdamW in the eigenbases of the layers' Kronecker factors. Every number may be a traced array, or a schedule.

    Sources: George et al., "Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis", 2018, for
    K-FAC's eigenbasis; Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024, for Adam in a slowly
    changing basis. Defaults without a source are choices of this project.

    Args:
        layers: the layers with factors, from `find_layers`; every other parameter has NAdamW in its own axes.
        learning_rate: multiplies the whole update.
        beta1, beta2, epsilon: NAdamW's; 1e-8 as in Kingma and Ba, 2015.
        relative_epsilon: added to the root of a layer's second moments, as a multiple of the roots' root mean square.
            Without it, directions in which the gradient is only rounding error would get full-size Adam steps.
        weight_decay: decoupled, multiplied by the learning rate.
        grad_clip: largest global norm of the gradient; None for no bound.
        factor_decay: decay of the factors' moving average; 0.95 as in SOAP.
        full_refreshes: number of first updates whose refreshes are eigendecompositions; later refreshes are one step
            of power iteration, as in SOAP. None: always an eigendecomposition.
        mesh: one-dimensional, of the devices that share the refreshes.
    """

    def build(layers: Sequence[Layer]) -> optax.GradientTransformationExtraArgs:
        groups = group_by_shape(layers)

        def init(params: PyTree) -> EigenbasisState:
            parts = split(params, groups)
            zeros = jax.tree.map(jnp.zeros_like, parts)
            dtypes = {name: stack.dtype for name, stack in parts.matrices.items()}
            return EigenbasisState(
                count=jnp.zeros([], jnp.int32),
                fallbacks=init_fallbacks(),
                factors=init_factors(groups, parts),
                bases={group.name: identity(*group.factor_shapes, dtypes[group.name]) for group in groups},
                first_moment=zeros,
                second_moment=jax.tree.map(jnp.copy, zeros),  # as a donated buffer may appear only once
            )

        def direction(parts: Parts, state: EigenbasisState, params: PyTree | None) -> tuple[Parts, EigenbasisState]:
            del params
            first, ahead = lookahead(state.first_moment, parts, beta1, state.count)
            parts, ahead = (_mapped(rotate, own, state.bases) for own in (parts, ahead))
            second, squares = mean_squares(state.second_moment, parts, beta2, state.count)
            updates = _mapped(rotate_back, _adam(ahead, squares, epsilon, relative_epsilon), state.bases)
            return updates, state._replace(first_moment=first, second_moment=second)

        update = update_with_curvature(
            groups,
            grad_clip=grad_clip,
            factor_decay=factor_decay,
            refresh_state=lambda state: _refresh(state, full_refreshes, mesh),
            direction=direction,
        )
        return optax.chain(
            optax.GradientTransformationExtraArgs(init, update),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )

    return routed(layers, build)


def _refresh(state: EigenbasisState, full_refreshes: int | None, mesh: Mesh | None) -> EigenbasisState:
    is_full = None if full_refreshes is None else state.count < full_refreshes
    bases, overlaps, is_good = refresh(averaged_values(state.factors), state.bases, is_full, mesh)
    return state._replace(
        bases=bases,
        # In the new coordinates, those of the old taken as uncorrelated.
        second_moment=_mapped(rotate, state.second_moment, overlaps),
        fallbacks=state.fallbacks.plus(n_faulty=count_false(is_good.values())),
    )


def _mapped(function: Callable[[Array, Bases], Array], parts: Parts, bases: Mapping[str, Bases]) -> Parts:
    """The parts, with the function of each group's matrices and its bases."""
    return parts._replace(matrices={name: function(stack, bases[name]) for name, stack in parts.matrices.items()})


def _adam(ahead: Parts, squares: Parts, epsilon: Scalar, relative_epsilon: Scalar) -> Parts:
    updates: Parts = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), ahead, squares)
    turned = {}
    for name, square in squares.matrices.items():
        noise = epsilon + relative_epsilon * jnp.sqrt(square.mean((1, 2), keepdims=True))
        turned[name] = ahead.matrices[name] / (jnp.sqrt(square) + noise)
    return updates._replace(matrices=turned)
