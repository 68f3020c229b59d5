"""K-FAC as an optax gradient transformation, usable in any training loop.

    layers = find_layers(params)
    optimizer = kfac(layers, learning_rate=0.3, damping=1e-3)
    state = optimizer.init(params)
    batch = estimate(forward, loss, params, layers=layers, layout=…, geometry=…, key=…)
    updates, state = optimizer.update(batch.gradients, state, params, factors=batch.factors, refresh=True)

On steps without new factors, call `estimate` without layers and `update` with `factors=None`.
"""

import enum
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
    has_estimates,
    init_factors,
    init_fallbacks,
)
from .arguments import check_member
from .groups import Parts, group_by_shape, split
from .layers import Layer, at_least_float32
from .moments import adam
from .precondition import (
    Inverses,
    bounded_or_fallback,
    damped_inverses,
    has_inverse,
    init_inverses,
    precondition,
    scale_to_unit_mean_eigenvalue,
)
from .routing import routed
from .schedules import Scalar, schedulable
from .updating import update_with_curvature

PyTree = Any

# RMSProp's, with the defaults that PyTorch has for it.
_FALLBACK_DECAY = 0.99
_FALLBACK_EPSILON = 1e-8


class WeightDecay(enum.Enum):
    """Where weight decay enters: DECOUPLED from the curvature (as in AdamW), or COUPLED as an L2 term of the loss."""

    DECOUPLED = "decoupled"
    COUPLED = "coupled"


class Momentum(enum.Enum):
    HEAVY_BALL = "heavy_ball"
    NESTEROV = "nesterov"


class Length(enum.Enum):
    """How long a layer's step is, before the learning rate.

    KL_CLIP: that of A⁻¹ G B⁻¹, all layers together bounded by `kl_clip`. Momentum adds up such steps. The damping is
        absolute. Source: Ba, Grosse and Martens, 2017.
    LAYERWISE: root mean square 0.2 in every layer, about that of AdamW's step, so that one learning rate serves all
        layers. Momentum adds up gradients; the step is A⁻¹ V B⁻¹ of their sum V. The damping is in units of the mean
        eigenvalue of A ⊗ B, so that it keeps its meaning while B shrinks with the loss.
    """

    KL_CLIP = "kl_clip"
    LAYERWISE = "layerwise"


class KFACState(NamedTuple):
    """The optimiser's state. `init` makes all of its arrays, and their shapes never change.

    Attributes:
        count: `[]` int32, updates made.
        fallbacks: how often a layer's new curvature or gradient was not used.
        factors: group name -> averages of (A, B).
        inverses: group name -> the damped inverses of both from the last refresh; before the first one, zero.
        smoothing: momentum of the gradients, with steps of layerwise length; else empty.
        second_moment: moving average of the squared gradient, for the fallback.
    """

    count: Array  # type: ignore[assignment]  # optax's name for it, which hides the tuple's method
    fallbacks: Fallbacks
    factors: dict[str, tuple[Average, Average]]
    inverses: dict[str, Inverses]
    smoothing: PyTree
    second_moment: Parts


