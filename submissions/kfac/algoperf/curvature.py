"""What the training algorithms with curvature share: periods, schedule, and the estimate on a workload's batch."""

import abc
import dataclasses
import functools
import logging
import typing
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from ...algoperf import schedule
from ...algoperf.contract import Algorithm, StepResult
from ...algoperf.hyperparameters import Hyperparameters
from ...algoperf.problem import Problem
from ..coverage import describe
from ..eigenbasis import Bases
from ..estimate import Estimate, Sums, estimate_sums
from ..fisher import Fisher, Geometry, probe
from ..layers import Layer, find_layers
from ..sharing import Layout, Sharing, batch_layout, graph_layout

PyTree = Any

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeriodicHyperparameters(Hyperparameters):
    """Momentum, schedule, and how often curvature is estimated and used anew.

    Attributes:
        one_minus_beta1: 1 - momentum.
        factor_decay: decay of the factors' moving average.
        decay_steps_factor, end_factor: of the learning rate's linear decay.
        statistics_period, refresh_period: steps between factor estimates, and between refreshes of what is made of them
            (inverses, eigenbases); a refresh comes with an estimate.
        early_steps: both are more frequent at first, every 1 + step // early_steps steps; 0 for no such beginning.
    """

    one_minus_beta1: float = 0.1
    factor_decay: float = 0.95
    decay_steps_factor: float = 1.0
    end_factor: float = 1e-3
    statistics_period: int = 5
    refresh_period: int = 5
    early_steps: int = 10

    bounds = Hyperparameters.bounds | {
        "one_minus_beta1": (1e-6, 1),
        "factor_decay": (0, 1),
        "decay_steps_factor": (0, 1),
        "end_factor": (0, 1),
        "statistics_period": (1, float("inf")),
        "refresh_period": (1, float("inf")),
        "early_steps": (0, float("inf")),
    }
    # name -> the enum whose values it takes.
    choices: typing.ClassVar[Mapping[str, type]] = {}

    def __post_init__(self):
        for name, kind in self.choices.items():
            known = [member.value for member in kind]
            if getattr(self, name) not in known:
                raise ValueError(f"hyperparameter {name} is {getattr(self, name)!r}; known are {', '.join(known)}")
        if self.refresh_period < self.statistics_period:
            raise ValueError("hyperparameter refresh_period must not be below statistics_period")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KroneckerHyperparameters(PeriodicHyperparameters):
    """Of the algorithms with Kronecker factors of the Fisher; see `kfac` and `eigenbasis_adam` for the rest.

    Attributes:
        fisher: sampled, exact or empirical.
        statistics_parts: the factors are estimated on about one in so many of the batch's examples.
        rows_per_width: expand's input factors are averaged over about so many times their width of rows, spread over
            the batch; 0 for all rows.
    """

    fisher: str = "sampled"
    statistics_parts: int = 1
    rows_per_width: int = 4
    kl_clip: float = 1.0
    fallback_rate: float = 0.1

    bounds = PeriodicHyperparameters.bounds | {
        "statistics_parts": (1, float("inf")),
        "rows_per_width": (0, float("inf")),
        "kl_clip": (0, float("inf")),
        "fallback_rate": (0, float("inf")),
    }
    choices = {"fisher": Fisher}


