"""K-FAC as a training algorithm under the AlgoPerf contract: the only file here that knows the contract."""

import dataclasses
import logging
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from ..algoperf import schedule
from ..algoperf.contract import StepResult
from ..algoperf.hyperparameters import Hyperparameters
from ..algoperf.problem import Problem
from .estimate import Estimate, estimate
from .fisher import Fisher, probe
from .layers import describe, find_layers
from .sharing import Layout, Sharing, batch_layout, graph_layout
from .transform import Momentum, WeightDecay, kfac

PyTree = Any

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KFACHyperparameters(Hyperparameters):
    """Hyperparameters of K-FAC; see `transform.kfac` for those not described here.

    Attributes:
        one_minus_beta1: 1 - momentum.
        decay_steps_factor, end_factor: of the learning rate's linear decay.
        statistics_period, inverse_period: steps between factor estimates, and between their inversions; an inversion
            comes with an estimate.
        early_steps: the first steps, where the curvature changes fastest: each has its own estimate and inversion.
        fisher: sampled, exact or empirical.
    """

    damping: float
    one_minus_beta1: float = 0.1
    momentum: str = "nesterov"
    weight_decay_kind: str = "decoupled"
    factor_decay: float = 0.95
    kl_clip: float = 1.0
    fallback_rate: float = 0.1
    decay_steps_factor: float = 1.0
    end_factor: float = 1e-3
    statistics_period: int = 5
    inverse_period: int = 5
    early_steps: int = 10
    fisher: str = "sampled"

    bounds = Hyperparameters.bounds | {
        "damping": (1e-30, float("inf")),
        "one_minus_beta1": (0, 1),
        "factor_decay": (0, 1),
        "kl_clip": (0, float("inf")),
        "fallback_rate": (0, float("inf")),
        "decay_steps_factor": (0, 1),
        "end_factor": (0, 1),
        "statistics_period": (1, float("inf")),
        "inverse_period": (1, float("inf")),
        "early_steps": (0, float("inf")),
    }

    def __post_init__(self):
        for name, kind in (("momentum", Momentum), ("weight_decay_kind", WeightDecay), ("fisher", Fisher)):
            known = [member.value for member in kind]
            if getattr(self, name) not in known:
                raise ValueError(f"hyperparameter {name} is {getattr(self, name)!r}; known are {', '.join(known)}")
        if self.inverse_period % self.statistics_period:
            raise ValueError("hyperparameter inverse_period must be a multiple of statistics_period")


class KFAC:
    """K-FAC-expand or K-FAC-reduce."""

    hyperparameters = KFACHyperparameters

    def __init__(self, sharing: Sharing):
        self._sharing = sharing

    def init(self, params: PyTree, h: Any) -> PyTree:
        layers = find_layers(params)
        _log.info("%s", describe(params, layers))
        return _optimizer(layers, h).init(params)

    def learning_rate(self, global_step: int, step_hint: int, h: Any) -> float:
        return schedule.polynomial(
            global_step,
            peak=h.learning_rate,
            length=int(h.schedule_fraction * step_hint),
            warmup_factor=h.warmup_factor,
            decay_steps_factor=h.decay_steps_factor,
            end_factor=h.end_factor,
        )

    def variant(self, global_step: int, h: Any) -> Hashable:
        """(estimate factors, invert them)."""
        early = global_step < h.early_steps
        return early or global_step % h.statistics_period == 0, early or global_step % h.inverse_period == 0

    def step(
        self, variant: Hashable, problem: Problem, state: PyTree, params: PyTree, h: Any, key: Array
    ) -> StepResult:
        estimate_factors, refresh_inverses = variant
        layers = find_layers(params)
        if estimate_factors:
            batch = self._estimate(problem, params, layers, Fisher(h.fisher), key)
            for name, reason in batch.uncaptured.items():
                _log.warning("layer %s goes to the fallback: %s", name, reason)
        else:
            batch = estimate(problem.forward, problem.loss, params)
        updates, state = _optimizer(layers, h, problem.mesh).update(
            batch.gradients, state, params, factors=batch.factors, refresh_inverses=refresh_inverses
        )
        params = optax.apply_updates(params, updates)
        return StepResult(state, params, batch.aux, batch.loss, optax.global_norm(batch.gradients))

    def _estimate(self, problem: Problem, params: PyTree, layers: tuple, fisher: Fisher, key: Array) -> Estimate:
        logits = jax.eval_shape(lambda p: problem.forward(p)[0], params)
        geometry = None
        if fisher is not Fisher.EMPIRICAL:
            geometry = probe(problem.position_loss(logits.shape), logits.shape[-1])
        return estimate(
            problem.forward,
            problem.loss,
            params,
            layers=layers,
            layout=_layout(problem, logits.shape[0]),
            sharing=self._sharing,
            fisher=fisher,
            geometry=geometry,
            weights=problem.weights,
            key=key,
        )


def _optimizer(layers: tuple, h: Any, mesh: Mesh | None = None) -> optax.GradientTransformationExtraArgs:
    return kfac(
        layers,
        learning_rate=h.learning_rate,
        damping=h.damping,
        momentum=1 - h.one_minus_beta1,
        momentum_kind=Momentum(h.momentum),
        weight_decay=h.weight_decay,
        weight_decay_kind=WeightDecay(h.weight_decay_kind),
        grad_clip=h.grad_clip,
        factor_decay=h.factor_decay,
        kl_clip=h.kl_clip,
        fallback_rate=h.fallback_rate,
        mesh=mesh,
    )


def _layout(problem: Problem, n_examples: int) -> Layout:
    """Whose example each row is, from the batch's shapes: packed graphs (a `jraph.GraphsTuple`) or plain examples.

    A padding graph is not an example: a graph or image is one if any of its loss weights is above zero.
    """
    inputs, weights = problem.batch["inputs"], problem.weights
    is_example = None
    if weights is not None:
        is_example = (weights > 0).reshape(n_examples, -1).any(1).astype(jnp.float32)
    if not hasattr(inputs, "n_node"):
        return batch_layout(n_examples, is_example)
    if is_example is None:
        raise ValueError("a batch of graphs needs 'weights', to tell padding graphs from examples")
    return graph_layout(inputs.n_node, inputs.n_edge, inputs.nodes.shape[0], inputs.edges.shape[0], is_example)
