"""Step times of submissions on a workload: steps with and without a refresh, and the mean over a whole run.

A submission with curvature refreshes it before certain steps, which its hyperparameters determine. Steps with and
without a refresh are timed in separate blocks. The blocks of all submissions alternate (A B C A B C …), so that a
change of the machine's speed affects all alike. The mean over a run weights each kind of step by its number in a run of
the workload's length. So no whole run is needed.
"""

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import Deadline, markdown
from tuning import search_space
from tuning.clock import CompileTimer
from tuning.randomness import Keys, Stream
from tuning.submission import Submission
from workloads import registry

# Approximate seconds of a block of steps.
_ROUND_S = 0.5

# Steps at the beginning of a run, in which the curvature is refreshed most often.
BEGINNING_STEPS = 100


@dataclass
class StepCosts:
    """One submission's steps, by whether they have a refresh.

    Attributes:
        compile_s: seconds to compile all programs.
        timings: whether with a refresh -> seconds of such a step, one value per round.
        in_run, in_beginning: likewise the number of steps in a run, and in the run's first `BEGINNING_STEPS` steps.
    """

    name: str
    compile_s: float
    timings: dict[bool, list[float]]
    in_run: Mapping[bool, int]
    in_beginning: Mapping[bool, int]

    def means(self, counts: Mapping[bool, int]) -> list[float]:
        """Mean seconds of a step over `counts`, round by round."""
        n_rounds, n_steps = len(self.timings[False]), sum(counts.values())
        return [sum(n * self.timings[kind][i] for kind, n in counts.items()) / n_steps for i in range(n_rounds)]


class _Stepper:
    """One submission in training; each call of `block` repeats a step with or without a refresh on one batch.

    Args:
        start: the model's parameters and state, which are copied.
    """

    def __init__(
        self,
        workload: Any,
        start: tuple[Any, Any],
        submission: Submission,
        batch: Mapping[str, Any],
        micro_batches: int,
        seed: int,
    ):
        self._submission, self._batch, self._workload = submission, batch, workload
        self._keys = Keys(seed, 1)
        point = search_space.points(search_space.read(submission.search_space_file), 1, seed)[0]
        if micro_batches > 1:
            point["micro_batches"] = micro_batches
        h = self._hyperparameters = search_space.as_hyperparameters(point)
        self._params, self._model_state = jax.tree.map(jnp.copy, start)  # steps are given their buffers
        compiles = CompileTimer()
        with compiles:
            self._state = submission.init_optimizer_state(
                self._workload, self._params, self._model_state, h, self._keys.of(Stream.OPTIMIZER_INIT)
            )
            are_due = self._state[1].are_refreshes_due(h, self._workload.step_hint)
            self._step_of = {is_due: step for step, is_due in enumerate(are_due)}  # the last one of each
            for is_due in self._step_of:
                self.block(is_due, 1)
        in_run, in_beginning = Counter(are_due), Counter(are_due[:BEGINNING_STEPS])
        timings: dict[bool, list[float]] = {is_due: [] for is_due in self._step_of}
        self.costs = StepCosts(submission.name, compiles.counts.seconds, timings, in_run, in_beginning)
        self._n_calls = {is_due: max(1, round(_ROUND_S / self.block(is_due, 2))) for is_due in self._step_of}

    def round(self) -> None:
        """Times either kind of step for about `_ROUND_S` seconds."""
        for is_due, rounds in self.costs.timings.items():
            rounds.append(self.block(is_due, self._n_calls[is_due]))

    def block(self, with_refresh: bool, n_steps: int) -> float:
        """Takes `n_steps` steps, each with or without a refresh, and returns the mean seconds per step."""
        step = self._step_of[with_refresh]
        jax.block_until_ready((self._state[0], self._params))
        started = time.perf_counter()
        for _ in range(n_steps):
            self._state, self._params, self._model_state = self._submission.update_params(
                workload=self._workload,
                current_param_container=self._params,
                current_params_types=self._workload.model_params_types,
                model_state=self._model_state,
                hyperparameters=self._hyperparameters,
                batch=self._batch,
                loss_type=self._workload.loss_type,
                optimizer_state=self._state,
                eval_results=[],
                global_step=step,
                rng=self._keys.of(Stream.UPDATE, step),
            )
        jax.block_until_ready((self._state[0], self._params))
        return (time.perf_counter() - started) / n_steps


def measure(
    workload_name: str,
    submissions: Sequence[Submission],
    *,
    batch_size: int,
    micro_batches: int,
    synthetic: bool,
    n_rounds: int,
    seed: int,
    data_dir: str,
    deadline: Deadline,
) -> list[StepCosts]:
    """Compiles and times the steps of every submission, on one batch.

    Args:
        synthetic: use a random batch, which needs no data set.
        deadline: after it no further submission is compiled, and no further round begins. The first submission and the
            first round are always measured.
    """
    workload = registry.load(workload_name)
    key = Keys(seed, 1).of(Stream.DATA)
    if synthetic:
        queue = workload.synthetic_queue(key, batch_size)
    else:
        queue = workload._build_input_queue(key, "train", data_dir, batch_size)
    batch = jax.device_put(next(queue))
    start = workload.init_model_fn(Keys(seed, 1).of(Stream.MODEL_INIT))
    steppers: list[_Stepper] = []
    for submission in submissions:
        if steppers and deadline.has_passed:
            break
        steppers.append(_Stepper(workload, start, submission, batch, micro_batches, seed))
    for i in range(n_rounds):
        if i and deadline.has_passed:
            break
        for stepper in steppers:
            stepper.round()
    return [stepper.costs for stepper in steppers]


def table(costs: Sequence[StepCosts]) -> str:
    """A row for each submission. Ratios are to the first one, as medians of the rounds' ratios."""
    base, rows = costs[0], []
    for cost in costs:
        run_ratio, beginning_ratio = (
            statistics.median(a / b for a, b in zip(cost.means(counts), base.means(base_counts), strict=True))
            for counts, base_counts in ((cost.in_run, base.in_run), (cost.in_beginning, base.in_beginning))
        )
        rows.append(
            [
                cost.name,
                f"{cost.compile_s:.1f}",
                f"{1e3 * statistics.median(cost.timings[False]):.1f}",
                f"{1e3 * statistics.median(cost.timings[True]):.1f}" if True in cost.timings else "-",
                f"{cost.in_run.get(True, 0)} of {sum(cost.in_run.values())}",
                f"{run_ratio:.2f}",
                f"{beginning_ratio:.2f}",
            ]
        )
    columns = ["submission", "compilation (s)", "step (ms)", "step with a refresh (ms)", "with a refresh"]
    columns += ["whole run / first row", f"first {BEGINNING_STEPS} steps / first row"]
    return markdown(columns, rows)