class PeriodicAlgorithm(Algorithm):
    """An optax optimiser that is given curvature now and then."""

    @abc.abstractmethod
    def optimizer(
        self, layers: tuple[Layer, ...], h: Any, mesh: Mesh | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The optimiser of `layers` and all other parameters; one of its states counts `fallbacks`."""

    def variant(self, global_step: int, h: Any) -> Hashable:
        """(estimate factors, refresh what is made of them)."""
        refresh = is_due(global_step, h.refresh_period, h.early_steps)
        return refresh or is_due(global_step, h.statistics_period, h.early_steps), refresh

    def init(self, params: PyTree, h: Any) -> PyTree:
        layers = find_layers(params)
        _log.info("%s", describe(params, layers))
        return self.optimizer(layers, h).init(params)

    def learning_rate(self, global_step: int, step_hint: int, h: Any) -> float:
        return schedule.polynomial(
            global_step,
            peak=h.learning_rate,
            length=int(h.schedule_fraction * step_hint),
            warmup_factor=h.warmup_factor,
            decay_steps_factor=h.decay_steps_factor,
            end_factor=h.end_factor,
        )

    def metrics(self, state: PyTree) -> dict[str, Array]:
        """How often since the start a layer went without its new curvature or gradient, and how often by a fault."""
        counts = [part.fallbacks for part in state if hasattr(part, "fallbacks")]
        n_zero, n_faulty = (sum(column) for column in zip(*counts, strict=True))
        return {"n_curvature_fallbacks": n_zero + n_faulty, "n_curvature_faults": n_faulty}


def is_due(global_step: int, period: int, early_steps: int) -> bool:
    """Whether something is due that recurs every step at first, and ever more seldom until every `period` steps.

    After step n the gap is 1 + n // early_steps, so that early on it is in proportion to how long training has lasted.
    """
    due = 0
    while due < global_step:
        gap = 1 + due // early_steps if early_steps else period
        if gap >= period:
            return (global_step - due) % period == 0
        due += gap
    return due == global_step


def result(problem: Problem, batch: Estimate, params: PyTree, updates: PyTree, state: PyTree) -> StepResult:
    """The step's result. Of the model's state, what did not come out finite stays as it was."""
    model_state = batch.aux
    if jax.tree.structure(model_state) == jax.tree.structure(problem.model_state):
        model_state = jax.tree.map(
            lambda new, old: jnp.where(jnp.isfinite(new).all(), new, old), model_state, problem.model_state
        )
    norm = optax.global_norm(batch.gradients)
    return StepResult(state, optax.apply_updates(params, updates), model_state, batch.loss, norm)


def plain_batch(problem: Problem, params: PyTree, h: Any) -> Estimate:
    """Loss and gradient of the batch alone."""
    return _accumulated(problem, params, h.micro_batches, lambda part, index: {})


def estimate_batch(
    problem: Problem,
    params: PyTree,
    layers: tuple[Layer, ...],
    sharing: Sharing,
    h: Any,
    key: Array,
    bases: Mapping[str, Bases] | None = None,
) -> Estimate:
    """Loss and gradient of the batch, and the factors of `layers`, from all of it or a part."""
    outputs = jax.eval_shape(lambda p: problem.forward(p)[0], params)
    fisher, geometry = _fisher(problem, outputs, Fisher(h.fisher))

    def options(part: Problem, index: Array | None) -> dict[str, Any]:
        return {
            "layers": layers,
            "layout": _layout(part),
            "sharing": sharing,
            "fisher": fisher,
            "geometry": geometry,
            "weights": part.weights,
            "rows_per_width": h.rows_per_width,
            "key": key if index is None else jax.random.fold_in(key, index),
            "bases": bases,
        }

    if h.statistics_parts == 1:
        batch = _accumulated(problem, params, h.micro_batches, options)
    else:
        n_micro_batches = -(-h.micro_batches // h.statistics_parts)
        part = _accumulated(problem.part(h.statistics_parts), params, n_micro_batches, options)
        batch = plain_batch(problem, params, h)
        batch = batch._replace(factors=part.factors, eigenvalues=part.eigenvalues, uncaptured=part.uncaptured)
    for name, reason in batch.uncaptured.items():
        _warn_once(f"layer {name} has no factors: {reason}")
    return batch


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
    problem: Problem, params: PyTree, n_micro_batches: int, options: Callable[[Problem, Array | None], dict[str, Any]]
) -> Estimate:
    """The estimate of the whole batch, summed over micro-batches before it is divided."""
    uncaptured: dict[str, str] = {}  # known from tracing alone, the same for every part

    def one(part: Problem, index: Array | None) -> tuple[Sums, PyTree]:
        sums, model_state, reasons = estimate_sums(part.forward, part.loss, params, **options(part, index))
        uncaptured.update(reasons)
        return sums, model_state

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
