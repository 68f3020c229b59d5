"""Muon in the metric of K-FAC's input factors, as an optax gradient transformation.

    layers = find_layers(params)
    optimizer = kfac_muon(layers, learning_rate=0.02)
    state = optimizer.init(params)
    batch = estimate(forward, loss, params, layers=layers, layout=…, output_factors=False)
    updates, state = optimizer.update(batch.gradients, state, params, factors=batch.factors, refresh=True)

On steps without new factors, call `estimate` without layers and `update` with `factors=None`.

A layer's input factor A tells how far a change U of its weights moves its outputs on the data: by E‖Uᵀa‖² = ‖A^½ U‖²_F.
The steepest descent on a gradient G under ‖A^p U‖ ≤ ρ, in the spectral norm, is

    U = -ρ A^-p polar(A^-p G),    polar(P S Qᵀ) = P Qᵀ.

With p = 0 this is Muon, with p = ½ the metric is the change of the outputs. The default, p = ¼, is between. It needs A
alone: no second backward pass, no pseudo-targets and no geometry of the loss.
"""

from collections.abc import Sequence
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
    has_estimates,
    init_average,
    init_fallbacks,
)
from .groups import Parts, group_by_shape, per_layer, split
from .layers import Layer, is_diagonal
from .moments import adam, lookahead
from .roots import damped_inverse_roots, polar_factor
from .routing import routed
from .schedules import Scalar, schedulable
from .stacks import map_stack
from .trust_region import scale_to_rms, scale_to_unit_max
from .updating import update_with_curvature

PyTree = Any


class MuonState(NamedTuple):
    """The optimiser's state. `init` makes all of its arrays, and their shapes never change.

    Attributes:
        count: `[]` int32, updates made.
        fallbacks: how often a layer's new factor or gradient was not used.
        factors: group name -> averages of A.
        roots: group name -> the damped A^-p from the last refresh `[n_layers, n_rows, n_rows]`; of diagonals
            `[n_layers, n_rows, 1]`. Before the first refresh, the identity.
        first_moment: moving average of the gradient.
        second_moment: dotted path -> moving average of its square, for the parameters of no layer.
    """

    count: Array  # type: ignore[assignment]  # optax's name for it, which hides the tuple's method
    fallbacks: Fallbacks
    factors: dict[str, Average]
    roots: dict[str, Array]
    first_moment: Parts
    second_moment: dict[str, Array]


def layers_with_metric(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Those of the layers whose input factor `kfac_muon` uses: all but embeddings, which have NAdamW, as in Muon.

    The metric would make the steps of an embedding larger the rarer its index is.
    """
    return tuple(layer for layer in layers if not layer.is_embedding)


@schedulable("layers", "power", "mesh")
def kfac_muon(
    layers: Sequence[Layer],
    *,
    learning_rate: Scalar,
    damping: Scalar = 1e-2,
    power: float = 0.25,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.99,
    epsilon: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    grad_clip: Scalar | None = None,
    factor_decay: Scalar = 0.8,
    mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon in the metric of the layers' input factors. Every number but `power` may be a traced array, or a schedule.

    Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; "Newton-Muon",
    arXiv 2604.01472, 2026, for Muon preconditioned by the inputs' covariance. Defaults without a source are choices of
    this project; docs/ablations.md tells what was tried.

    Args:
        layers: from `find_layers`. Those of `layers_with_metric` have factors; every other parameter has NAdamW.
        learning_rate: multiplies the whole update.
        damping: λ added to A, in units of its mean eigenvalue.
        power: p, ½ or ¼.
        beta1: decay of the gradient's average, which the metric is applied to a step ahead (Nesterov).
        beta2, epsilon: NAdamW's; 1e-8 as in Kingma and Ba, 2015.
        weight_decay: decoupled, multiplied by the learning rate.
        grad_clip: largest global norm of the gradient; None for no bound. The update's length is fixed, so clipping
            only limits how much one gradient counts in the average.
        factor_decay: decay of the factors' moving average.
        mesh: one-dimensional, of the devices that share the refreshes, and the layers of each shape.

    Raises:
        ValueError: another power.
    """
    if power not in (0.5, 0.25):
        raise ValueError(f"power is {power}; it must be 0.5 or 0.25")

    def build(layers: Sequence[Layer]) -> optax.GradientTransformationExtraArgs:
        groups = group_by_shape(layers_with_metric(layers))

        def init(params: PyTree) -> MuonState:
            parts = split(params, groups)
            zeros = jax.tree.map(jnp.zeros_like, parts)
            shapes = {group.name: group.factor_shapes[0] for group in groups}
            dtypes = {name: stack.dtype for name, stack in parts.matrices.items()}
            return MuonState(
                count=jnp.zeros([], jnp.int32),
                fallbacks=init_fallbacks(),
                factors={name: init_average(shape, dtypes[name]) for name, shape in shapes.items()},
                roots={name: _identity(shape, dtypes[name]) for name, shape in shapes.items()},
                first_moment=zeros,
                second_moment=jax.tree.map(jnp.copy, zeros.others),  # as a donated buffer may appear only once
            )

        def direction(parts: Parts, state: MuonState, params: PyTree | None) -> tuple[Parts, MuonState]:
            del params
            first, ahead = lookahead(state.first_moment, parts, beta1, state.count)
            second, others = adam(state.second_moment, parts.others, ahead.others, beta2, epsilon, state.count)
            steps = {
                name: map_stack(_steepest, [stack, state.roots[name]], mesh) for name, stack in ahead.matrices.items()
            }
            return Parts(steps, others), state._replace(first_moment=first, second_moment=second)

        update = update_with_curvature(
            groups,
            grad_clip=grad_clip,
            factor_decay=factor_decay,
            refresh_state=lambda state: _refresh(state, jnp.asarray(damping), power, mesh),
            direction=direction,
            select=lambda factors: {name: pair[0] for name, pair in factors.items()},
        )
        return optax.chain(
            optax.GradientTransformationExtraArgs(init, update),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )

    return routed(layers, build)


def _identity(shape: tuple[int, int, int], dtype: Any) -> Array:
    one = jnp.ones((shape[1], 1), dtype) if is_diagonal(shape) else jnp.eye(shape[1], dtype=dtype)
    return jnp.broadcast_to(one, shape)


def _refresh(state: MuonState, damping: Array, power: float, mesh: Mesh | None) -> MuonState:
    """New roots for every layer that has a factor; one whose root is not finite keeps what it had."""
    new = damped_inverse_roots(averaged_values(state.factors), damping, power, mesh)
    is_finite = {name: jnp.isfinite(root).all((1, 2)) for name, root in new.items()}
    has_factor = has_estimates(state.factors)
    roots = {
        name: jnp.where(per_layer(is_finite[name] & has_factor[name]), root, state.roots[name])
        for name, root in new.items()
    }
    n_faulty = count_false(is_finite[name] | ~has_factor[name] for name in new)
    return state._replace(roots=roots, fallbacks=state.fallbacks.plus(n_faulty=n_faulty))


def _steepest(gradients: Array, roots: Array) -> Array:
    """A^-p polar(A^-p G) of matrices `[k, n_rows, d_out]`, at the length of all steps; zero for zero."""
    whitened = _apply(roots, scale_to_unit_max(gradients))
    return scale_to_rms(_apply(roots, polar_factor(whitened)))[0]


def _apply(roots: Array, matrices: Array) -> Array:
    return roots * matrices if is_diagonal(roots.shape) else roots @ matrices