@schedulable("layers", "momentum_kind", "weight_decay_kind", "length", "mesh")
def kfac(
    layers: Sequence[Layer],
    *,
    learning_rate: Scalar,
    damping: Scalar,
    momentum: Scalar = 0.9,
    momentum_kind: Momentum = Momentum.NESTEROV,
    weight_decay: Scalar = 0.0,
    weight_decay_kind: WeightDecay = WeightDecay.DECOUPLED,
    grad_clip: Scalar | None = None,
    factor_decay: Scalar = 0.95,
    length: Length = Length.KL_CLIP,
    kl_clip: Scalar = 1.0,
    fallback_rate: Scalar = 0.1,
    mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC with momentum and weight decay. Every number may be a traced array, or a schedule.

    Defaults without a source are choices of this project.

    Args:
        layers: the layers to precondition, from `find_layers`.
        learning_rate: multiplies the whole update.
        damping: λ added to the curvature, in units that `length` decides.
        momentum: decay of the momentum, of the updates or of the gradients as `length` decides.
        weight_decay: added to the update before the learning rate (DECOUPLED) or to the gradient (COUPLED).
        grad_clip: largest global norm of the gradient; None for no bound.
        factor_decay: decay of the factors' moving average; 0.95 as in Martens and Grosse, 2015.
        length: of a layer's step.
        kl_clip: for `Length.KL_CLIP`, the bound κ on uᵀFu of the preconditioned layers' direction u, before momentum.
            Without momentum, the Kullback-Leibler divergence of a step is then at most about ½ lr² κ. Momentum β adds
            up directions, to at most 1 / (1 - β) times the length, and so to 1 / (1 - β)² times the divergence.
        fallback_rate: multiplies the update of parameters outside `layers`, and of layers without inverses yet: the
            gradient divided by the root of its running mean square (RMSProp with bias correction).
        mesh: one-dimensional, of the devices that share the inversions.

    Raises:
        ValueError: an option is no member of its enum, such as a string.
    """
    check_member("momentum_kind", momentum_kind, Momentum)
    check_member("weight_decay_kind", weight_decay_kind, WeightDecay)
    check_member("length", length, Length)
    is_layerwise, is_coupled = length is Length.LAYERWISE, weight_decay_kind is WeightDecay.COUPLED

    def build(layers: Sequence[Layer]) -> optax.GradientTransformationExtraArgs:
        groups = group_by_shape(layers)
        smoothing, afterwards = _momentum(momentum, momentum_kind), optax.identity()
        if not is_layerwise:  # momentum adds up directions, not gradients
            smoothing, afterwards = afterwards, smoothing

        def init(params: PyTree) -> KFACState:
            parts = split(params, groups)
            dtypes = {name: stack.dtype for name, stack in parts.matrices.items()}
            return KFACState(
                count=jnp.zeros([], jnp.int32),
                fallbacks=init_fallbacks(),
                factors=init_factors(groups, parts),
                inverses={group.name: init_inverses(*group.factor_shapes, dtypes[group.name]) for group in groups},
                smoothing=smoothing.init(parts),
                second_moment=jax.tree.map(jnp.zeros_like, parts),
            )

        def refresh_state(state: KFACState) -> KFACState:
            averages = averaged_values(state.factors)
            inverses, n_failed = damped_inverses(
                scale_to_unit_mean_eigenvalue(averages) if is_layerwise else averages,
                jnp.asarray(damping),
                state.inverses,
                has_estimates(state.factors),
                mesh,
            )
            return state._replace(inverses=inverses, fallbacks=state.fallbacks.plus(n_faulty=n_failed))

        def direction(parts: Parts, state: KFACState, params: PyTree | None) -> tuple[Parts, KFACState]:
            if is_coupled:
                parts = jax.tree.map(lambda g, p: g + weight_decay * p, parts, split(params, groups))
            parts, smoothed = smoothing.update(parts, state.smoothing)
            second, fallback = adam(state.second_moment, parts, parts, _FALLBACK_DECAY, _FALLBACK_EPSILON, state.count)
            fallback = jax.tree.map(lambda u: u * fallback_rate, fallback)
            steps = {name: precondition(stack, state.inverses[name]) for name, stack in parts.matrices.items()}
            is_ready = {name: has_inverse(inverses) for name, inverses in state.inverses.items()}
            bound = None if is_layerwise else jnp.asarray(kl_clip)
            updates = bounded_or_fallback(steps, parts, is_ready, fallback, bound)
            return updates, state._replace(smoothing=smoothed, second_moment=second)

        update = update_with_curvature(
            groups,
            grad_clip=grad_clip,
            factor_decay=factor_decay,
            refresh_state=refresh_state,
            direction=direction,
        )
        return optax.chain(
            optax.GradientTransformationExtraArgs(init, update),
            afterwards,
            optax.identity() if is_coupled else optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )

    return routed(layers, build)


def _momentum(decay: Scalar, kind: Momentum) -> optax.GradientTransformation:
    """Momentum whose state is at least float32: of half precision, a decay that is an array would change it."""
    trace = optax.trace(decay=decay, nesterov=kind is Momentum.NESTEROV)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        smoothed, state = trace.update(jax.tree.map(at_least_float32, updates), state, params)
        return jax.tree.map(lambda new, old: new.astype(old.dtype), smoothed, updates), state

    return optax.GradientTransformation(lambda params: trace.init(jax.tree.map(at_least_float32, params)), update)
