"""What the training algorithms with curvature share: schedules, and the estimate on a workload's batch."""

import abc
import dataclasses
import functools
import logging
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from ...algoperf import schedule
from ...algoperf.contract import Algorithm, StepResult
from ...algoperf.hyperparameters import LinearDecay
from ...algoperf.problem import Problem
from ..capture import trace
from ..coverage import describe
from ..estimate import Estimate, Sums, estimate_sums
from ..fisher import Fisher, Geometry, probe
from ..layers import Layer, find_layers
from ..refreshing import refresh_curvature
from ..sharing import Layout, Sharing, batch_layout, graph_layout

PyTree = Any
Factors = dict[str, tuple[Array, Array | None]]  # layer name -> (A, B)
EstimatedSums = tuple[Sums, PyTree, dict[str, str]]  # see `estimate_sums`

_log = logging.getLogger(__name__)


# A factor's moving average spans about this share of the steps so far. A choice: in docs/ablations.md a fifth and all
# of the steps are better for no submission on both workloads.
FACTOR_SHARE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvatureHyperparameters(LinearDecay):
    """Momentum and schedule.

    Attributes:
        one_minus_beta1: 1 - momentum.
    """

    one_minus_beta1: float = 0.1

    bounds = {"one_minus_beta1": (1e-6, 1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorOptions:
    """How Kronecker factors are estimated, and how often.

    Attributes:
        refresh_share: after step n the next estimate and refresh come 1 + refresh_share·n steps later. Curvature
            changes fast at first and ever more slowly, so the gap grows without limit. The factors are averaged over
            `FACTOR_SHARE` of the steps so far, in the first 1 / refresh_share steps over more of them.
        rows_per_width: expand estimates an input factor of width n from about `rows_per_width * n` rows, drawn
            uniformly over the batch; 0 takes all rows.
    """

    refresh_share: float = 0.1
    rows_per_width: int = 4

    bounds: typing.ClassVar[dict[str, tuple[float, float]]] = {
        "refresh_share": (1e-3, FACTOR_SHARE),
        "rows_per_width": (0, float("inf")),
    }


class CurvatureAlgorithm(Algorithm):
    """An optax optimiser whose curvature is refreshed now and then, by a program of its own."""

    @abc.abstractmethod
    def optimizer(
        self, layers: tuple[Layer, ...], h: Any, mesh: Mesh | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The optimiser of `layers` and all other parameters, for `refresh_curvature`; one of its states counts
        `fallbacks`."""

    def layers(self, params: PyTree) -> tuple[Layer, ...]:
        """The layers with curvature."""
        return find_layers(params)

    def factors_of_gradient(self, gradients: PyTree, layers: tuple[Layer, ...]) -> Factors | None:
        """What the optimiser averages at every step; None for nothing."""
        del gradients, layers
        return None

    def factors(
        self, problem: Problem, params: PyTree, layers: tuple[Layer, ...], h: Any, key: Array
    ) -> Factors | None:
        """What the optimiser averages at a refresh, before it; None for nothing."""
        del problem, params, layers, h, key
        return None

    def refresh(self, problem: Problem, state: PyTree, params: PyTree, h: Any, key: Array) -> PyTree:
        layers = self.layers(params)
        factors = self.factors(problem, params, layers, h, key)
        return refresh_curvature(self.optimizer(layers, h, problem.mesh), state, params, factors)

    def step(self, problem: Problem, state: PyTree, params: PyTree, h: Any, key: Array) -> StepResult:
        del key
        layers = self.layers(params)
        batch = plain_batch(problem, params, h)
        factors = self.factors_of_gradient(batch.gradients, layers)
        optimizer = self.optimizer(layers, h, problem.mesh)
        updates, state = optimizer.update(batch.gradients, state, params, factors=factors, refresh=False)
        return _result(problem, batch, params, updates, state)

    def init(self, params: PyTree, model_state: PyTree, h: Any) -> PyTree:
        del model_state
        return self.optimizer(self.layers(params), h).init(params)

    def describe(self, params: PyTree) -> str:
        """Which parameters have factors."""
        return describe(params, self.layers(params))

    def learning_rate(self, global_step: int, step_hint: int, h: Any) -> float:
        return schedule.polynomial(global_step, int(h.schedule_fraction * step_hint), h)

    def metrics(self, state: PyTree) -> dict[str, Array]:
        """How often a layer's new curvature or gradient was not used, and how often because it was not finite."""
        counts = [part.fallbacks for part in state if hasattr(part, "fallbacks")]
        n_zero, n_faulty = (sum(column) for column in zip(*counts, strict=True))
        return {"n_curvature_fallbacks": n_zero + n_faulty, "n_curvature_faults": n_faulty}


class KroneckerAlgorithm(CurvatureAlgorithm):
    """One whose curvature is Kronecker factors, with the given treatment of shared weights.

    Attributes:
        needs_output_factors: False estimates input factors alone, without a backward pass.
    """

    needs_output_factors = True

    def __init__(self, sharing: Sharing):
        self._sharing = sharing

    def is_refresh_due(self, global_step: int, h: Any) -> bool:
        return is_due(global_step, h.refresh_share)

    def factors(self, problem: Problem, params: PyTree, layers: tuple[Layer, ...], h: Any, key: Array) -> Factors:
        """Layer name -> (A, B) of the batch; B is None if `needs_output_factors` is False."""
        if not layers:
            return {}

        def sums(part: Problem, index: Array | None) -> EstimatedSums:
            traced = trace(part.forward, params)
            fisher, geometry = Fisher.SAMPLED, None
            if self.needs_output_factors:
                fisher, geometry = _fisher(part, traced.results[0], h.fisher)
            return estimate_sums(
                traced,
                part.loss,
                params,
                layers=layers,
                layout=_layout(part),
                sharing=self._sharing,
                with_gradients=False,
                output_factors=self.needs_output_factors,
                fisher=fisher,
                geometry=geometry,
                weights=part.weights,
                rows_per_width=h.rows_per_width,
                key=key if index is None else jax.random.fold_in(key, index),
            )

        return _accumulated(problem, h.micro_batches, sums).factors


def is_due(global_step: int, share: float) -> bool:
    """Whether a refresh is due at this step.

    After a refresh at step n the next one is at step n + 1 + ⌊share · n⌋: about log(N) / share of them in N steps.
    """
    due = 0
    while due < global_step:
        due += 1 + int(share * due)
    return due == global_step


def factor_decay(h: Any) -> Any:
    """Decay of the factors' moving average at each estimate.

    Estimates are `refresh_share` · n steps apart; with this decay the average spans about the last `FACTOR_SHARE` ·
    n.
    """
    return 1 - h.refresh_share / FACTOR_SHARE


def _result(problem: Problem, batch: Estimate, params: PyTree, updates: PyTree, state: PyTree) -> StepResult:
    """The step's result. Of the model's state, what did not come out finite stays as it was."""
    model_state = batch.aux
    before: Any = jax.tree.structure(problem.model_state)  # JAX has no type for it
    if before == jax.tree.structure(model_state):
        model_state = jax.tree.map(
            lambda new, old: jnp.where(jnp.isfinite(new).all(), new, old), model_state, problem.model_state
        )
    norm = optax.global_norm(batch.gradients)
    return StepResult(state, optax.apply_updates(params, updates), model_state, batch.loss, norm)


def plain_batch(problem: Problem, params: PyTree, h: Any) -> Estimate:
    """Loss and gradient of the batch alone."""
    return _accumulated(problem, h.micro_batches, lambda part, index: estimate_sums(part.forward, part.loss, params))


def _fisher(problem: Problem, outputs: PyTree, wanted: Fisher) -> tuple[Fisher, Geometry | None]:
    """The Fisher to estimate and the loss's geometry; the empirical one in place of samples where none is known."""
    if wanted is Fisher.EMPIRICAL:
        return wanted, None
    try:
        if not isinstance(outputs, jax.ShapeDtypeStruct):
            raise ValueError("the model's outputs are a tuple, whose loss is of the whole sequence")
        return wanted, probe(problem.position_loss(outputs.shape), outputs.shape[-1])
    except ValueError as error:
        if wanted is Fisher.EXACT:
            raise
        _warn_once(f"factors of the empirical Fisher, from the training loss's own gradients: {error}")
        return Fisher.EMPIRICAL, None


@functools.cache
def _warn_once(message: str) -> None:
    """Each message once in a process, whatever the number of programs that are traced."""
    _log.warning("%s", message)


def _accumulated(
    problem: Problem, n_micro_batches: int, function: Callable[[Problem, Array | None], EstimatedSums]
) -> Estimate:
    """The estimate of the whole batch, summed over micro-batches before it is divided.

    Args:
        function: (the problem on one micro-batch, its index or None) -> what `estimate_sums` gives.
    """
    uncaptured: dict[str, str] = {}  # known from tracing alone, the same for every part

    def one(part: Problem, index: Array | None) -> tuple[Sums, PyTree]:
        sums, model_state, reasons = function(part, index)
        uncaptured.update(reasons)
        return sums, model_state

    sums: Sums
    sums, model_state = problem.summed(n_micro_batches, one)
    return sums.mean(model_state, uncaptured)


def _layout(problem: Problem) -> Layout:
    """Whose example each row is, from the batch's shapes: packed graphs (a `jraph.GraphsTuple`) or plain examples.

    A padding graph is not an example: a graph or image is one if any of its loss weights is above zero.
    """
    inputs, weights, n_examples = problem.batch["inputs"], problem.weights, problem.n_examples
    is_example = None
    if weights is not None:
        is_example = (weights > 0).reshape(n_examples, -1).any(1).astype(jnp.float32)
    if not hasattr(inputs, "n_node"):
        return batch_layout(n_examples, is_example, example_axis=0)
    if is_example is None:
        raise ValueError("a batch of graphs needs 'weights', to tell padding graphs from examples")
    return graph_layout(inputs.n_node, inputs.n_edge, inputs.nodes.shape[0], inputs.edges.shape[0], is_example)
