"""Step times of submissions, side by side in one process, averaged over whole periods.

Blocks of steps alternate between the submissions (A B A B …), so that a machine whose speed drifts slows all alike. A
block is a whole number of refresh periods, with its batches drawn beforehand, and is timed until the device is done.
"""

import statistics
import time
from collections.abc import Sequence

import jax

from benchmarks.timing import Timing, markdown
from tuning import search_space
from tuning.randomness import Keys, Stream
from tuning.submission import Submission
from workloads import registry

# Past the steps in which the gaps between refreshes grow, up to 20 steps after ten times as many.
WARM_UP_STEPS = 200

# About as long as K-FAC takes to the embedded workloads' targets, with the more frequent refreshes of the beginning.
BEGINNING_STEPS = 100


class _Stepper:
    """One submission in the middle of training."""

    def __init__(
        self, workload_name: str, submission: Submission, batch_size: int, synthetic: bool, seed: int, data_dir: str
    ):
        self.submission = submission
        self._workload = registry.load(workload_name)
        self._keys = Keys(seed, 1)
        self._hyperparameters = search_space.points(search_space.read(submission.search_space_file), 1, seed)[0]
        key = self._keys.of(Stream.DATA)
        if synthetic:
            self._queue = self._workload.synthetic_queue(key, batch_size)
        else:
            self._queue = self._workload._build_input_queue(key, "train", data_dir, batch_size)
        self.restart()

    def restart(self) -> None:
        """Start training anew, with the compiled steps as they are, and the next batches."""
        self._params, self._model_state = self._workload.init_model_fn(self._keys.of(Stream.MODEL_INIT))
        self._state = self.submission.init_optimizer_state(
            self._workload,
            self._params,
            self._model_state,
            self._hyperparameters,
            self._keys.of(Stream.OPTIMIZER_INIT),
        )
        self._step = 0

    def block(self, n_steps: int) -> float:
        """Take `n_steps` steps and return the mean seconds of one."""
        batches = [jax.device_put(next(self._queue)) for _ in range(n_steps)]
        jax.block_until_ready((batches, self._state[0], self._params))
        started = time.perf_counter()
        for batch in batches:
            self._state, self._params, self._model_state = self.submission.update_params(
                workload=self._workload,
                current_param_container=self._params,
                current_params_types=self._workload.model_params_types,
                model_state=self._model_state,
                hyperparameters=self._hyperparameters,
                batch=batch,
                loss_type=self._workload.loss_type,
                optimizer_state=self._state,
                eval_results=[],
                global_step=self._step,
                rng=self._keys.of(Stream.UPDATE, self._step),
            )
            self._step += 1
        jax.block_until_ready((self._state[0], self._params))
        return (time.perf_counter() - started) / n_steps


def step_times(
    workload_name: str,
    submissions: Sequence[Submission],
    *,
    batch_size: int,
    synthetic: bool,
    n_blocks: int,
    block_steps: int,
    seed: int,
    data_dir: str,
) -> tuple[list[Timing], list[Timing]]:
    """Time every submission on one workload: blocks of whole periods, then blocks of the first `BEGINNING_STEPS`.

    All share the random seed, and so the batches.
    """
    steppers = [_Stepper(workload_name, own, batch_size, synthetic, seed, data_dir) for own in submissions]
    later, first = ([Timing(submission.name) for submission in submissions] for _ in range(2))
    for stepper in steppers:
        for _ in range(-(-WARM_UP_STEPS // block_steps)):  # in blocks, as a block's batches are on the device at once
            stepper.block(block_steps)
    for _ in range(n_blocks):
        for stepper, timing in zip(steppers, later, strict=True):
            timing.rounds.append(stepper.block(block_steps))
    n_parts = -(-BEGINNING_STEPS // block_steps)
    for _ in range(n_blocks):
        for stepper, timing in zip(steppers, first, strict=True):
            stepper.restart()
            timing.rounds.append(statistics.mean(stepper.block(block_steps) for _ in range(n_parts)))
    return later, first


def table(later: Sequence[Timing], first: Sequence[Timing]) -> str:
    """Median milliseconds a step; the ratio to the first row's, block by block: median, least and most.

    The last column is the median ratio of the first steps.
    """
    rows = []
    for own, beginning in zip(later, first, strict=True):
        ratios, early = _ratios(own, later[0]), _ratios(beginning, first[0])
        figures = (statistics.median(ratios), min(ratios), max(ratios), statistics.median(early))
        rows.append([own.name, f"{1e3 * own.median:.1f}", *(f"{ratio:.2f}" for ratio in figures)])
    columns = ["submission", "ms a step (median)", "ratio (median)", "least", "most"]
    return markdown([*columns, f"ratio of the first {BEGINNING_STEPS} steps"], rows)


def _ratios(own: Timing, base: Timing) -> list[float]:
    return [mine / other for mine, other in zip(own.rounds, base.rounds, strict=True)]
