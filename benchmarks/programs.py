"""One training step as separate compiled programs, whose differences are what each part of it costs."""

import functools
from collections import namedtuple
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.timing import Timing, in_turn
from submissions.algoperf import hyperparameters
from submissions.algoperf.contract import Algorithm
from submissions.algoperf.problem import Problem
from submissions.kfac.algoperf import KFAC
from submissions.kfac.eigenbasis import Refresh
from submissions.kfac.estimate import estimate

PyTree = Any

PARTS = ("forward and backward", "apply", "factors", "refresh")
_POINT = {"learning_rate": 1e-4}
_KFAC_POINT = _POINT | {"damping": 1e-2}


class Program:
    """A compiled step that feeds its own state back to itself: (state, batch) -> state."""

    def __init__(self, step: Callable[[PyTree, PyTree], PyTree], state: PyTree, batch: PyTree):
        self._batch = jax.device_put(batch)
        self._compiled = jax.jit(step, donate_argnums=0).lower(state, self._batch).compile()
        self._state = jax.tree.map(jnp.copy, state)

    def __call__(self) -> PyTree:
        self._state = self._compiled(self._state, self._batch)
        return self._state

    @property
    def bytes(self) -> int:
        """Device memory of arguments, results and temporaries, by the compiler's own count."""
        m = self._compiled.memory_analysis()
        return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes

    @property
    def flops(self) -> float:
        return self._compiled.cost_analysis()["flops"]


def step_programs(workload: Any, algorithm: Algorithm, batch: Mapping[str, Any], seed: int) -> dict[str, Program]:
    """The programs that each add one of `PARTS`: SGD, then the algorithm's step without news, with factors, and all."""
    params, model_state = workload.init_model_fn(jax.random.PRNGKey(seed))
    is_classical = isinstance(algorithm, KFAC)
    point = _KFAC_POINT if is_classical else _POINT
    h = hyperparameters.read(algorithm.hyperparameters, namedtuple("Point", point)(**point))
    variants = [(False, False), (True, False), (True, True)]
    if not is_classical:
        variants = [(False, None), (True, None), (True, Refresh.POWER)]
    state = (algorithm.init(params, h), params, model_state, jax.random.PRNGKey(seed))
    steps = [_sgd, *(functools.partial(_step, algorithm, h, variant) for variant in variants)]
    return {
        part: Program(functools.partial(step, workload), state, batch) for part, step in zip(PARTS, steps, strict=True)
    }


def cost_of_parts(programs: Mapping[str, Program], *, n_rounds: int) -> tuple[dict[str, float], dict[str, Timing]]:
    """Median seconds that each of `PARTS` adds, and the programs' timings, each whole."""
    timings = in_turn(programs, n_rounds=n_rounds)
    medians = [timings[part].median for part in PARTS]
    added = [medians[0], *(after - before for before, after in zip(medians, medians[1:], strict=False))]
    return dict(zip(PARTS, added, strict=True)), timings


def _problem(workload: Any, batch: PyTree, model_state: PyTree, key: jax.Array) -> Problem:
    return Problem(workload, batch, model_state, 0.0, None, key)


def _sgd(workload: Any, carry: PyTree, batch: PyTree) -> PyTree:
    state, params, model_state, key = carry
    key, model_key = jax.random.split(key)
    problem = _problem(workload, batch, model_state, model_key)
    gradients = estimate(problem.forward, problem.loss, params).gradients
    updates = jax.tree.map(lambda g: -_POINT["learning_rate"] * g, gradients)
    return state, optax.apply_updates(params, updates), model_state, key


def _step(algorithm: Algorithm, h: Any, variant: Hashable, workload: Any, carry: PyTree, batch: PyTree) -> PyTree:
    state, params, model_state, key = carry
    key, model_key, step_key = jax.random.split(key, 3)
    problem = _problem(workload, batch, model_state, model_key)
    result = algorithm.step(variant, problem, state, params, h, step_key)
    return result.state, result.params, result.model_state, key
