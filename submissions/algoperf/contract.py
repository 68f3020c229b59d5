"""The contract's functions, made from a training algorithm.

One compilation serves all trials of a workload whose points have equal dropout rates, integers and choices, and None
for the same options.

Source: the AlgoPerf training-algorithm track, github.com/mlcommons/algorithmic-efficiency.
"""

import abc
import functools
import logging
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from . import hyperparameters as hparams
from .batch_sizes import batch_size
from .problem import Problem
from .restoration import as_returned_by_a_step

PyTree = Any

_log = logging.getLogger(__name__)

# Steps between two readings of the metrics, as each reading waits for the device. A choice.
LOG_PERIOD = 50


class StepResult(NamedTuple):
    """What one compiled step returns; `loss` and `gradient_norm` are the batch's, before the step."""

    state: PyTree
    params: PyTree
    model_state: PyTree
    loss: Array
    gradient_norm: Array


class Algorithm(abc.ABC):
    """A training algorithm. `h` has the hyperparameters by name: numbers are traced arrays inside `step`."""

    hyperparameters: type[hparams.Hyperparameters]

    @abc.abstractmethod
    def init(self, params: PyTree, model_state: PyTree, h: Any) -> PyTree:
        """The complete state, a pytree of arrays."""

    @abc.abstractmethod
    def learning_rate(self, global_step: int, step_hint: int, h: Any) -> float:
        """The schedule, on the host."""

    @abc.abstractmethod
    def step(self, problem: Problem, state: PyTree, params: PyTree, h: Any, key: Array) -> StepResult:
        """One update; `h.learning_rate` is the schedule's value."""

    @property
    def has_refresh(self) -> bool:
        """Whether there is a `refresh`."""
        return type(self).refresh is not Algorithm.refresh

    def is_refresh_due(self, global_step: int, h: Any) -> bool:
        """Whether `refresh` comes before this step, chosen on the host."""
        del global_step, h
        return False

    def refresh(self, problem: Problem, state: PyTree, params: PyTree, h: Any, key: Array) -> PyTree:
        """The state with new curvature. It runs as a separate program before a step, with that step's batch and key."""
        raise NotImplementedError("this algorithm has no curvature to refresh")

    def describe(self, params: PyTree) -> str | None:
        """What to log of these parameters at the start of a trial."""
        del params
        return None

    def metrics(self, state: PyTree) -> dict[str, Array]:
        """Scalars of the state for the log, by name."""
        return {}


class Submission:
    """The functions that an AlgoPerf submission module exports.

    Args:
        algorithm: what trains.
        self_tuning: hyperparameters by name for the self-tuning ruleset, under which the runner gives none; None for a
            submission to the external-tuning ruleset alone.
    """

    def __init__(self, algorithm: Algorithm, self_tuning: Mapping[str, Any] | None = None):
        self._algorithm = algorithm
        self._own_point = None
        if self_tuning is not None:
            self._own_point = namedtuple("Hyperparameters", self_tuning)(**self_tuning)
            hparams.read(algorithm.hyperparameters, self._own_point)

    @property
    def functions(self) -> tuple[Callable, ...]:
        """data_selection, get_batch_size, init_optimizer_state, prepare_for_eval and update_params, to be exported."""
        return (
            self.data_selection,
            self.get_batch_size,
            self.init_optimizer_state,
            self.prepare_for_eval,
            self.update_params,
        )

    def _read(self, hyperparameters: Any) -> hparams.Hyperparameters:
        """The given hyperparameters; under the self-tuning ruleset none are given, and the submission's own count."""
        if hyperparameters is None and self._own_point is None:
            problem = "this submission needs hyperparameters: it has none of its own for self-tuning"
            raise ValueError(f"{problem}; use the external tuning ruleset")
        point = self._own_point if hyperparameters is None else hyperparameters
        return hparams.read(self._algorithm.hyperparameters, point)

    def init_optimizer_state(
        self, workload: Any, model_params: PyTree, model_state: PyTree, hyperparameters: Any, rng: Array
    ) -> tuple[PyTree, Callable]:
        """(state as a pytree of arrays, the compiled programs)."""
        del rng
        h = self._read(hyperparameters)
        if h.micro_batches > 1 and getattr(workload, "pads_batches", False):
            raise ValueError(
                f"micro_batches is {h.micro_batches}, but batches of graphs cannot be divided: it must be 1"
            )
        static, numbers = hparams.static_and_numbers(h)
        programs = _programs(workload, self._algorithm, static)
        if description := self._algorithm.describe(model_params):
            _log.info("%s", description)
        return programs.start(model_params, model_state, numbers), programs

    def update_params(
        self,
        workload: Any,
        current_param_container: PyTree,
        current_params_types: PyTree,
        model_state: PyTree,
        hyperparameters: Any,
        batch: Mapping[str, Any],
        loss_type: Any,
        optimizer_state: tuple[PyTree, Callable],
        eval_results: list,
        global_step: int,
        rng: Array,
        train_state: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[PyTree, Callable], PyTree, PyTree]:
        """One step. The state and parameters passed in are donated: use those that come back."""
        del current_params_types, loss_type, eval_results, train_state
        state, programs = optimizer_state
        h = self._read(hyperparameters)
        _, numbers = hparams.static_and_numbers(h)
        numbers["learning_rate"] = self._algorithm.learning_rate(global_step, workload.step_hint, h)
        is_refresh_due = self._algorithm.is_refresh_due(global_step, h)
        result = programs(is_refresh_due, state, current_param_container, model_state, batch, rng, numbers)
        if global_step % LOG_PERIOD == 0:
            metrics = {"loss": result.loss, "grad_norm": result.gradient_norm} | self._algorithm.metrics(result.state)
            _log_metrics(workload, metrics, global_step)
        return (result.state, programs), result.params, result.model_state

    def prepare_for_eval(
        self,
        workload: Any,
        current_param_container: PyTree,
        current_params_types: PyTree,
        model_state: PyTree,
        hyperparameters: Any,
        loss_type: Any,
        optimizer_state: tuple[PyTree, Callable],
        eval_results: list,
        global_step: int,
        rng: Array,
    ) -> tuple[tuple[PyTree, Callable], PyTree, PyTree]:
        """Logs metrics, and returns its arguments once all work is done: none is left for the untimed evaluation."""
        del current_params_types, hyperparameters, loss_type, eval_results, rng
        state, programs = optimizer_state
        _log_metrics(workload, self._algorithm.metrics(state), global_step)
        jax.block_until_ready((state, current_param_container, model_state))
        return (state, programs), current_param_container, model_state

    def data_selection(
        self,
        workload: Any,
        input_queue: Iterator[Mapping[str, Any]],
        optimizer_state: tuple[PyTree, Callable],
        current_param_container: PyTree,
        model_state: PyTree,
        hyperparameters: Any,
        global_step: int,
        rng: Array,
    ) -> Mapping[str, Any]:
        """The next batch of the queue."""
        del workload, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
        return next(input_queue)

    def get_batch_size(self, workload_name: str) -> int:
        """The global batch size.

        Raises:
            ValueError: unknown workload.
        """
        return batch_size(workload_name)


