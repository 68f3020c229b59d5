"""Compiled programs of training with curvature, each by itself, and of a step of SGD beside them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import in_turn
from submissions.algoperf import hyperparameters
from submissions.algoperf.problem import Problem
from submissions.kfac.algoperf import KFAC
from submissions.kfac.algoperf.curvature import KroneckerAlgorithm
from submissions.kfac.estimate import estimate
from tuning.search_space import as_hyperparameters

PyTree = Any

# A step of SGD; a step of the algorithm; estimate and average the factors; the same, and recompute the preconditioner.
PROGRAMS = ("SGD", "step", "new factors", "refresh")
_POINT = {"learning_rate": 1e-4}
_EVERY_ROW = {"rows_per_width": 0}  # as in the paper: factors over all rows


def work(compiled: jax.stages.Compiled) -> Mapping[str, float]:
    """The compiler's counts for a program: "flops", "bytes accessed" and more.

    Raises:
        NotImplementedError: this device's compiler does not count.
    """
    counted = compiled.cost_analysis()
    if counted is None:
        raise NotImplementedError(f"the compiler for {jax.default_backend()} counts no operations: use a CPU")
    return counted


class Program:
    """A compiled step (state, batch) -> state, which is called with the state that it returned before.

    Args:
        state, batch: arrays, or their shapes if the program will not be called.
    """

    def __init__(self, step: Callable[[PyTree, PyTree], PyTree], state: PyTree, batch: PyTree):
        self.compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        self._state, self._batch = state, batch

    def __call__(self) -> PyTree:
        self._state = self.compiled(self._state, self._batch)
        return self._state

    @property
    def bytes(self) -> int:
        """Device memory of arguments, results and temporaries, as the compiler counts it."""
        m = self.compiled.memory_analysis()
        if m is None:
            raise NotImplementedError(f"the compiler for {jax.default_backend()} counts no memory: use a CPU")
        return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes


def programs(workload: Any, algorithm: KroneckerAlgorithm, batch: Mapping[str, Any], seed: int) -> dict[str, Program]:
    """Each of `PROGRAMS`; a step with new curvature runs "refresh" and then "step"."""
    h = _hyperparameters(algorithm)
    state, batch = _start(workload, algorithm, h, seed), jax.device_put(batch)
    return {
        name: Program(_program(name, workload, algorithm, h), jax.tree.map(jnp.copy, state), batch) for name in PROGRAMS
    }


def memory(
    workload: Any, algorithm: KroneckerAlgorithm, batch: Mapping[str, Any], seed: int, micro_batches: int = 1
) -> int:
    """Bytes of device memory that the greater of "step" and "refresh" needs, compiled from shapes alone."""
    h = _hyperparameters(algorithm, micro_batches=micro_batches)
    state, batch = jax.eval_shape(lambda b: (_start(workload, algorithm, h, seed), b), batch)
    return max(Program(_program(name, workload, algorithm, h), state, batch).bytes for name in ("step", "refresh"))


def _hyperparameters(algorithm: KroneckerAlgorithm, **more: int) -> Any:
    point = _POINT | _EVERY_ROW | ({"damping": 1e-2} if isinstance(algorithm, KFAC) else {}) | more
    return hyperparameters.read(algorithm.hyperparameters, as_hyperparameters(point))


def _start(workload: Any, algorithm: KroneckerAlgorithm, h: Any, seed: int) -> PyTree:
    params, model_state = workload.init_model_fn(jax.random.PRNGKey(seed))
    return algorithm.init(params, model_state, h), params, model_state, jax.random.PRNGKey(seed)


def _program(name: str, workload: Any, algorithm: KroneckerAlgorithm, h: Any) -> Callable[[PyTree, PyTree], PyTree]:
    def step(carry: PyTree, batch: PyTree) -> PyTree:
        state, params, model_state, key = carry
        key, model_key, step_key = jax.random.split(key, 3)
        problem = Problem(workload, batch, model_state, 0.0, None, model_key)
        if name == "step":
            result = algorithm.step(problem, state, params, h, step_key)
            return result.state, result.params, result.model_state, key
        if name == "SGD":
            gradients = estimate(problem.forward, problem.loss, params).gradients
            params = jax.tree.map(lambda p, g: p - _POINT["learning_rate"] * g, params, gradients)
        elif name == "refresh":
            state = algorithm.refresh(problem, state, params, h, step_key)
        else:
            layers = algorithm.layers(params)
            factors, nothing = (
                algorithm.factors(problem, params, layers, h, step_key),
                jax.tree.map(jnp.zeros_like, params),
            )
            optimizer = algorithm.optimizer(layers, h)
            _, state = optimizer.update(nothing, state, params, factors=factors, refresh=False, is_step=False)
        return state, params, model_state, key

    return step


def milliseconds(programs: Mapping[str, Program], *, n_rounds: int) -> dict[str, float]:
    """The median over the rounds, for each program."""
    return {name: 1e3 * seconds for name, seconds in in_turn(programs, n_rounds=n_rounds).items()}
