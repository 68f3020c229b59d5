"""The training loop of one trial: steps on the clock, evaluations off it.

The order is AlgoPerf's: input queue, model, optimizer state (untimed); then data selection and updates
(timed), and at every evaluation `prepare_for_eval` (timed) and the evaluation itself (untimed). Dispatch is
asynchronous, so the clock runs on over the steps between two evaluations and waits for the device once,
before it stops.
"""

import math
import time
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax

from tuning.checkpoint import Checkpoints
from tuning.clock import CompileTimer, SubmissionClock
from tuning.errors import UserError, setup_phase
from tuning.outcome import Miss, Progress
from tuning.randomness import Keys, Stream
from tuning.records import MetricsLogger
from tuning.submission import Submission
from workloads.spec import Direction

# What a checkpoint's record holds of `Training` as it is, and of `train_state`.
_COUNTERS = ("global_step", "training_complete", "reached", "best", "preemption_count")
_COUNTERS += ("eval_seconds", "logging_seconds")
_FLAGS = ("validation_goal_reached", "test_goal_reached", "accumulated_eval_time", "accumulated_logging_time")


class Training:
    """A submission training on a workload. `set_up`, then `run`, each once."""

    def __init__(
        self,
        workload: Any,
        submission: Submission,
        hyperparameters: tuple,
        keys: Keys,
        logger: MetricsLogger,
        step_budget: int,
        stop_at_target: bool,
        checkpoints: Checkpoints | None = None,
    ):
        self.workload, self.submission, self.hyperparameters = workload, submission, hyperparameters
        self.keys, self.logger = keys, logger
        self.needs_train_state = submission.needs_train_state
        self.step_budget, self.stop_at_target = step_budget, stop_at_target
        self.metric_key = f"validation/{workload.target_metric_name}"
        self.checkpoints = checkpoints
        self.clock, self.compiles = SubmissionClock(), CompileTimer()
        self.global_step = 0
        self.training_complete = False
        self.eval_results: list[tuple[int, dict[str, Any]]] = []
        self.reached: tuple[int, float, float] | None = None  # step, submission seconds, compile seconds
        self.best: tuple[int, float] | None = None  # step, validation metric
        self.eval_seconds = self.logging_seconds = 0.0
        self.preemption_count = 0
        self.started_at = self.last_eval_at = time.perf_counter()
        self.earlier_seconds = 0.0  # wall seconds before this process
        # What update_params may look at; AlgoPerf's names.
        self.train_state: dict[str, Any] = {
            "validation_goal_reached": False,
            "test_goal_reached": False,
            "is_time_remaining": True,
            "last_eval_time": 0,
            "training_complete": False,
            "accumulated_submission_time": 0.0,
            "accumulated_eval_time": 0.0,
            "accumulated_logging_time": 0.0,
            "last_step_end_time": None,
        }

    def set_up(self, workload_name: str, data_dir: str) -> None:
        """Builds the input queue, the model and the optimizer state. May raise UserError."""
        self.data_dir = data_dir
        with setup_phase():
            self.batch_size = self._divisible(self.submission.get_batch_size(workload_name), "batch size")
            own_eval_size = self.submission.get_eval_batch_size
            eval_size = own_eval_size(workload_name) if own_eval_size else self.workload.eval_batch_size
            self.eval_batch_size = self._divisible(eval_size, "evaluation batch size")
            self.input_queue = self.workload._build_input_queue(
                self.keys.of(Stream.DATA), "train", data_dir=data_dir, global_batch_size=self.batch_size
            )
            self.params, self.model_state = self.workload.init_model_fn(self.keys.of(Stream.MODEL_INIT))
            self.optimizer_state = self._init_optimizer_state()
        self.workload.attach_metrics_logger(self.logger)

    def _init_optimizer_state(self) -> Any:
        try:
            key = self.keys.of(Stream.OPTIMIZER_INIT)
            return self.submission.init_optimizer_state(
                self.workload, self.params, self.model_state, self.hyperparameters, key
            )
        except AttributeError as error:
            if error.obj is not self.hyperparameters:
                raise
            missing = f"submission {self.submission.name!r} needs hyperparameter {error.name!r}"
            raise UserError(f"{missing}; add it to the search space") from error

    def _divisible(self, size: int, what: str) -> int:
        n_devices = jax.local_device_count()
        if size % n_devices:
            raise UserError(f"{what} {size} does not split over {n_devices} devices; use a multiple")
        return size

    def resume(self) -> bool:
        """Goes on from the newest checkpoint, after `set_up`; False if there is none.

        Raises:
            UserError: the checkpoint is of another trial.
        """
        like = self.params, self.model_state, self.optimizer_state[0]
        found = self.checkpoints.newest(like) if self.checkpoints else None
        if found is None:
            return False
        (self.params, self.model_state, state), record = found
        self.optimizer_state = (state, self.optimizer_state[1])
        if record["queue"] is not None:
            self.input_queue.set_state(record["queue"])
        self.clock.add(record["submission_seconds"])
        self.compiles.add_earlier(**record["compiles"])
        self.logger.take_up(record["logger"])
        self.train_state |= record["train_state"]
        self.eval_results = [(step, result) for step, result in record["eval_results"]]
        for name in _COUNTERS:
            value = record[name]
            setattr(self, name, tuple(value) if isinstance(value, list) else value)
        self.preemption_count += 1
        self.earlier_seconds = record["total_seconds"]
        return True

    def _save_checkpoint(self) -> None:
        began = time.perf_counter()
        can_restore = hasattr(self.input_queue, "get_state")
        record = {name: getattr(self, name) for name in _COUNTERS} | {
            "queue": self.input_queue.get_state() if can_restore else None,
            "submission_seconds": self.clock.seconds,
            "compiles": {
                "seconds": self.compiles.seconds,
                "n_compiles": self.compiles.n_compiles,
                "n_cache_hits": self.compiles.n_cache_hits,
            },
            "logger": self.logger.rows(),
            "train_state": {name: self.train_state[name] for name in _FLAGS},
            "eval_results": self.eval_results,
            "total_seconds": self._total_seconds(),
        }
        self.checkpoints.save(self.global_step, (self.params, self.model_state, self.optimizer_state[0]), record)
        self.logging_seconds += time.perf_counter() - began

    def run(
        self, report: Callable[[Progress], None], cannot_win: Callable[[Progress], bool] = lambda progress: False
    ) -> Miss | None:
        """Trains until the target, the budget or divergence, or until `cannot_win` says so after an evaluation.

        None if the target was reached, else why not.
        """
        jax.block_until_ready((self.params, self.model_state, self.optimizer_state))
        self.started_at = self.last_eval_at = time.perf_counter()
        miss = Miss.DIVERGED
        while self._train_until_evaluation(report):
            if not self.train_state["is_time_remaining"]:
                miss = Miss.BUDGET  # an evaluation after the time limit does not count: AlgoPerf makes none
                break
            if not self._evaluate():
                break
            report(self._progress())
            is_hopeless = cannot_win(self._progress())  # asked at the end, too: others are compared with what it hears
            if self.training_complete or (self.reached and self.stop_at_target):
                miss = Miss.BUDGET
                break
            if is_hopeless:
                miss = Miss.PRUNED
                break
            if self.checkpoints:
                self._save_checkpoint()
        self.logger.flush()
        return None if self.reached else miss

    def _train_until_evaluation(self, report: Callable[[Progress], None]) -> bool:
        """Steps to the next evaluation, and preparation for it; False if training has diverged."""
        with self.compiles, self.clock.timed() as wait_for:
            while True:
                self._step()
                report(self._progress())
                if self.logger.has_diverged or self._evaluation_is_due():
                    break
            if self.submission.prepare_for_eval is not None and not self.logger.has_diverged:
                key = self.keys.of(Stream.PREPARE_FOR_EVAL, self.global_step)
                self._take(self.submission.prepare_for_eval(**self._arguments(key)))
            wait_for((self.optimizer_state, self.params, self.model_state))
        self.train_state["accumulated_submission_time"] = self.clock.seconds
        self.train_state["is_time_remaining"] = self.clock.seconds < self.workload.max_allowed_runtime_sec
        return not self.logger.has_diverged

    def _step(self) -> None:
        self.train_state["accumulated_submission_time"] = self.clock.seconds
        if self.needs_train_state:
            state = {"train_state": MappingProxyType(self.train_state)}
        else:
            state = {}
        batch = self.submission.data_selection(
            self.workload,
            self.input_queue,
            self.optimizer_state,
            self.params,
            self.model_state,
            self.hyperparameters,
            self.global_step,
            self.keys.of(Stream.DATA_SELECTION, self.global_step),
        )
        arguments = self._arguments(self.keys.of(Stream.UPDATE, self.global_step))
        try:
            self._take(self.submission.update_params(**arguments, batch=batch, **state))
        except Exception as error:
            # AlgoPerf lets a submission end its training; the class is the harness's, so its name must do.
            if type(error).__name__ != "TrainingCompleteError":
                raise
            self.training_complete = True
        self.global_step += 1
        self.training_complete |= self.global_step >= self.step_budget
        self.train_state["training_complete"] = self.training_complete
        self.train_state["last_step_end_time"] = time.perf_counter()

    def _arguments(self, key: jax.Array) -> dict[str, Any]:
        return dict(
            workload=self.workload,
            current_param_container=self.params,
            current_params_types=self.workload.model_params_types,
            model_state=self.model_state,
            hyperparameters=self.hyperparameters,
            loss_type=self.workload.loss_type,
            optimizer_state=self.optimizer_state,
            eval_results=self.eval_results,
            global_step=self.global_step,
            rng=key,
        )

    def _take(self, updated: tuple[Any, Any, Any]) -> None:
        self.optimizer_state, self.params, self.model_state = updated

    def _evaluation_is_due(self) -> bool:
        if self.training_complete or self.clock.seconds >= self.workload.max_allowed_runtime_sec:
            return True
        if self.workload.eval_period_steps is not None:
            return self.global_step % self.workload.eval_period_steps == 0
        return time.perf_counter() - self.last_eval_at >= self.workload.eval_period_time_sec

    def _evaluate(self) -> bool:
        """Evaluates all splits and writes the measurements; False if a loss or the metric is not finite."""
        began = time.perf_counter()
        result = self.workload.eval_model(
            self.eval_batch_size,
            self.params,
            self.model_state,
            self.keys.of(Stream.EVAL, self.global_step),
            self.data_dir,
            None,
            self.global_step,
        )
        result = {name: float(value) for name, value in result.items()}
        self._judge(result)
        self.last_eval_at = time.perf_counter()
        self.eval_seconds += self.last_eval_at - began
        result |= self._times()
        self.eval_results.append((self.global_step, result))
        self.logger.append_scalar_metrics(result, self.global_step, self.preemption_count, is_eval=True)
        self.logger.flush()
        self.logging_seconds += time.perf_counter() - self.last_eval_at
        self.train_state["last_eval_time"] = self.last_eval_at
        self.train_state["accumulated_eval_time"] = self.eval_seconds
        self.train_state["accumulated_logging_time"] = self.logging_seconds
        judged = [result[name] for name in result if name.endswith("/loss") or name == self.metric_key]
        return all(map(math.isfinite, judged)) and not self.logger.has_diverged

    def _judge(self, result: dict[str, float]) -> None:
        if self.workload.has_reached_validation_target(result):
            self.train_state["validation_goal_reached"] = True
            self.reached = self.reached or (self.global_step, self.clock.seconds, self.compiles.seconds)
        if self.workload.num_test_examples is not None and self.workload.has_reached_test_target(result):
            self.train_state["test_goal_reached"] = True
        metric = result[self.metric_key]
        sign = 1 if self.workload.validation_target.direction is Direction.HIGHER_IS_BETTER else -1
        if math.isfinite(metric) and (self.best is None or sign * metric > sign * self.best[1]):
            self.best = (self.global_step, metric)

    def _times(self) -> dict[str, float]:
        return {
            "score": self.clock.seconds,
            "total_duration": self._total_seconds(),
            "accumulated_submission_time": self.clock.seconds,
            "accumulated_eval_time": self.eval_seconds,
            "accumulated_logging_time": self.logging_seconds,
        }

    def _total_seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started_at

    def _progress(self) -> Progress:
        return Progress(
            global_step=self.global_step,
            step_budget=self.step_budget,
            submission_seconds=self.clock.seconds,
            metric_name=self.workload.target_metric_name,
            metric=self.eval_results[-1][1][self.metric_key] if self.eval_results else None,
            n_evaluations=len(self.eval_results),
        )
