"""Step times of submissions on a workload: every compiled step by itself, and the mean over a whole run.

A submission chooses one of its compiled steps by the step number (for K-FAC: a step that only applies the curvature, or
one that also estimates and refreshes it). Each compiled step is timed in blocks of its own. The blocks of all
submissions alternate (A B C A B C …), so that a change of the machine's speed affects all alike. The mean over a run
weights each compiled step by the number of times that the run takes it. So it needs no such run, and holds for a run of
any length.
"""

import statistics
import time
from collections import Counter, namedtuple
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import jax

from benchmarks.timing import Deadline, Timing, markdown
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
    """One submission's compiled steps.

    Attributes:
        compile_s: seconds to compile all of them and the initialisation of the optimizer's state.
        timings: variant of the step -> its seconds, one value per round.
        in_run, in_beginning: variant -> its number of steps in a run, and in the run's first `BEGINNING_STEPS` steps.
    """

    name: str
    compile_s: float
    timings: dict[Hashable, Timing]
    in_run: Mapping[Hashable, int]
    in_beginning: Mapping[Hashable, int]

    @property
    def commonest(self) -> Timing:
        return self.timings[max(self.in_run, key=lambda variant: self.in_run[variant])]

    @property
    def slowest(self) -> Timing:
        return max(self.timings.values(), key=lambda timing: timing.median)

    def means(self, counts: Mapping[Hashable, int]) -> list[float]:
        """Mean seconds of a step over `counts`, round by round."""
        n_rounds, n_steps = len(self.commonest.rounds), sum(counts.values())
        return [
            sum(n * self.timings[variant].rounds[i] for variant, n in counts.items()) / n_steps for i in range(n_rounds)
        ]


class _Stepper:
    """One submission in training; each call of `block` repeats one compiled step on one batch."""

    def __init__(self, workload_name: str, submission: Submission, batch: Mapping, micro_batches: int, seed: int):
        self._submission, self._batch = submission, batch
        self._workload = registry.load(workload_name)
        self._keys = Keys(seed, 1)
        point = search_space.points(search_space.read(submission.search_space_file), 1, seed)[0]._asdict()
        if micro_batches > 1:
            point["micro_batches"] = micro_batches
        h = self._hyperparameters = namedtuple("Hyperparameters", point)(**point)
        self._params, self._model_state = self._workload.init_model_fn(self._keys.of(Stream.MODEL_INIT))
        compiles = CompileTimer()
        with compiles:
            self._state = submission.init_optimizer_state(
                self._workload, self._params, self._model_state, h, self._keys.of(Stream.OPTIMIZER_INIT)
            )
            variants = self._state[1].variants(h, self._workload.step_hint)
            self._step_of = {variant: step for step, variant in enumerate(variants)}  # the last one of each
            for variant in self._step_of:
                self.block(variant, 1)
        in_run, in_beginning = Counter(variants), Counter(variants[:BEGINNING_STEPS])
        timings = {variant: Timing(submission.name) for variant in self._step_of}
        self.costs = StepCosts(submission.name, compiles.counts.seconds, timings, in_run, in_beginning)
        self._n_calls = {variant: max(1, round(_ROUND_S / self.block(variant, 2))) for variant in self._step_of}

    def round(self) -> None:
        """Times every compiled step for about `_ROUND_S` seconds."""
        for variant, timing in self.costs.timings.items():
            timing.rounds.append(self.block(variant, self._n_calls[variant]))

    def block(self, variant: Hashable, n_steps: int) -> float:
        """Takes `n_steps` steps of one variant, and returns the mean seconds per step."""
        step = self._step_of[variant]
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
    steppers: list[_Stepper] = []
    for submission in submissions:
        if steppers and deadline.has_passed:
            break
        steppers.append(_Stepper(workload_name, submission, batch, micro_batches, seed))
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
        n_steps = sum(cost.in_run.values())
        rows.append(
            [
                cost.name,
                len(cost.timings),
                f"{cost.compile_s:.1f}",
                f"{1e3 * cost.commonest.median:.1f}",
                f"{1e3 * cost.slowest.median:.1f}",
                f"{n_steps - max(cost.in_run.values())} of {n_steps}",
                f"{run_ratio:.2f}",
                f"{beginning_ratio:.2f}",
            ]
        )
    columns = ["submission", "compiled steps", "compilation (s)", "commonest step (ms)", "slowest step (ms)"]
    columns += ["others than the commonest", "whole run / first row", f"first {BEGINNING_STEPS} steps / first row"]
    return markdown(columns, rows)