def _log_metrics(workload: Any, metrics: Mapping[str, Array], global_step: int) -> None:
    if metrics and workload.metrics_logger is not None:
        values = {name: float(value) for name, value in metrics.items()}
        workload.metrics_logger.append_scalar_metrics(values, global_step)


class Programs:
    """The compiled programs of one algorithm on one workload: replicated state, batches split over the devices."""

    def __init__(self, workload: Any, algorithm: Algorithm, static: hparams.Static):
        self._workload = workload
        self._algorithm = algorithm
        self._static = static
        self._mesh = Mesh(np.array(jax.devices()), ("batch",))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._shapes: tuple[PyTree, ...] = ()
        # Whether `_compile` has nothing to do; a single program compiles when it is called.
        self._are_compiled = not algorithm.has_refresh
        split = NamedSharding(self._mesh, PartitionSpec("batch"))
        self._init = jax.jit(
            lambda params, model_state, numbers: algorithm.init(params, model_state, hparams.join(static, numbers)),
            out_shardings=self._replicated,
        )
        compiled = functools.partial(
            jax.jit,
            in_shardings=(*[self._replicated] * 3, split, *[self._replicated] * 2),
            out_shardings=self._replicated,
        )
        self._step = compiled(self._of_arrays(algorithm.step), donate_argnums=(0, 1, 2))
        self._refresh = compiled(self._of_arrays(algorithm.refresh), donate_argnums=0)

    def start(self, params: PyTree, model_state: PyTree, numbers: Mapping[str, float]) -> PyTree:
        """The algorithm's state on all devices. Keeps the trees' shapes, by which restored arrays are recognised."""
        state = self._init(params, model_state, numbers)
        self._shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, params, model_state))
        return state

    def __call__(
        self, is_refresh_due: bool, state: PyTree, params: PyTree, model_state: PyTree, *rest: Any
    ) -> StepResult:
        """One step, after a refresh if one is due."""
        trees = zip((state, params, model_state), self._shapes, strict=True)
        state, *others = (as_returned_by_a_step(tree, shapes, self._replicated) for tree, shapes in trees)
        if not self._are_compiled:
            self._compile(state, *others, *rest)
        if is_refresh_due:
            state = self._refresh(state, *others, *rest)
        return self._step(state, *others, *rest)

    def _compile(self, *arguments: Any) -> None:
        """Compiles both programs at the same time, each in a thread; the calls that follow find them compiled.

        They are traced in this thread, since JAX's settings, such as the precision of products, are each thread's own.
        """
        lowered = [program.lower(*arguments) for program in (self._refresh, self._step)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(jax.stages.Lowered.compile, lowered))
        self._are_compiled = True

    def are_refreshes_due(self, hyperparameters: Any, n_steps: int) -> list[bool]:
        """Whether a refresh comes before each of the first `n_steps` steps."""
        h = hparams.read(self._algorithm.hyperparameters, hyperparameters)
        return [self._algorithm.is_refresh_due(global_step, h) for global_step in range(n_steps)]

    def lower(
        self,
        name: str,
        hyperparameters: Any,
        state: PyTree,
        params: PyTree,
        model_state: PyTree,
        batch: Mapping[str, Any],
        rng: Array,
    ) -> jax.stages.Lowered:
        """Program "step" or "refresh", lowered but not compiled; any array may be given as its shape alone."""
        _, numbers = hparams.static_and_numbers(hparams.read(self._algorithm.hyperparameters, hyperparameters))
        program = {"step": self._step, "refresh": self._refresh}[name]
        return program.lower(state, params, model_state, batch, rng, numbers)

    def _of_arrays(self, method: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """The algorithm's method as a function of arrays alone."""

        def program(
            state: PyTree,
            params: PyTree,
            model_state: PyTree,
            batch: Mapping[str, Any],
            rng: Array,
            numbers: Mapping[str, Array],
        ) -> PyTree:
            h = hparams.join(self._static, numbers)
            model_key, algorithm_key = jax.random.split(rng)
            problem = Problem(
                self._workload, batch, model_state, h.label_smoothing, h.dropout_rate, model_key, self._mesh
            )
            return method(problem, state, params, h, algorithm_key)

        program.__name__ = method.__name__
        return program


_programs = functools.lru_cache(maxsize=16)(Programs)
