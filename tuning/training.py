"""The training loop of one trial: steps on the clock; evaluations and checkpoints off it.

The order is AlgoPerf's. Input queue, model and optimizer state come first, untimed. Then come data selection and
updates, timed, and at every evaluation `prepare_for_eval` (timed) and the evaluation itself (untimed). Dispatch is
asynchronous. So the clock runs through all steps between two evaluations, and waits for the device once, before it
stops.
"""

import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict
from typing import Any

import jax

from tuning import machine
from tuning.checkpoint import Checkpoints
from tuning.clock import CompileCounts, CompileTimer, SubmissionClock
from tuning.description import TrialDescription
from tuning.errors import UserError
from tuning.interruption import Interrupted, Interruption
from tuning.metrics_logger import MetricsLogger
from tuning.monitoring import StepTrace
from tuning.outcome import Miss, Progress
from tuning.processes import Processes
from tuning.submission import Submission
from tuning.submission_run import SubmissionRun
from tuning.training_record import Best, Counters, Reached


class Training:
    """A submission training on a workload. Call `set_up`, then optionally `resume`, then `run`, each once.

    Args:
        interruption: signals that end the training with a checkpoint.
        checkpoints: None saves none.
        checkpoint_period_s: wall seconds after which a checkpoint is saved between two evaluations; 0 for never.
        processes: those that carry out this trial together. The first one's checkpoints, clock and signals count.
        trace: the profiler's trace of some steps.
    """

    def __init__(
        self,
        description: TrialDescription,
        workload: Any,
        submission: Submission,
        logger: MetricsLogger,
        interruption: Interruption,
        checkpoints: Checkpoints | None,
        checkpoint_period_s: float,
        processes: Processes,
        trace: StepTrace,
    ):
        self.description, self.workload, self.logger = description, workload, logger
        self.interruption, self.checkpoints, self.checkpoint_period_s = interruption, checkpoints, checkpoint_period_s
        self.processes, self.trace = processes, trace
        self.submission_run = SubmissionRun(description, workload, submission)
        self.metric_key = f"validation/{workload.target_metric_name}"
        self.time_budget_s = math.inf if description.time_budget_s is None else description.time_budget_s
        self.clock, self.compiles, self.counters = SubmissionClock(), CompileTimer(), Counters()
        self._earlier_s = self._since_evaluation_s = 0.0  # wall seconds before this process
        self._last_step_end_at: float | None = None

    def set_up(self) -> None:
        """Builds the input queue, the model and the optimizer state. May raise UserError."""
        with self.processes.finished_by_all(), self.interruption.interruptible():
            self.submission_run.set_up()
        self.workload.attach_metrics_logger(self.logger)

    def resume(self) -> bool:
        """Continues from the newest checkpoint, after `set_up`; False if there is none.

        Raises:
            UserError: the checkpoint is of another trial, or has done more steps than this one's budget.
        """
        restored = self.checkpoints.newest(self.submission_run.arrays) if self.checkpoints else None
        record = self.processes.from_first(None if restored is None else restored.record)
        if record is None:
            return False
        counters, budget = Counters.from_json(record["counters"]), self.description.step_budget
        if counters.global_step > budget:
            done = counters.global_step
            problem = f"the trial has done {done} steps, more than its budget of {budget}"
            raise UserError(f"{problem}: give --max_global_steps={done} or more")
        arrays = self.processes.arrays_of_first(restored.arrays if restored else self.submission_run.arrays)
        self.submission_run.arrays, self.counters = arrays, counters
        if record["queue"] is not None:
            self.submission_run.input_queue.set_state(record["queue"])
        self.clock.add(record["submission_seconds"])
        self.compiles.add_earlier(CompileCounts(**record["compiles"]))
        self.logger.restore(record["rows"])
        self.counters.preemption_count += 1
        changes = restored.changes if restored else {}
        self.counters.resumptions.append({"global_step": self.counters.global_step, "changes": changes})
        self._earlier_s, self._since_evaluation_s = record["total_seconds"], record["since_evaluation_seconds"]
        return True

    def run(
        self, report: Callable[[Progress], None], should_prune: Callable[[Progress], bool] = lambda progress: False
    ) -> Miss | None:
        """Trains until the target, the budget or divergence, or until `should_prune` is true after an evaluation.

        Returns None if the target was reached, otherwise the reason why not.

        Raises:
            Interrupted: a signal asked the process to end; a checkpoint has been saved.
        """
        jax.block_until_ready(self.submission_run.arrays)
        now = time.perf_counter()
        self._started_at, self._last_eval_at = now - self._earlier_s, now - self._since_evaluation_s
        self._last_saved_at = now
        with closing(self.trace):
            miss = self._run_to_the_end(report, should_prune)
        self.logger.flush()
        self._wait_for_checkpoint()
        return None if self.counters.reached else miss

    def _run_to_the_end(self, report: Callable[[Progress], None], should_prune: Callable[[Progress], bool]) -> Miss:
        while not self._is_over():
            if not self.counters.is_evaluation_due:
                self._train(report)
            if self._has_diverged():
                return Miss.DIVERGED
            if self.processes.from_first(self.clock.seconds >= self.time_budget_s):
                return Miss.BUDGET  # an evaluation after the time limit does not count: AlgoPerf makes none
            if self.counters.is_evaluation_due:
                if not self._evaluate():
                    return Miss.DIVERGED
                report(self._progress())
                # Called at the end, too, since it records the metric that other trials are compared with.
                if self.processes.from_first(should_prune(self._progress())) and not self._is_over():
                    return Miss.PRUNED
            self._save_checkpoint()
            if signal_name := self.processes.from_first(self._signal()):
                self.interruption.signal_name = signal_name
                self._end_by_signal()
        return Miss.BUDGET

    def _is_over(self) -> bool:
        if self.counters.is_evaluation_due:
            return False
        return self._is_training_complete() or bool(self.counters.reached and self.description.stop_at_target)

    def _is_training_complete(self) -> bool:
        return self.counters.has_ended_itself or self.counters.global_step >= self.description.step_budget

    def _train(self, report: Callable[[Progress], None]) -> None:
        """Trains until an evaluation or a checkpoint is due, or training has diverged. Prepares for the evaluation."""
        counters, began_at, seconds_before = self.counters, self.counters.global_step, self._training_seconds()
        with self.compiles, self.clock.timed() as wait_for:
            while True:
                self.trace.before(counters.global_step)
                train_state = (
                    self.processes.from_first(self._train_state()) if self.submission_run.needs_train_state else {}
                )
                if not self.submission_run.step(counters.global_step, counters.eval_results, train_state):
                    counters.has_ended_itself = True
                self.trace.after(counters.global_step, self.submission_run.arrays)
                counters.profiled_steps = self.trace.traced or counters.profiled_steps
                counters.global_step += 1
                self._last_step_end_at = time.perf_counter()
                report(self._progress())
                due = self._evaluation_is_due(), self.logger.has_diverged, self._checkpoint_is_due()
                is_evaluation_due, has_diverged, is_checkpoint_due = self.processes.from_first(due)
                if is_evaluation_due or has_diverged or is_checkpoint_due:
                    break
            if is_evaluation_due and not has_diverged:
                counters.is_evaluation_due = True
                self.submission_run.prepare_for_eval(counters.global_step, counters.eval_results)
            wait_for(self.submission_run.arrays)
        n_steps = counters.global_step - began_at
        counters.blocks.append((n_steps, (self._training_seconds() - seconds_before) / n_steps))
        counters.peak_device_memory_bytes = machine.peak_device_memory_bytes()

    def _training_seconds(self) -> float:
        return self.clock.seconds - self.compiles.counts.seconds

    def _train_state(self) -> dict[str, Any]:
        """The values that update_params may read, under AlgoPerf's names."""
        counters = self.counters
        return {
            "validation_goal_reached": counters.validation_goal_reached,
            "test_goal_reached": counters.test_goal_reached,
            "is_time_remaining": self.clock.seconds < self.time_budget_s,
            "last_eval_time": self._last_eval_at if counters.eval_results else 0,
            "training_complete": self._is_training_complete(),
            "accumulated_submission_time": self.clock.seconds,
            "accumulated_eval_time": counters.eval_seconds,
            "accumulated_logging_time": counters.logging_seconds,
            "last_step_end_time": self._last_step_end_at,
        }

    def _evaluation_is_due(self) -> bool:
        if self._is_training_complete() or self.clock.seconds >= self.time_budget_s:
            return True
        if self.workload.eval_period_steps is not None:
            return self.counters.global_step % self.workload.eval_period_steps == 0
        return time.perf_counter() - self._last_eval_at >= self.workload.eval_period_time_sec

    def _checkpoint_is_due(self) -> bool:
        if self._signal():
            return True
        if self.checkpoints is None or not self.checkpoint_period_s:
            return False
        return time.perf_counter() - self._last_saved_at >= self.checkpoint_period_s

    def _save_checkpoint(self) -> None:
        if self.checkpoints is None:
            return
        began, queue = time.perf_counter(), self.submission_run.input_queue
        self.logger.flush()
        record = {
            "counters": asdict(self.counters),
            "compiles": asdict(self.compiles.counts),
            "submission_seconds": self.clock.seconds,
            "total_seconds": began - self._started_at,  # wall seconds, set-up excluded
            "since_evaluation_seconds": began - self._last_eval_at,  # wall seconds
            "queue": queue.get_state() if hasattr(queue, "get_state") else None,  # the input queue's position
            "rows": self.logger.rows(),  # of the measurement files
        }
        self.checkpoints.save(self.counters.global_step, self.submission_run.arrays, record)
        self._last_saved_at = time.perf_counter()
        self.counters.logging_seconds += self._last_saved_at - began

    def _wait_for_checkpoint(self) -> None:
        if self.checkpoints is not None:
            self.checkpoints.wait()

    def _evaluate(self) -> bool:
        """Evaluates all splits and writes the measurements; False if a loss or the metric is not finite."""
        counters = self.counters
        if self.processes.count > 1:
            self._save_checkpoint()  # several processes cannot stop in the middle of an evaluation
        began = time.perf_counter()
        try:
            with self.interruption.interruptible() if self.processes.count == 1 else nullcontext():
                result = self.submission_run.evaluate(counters.global_step)
        except Interrupted:
            self._save_checkpoint()  # with the evaluation still due
            self._end_by_signal()
        result = self.processes.from_first(result)
        self._update_best(result)
        self._last_eval_at = time.perf_counter()
        counters.eval_seconds += self._last_eval_at - began
        result |= self.processes.from_first(self._times())
        counters.eval_results.append((counters.global_step, result))
        counters.is_evaluation_due = False
        self.logger.append_scalar_metrics(result, counters.global_step, counters.preemption_count, is_eval=True)
        self.logger.flush()
        counters.logging_seconds += time.perf_counter() - self._last_eval_at
        values = [result[name] for name in result if name.endswith("/loss") or name == self.metric_key]
        return all(map(math.isfinite, values)) and not self._has_diverged()

    def _end_by_signal(self) -> None:
        self._wait_for_checkpoint()
        saved_step = None if self.checkpoints is None else self.counters.global_step
        self.interruption.raise_if_signalled(self.processes.from_first(saved_step))

    def _has_diverged(self) -> bool:
        return self.processes.from_first(self.logger.has_diverged)

    def _signal(self) -> str | None:
        return self.processes.signal(self.interruption.signal_name)

    def _update_best(self, result: dict[str, float]) -> None:
        counters = self.counters
        if self.workload.has_reached_validation_target(result):
            counters.validation_goal_reached = True
            now = Reached(counters.global_step, self.clock.seconds, self.compiles.counts.seconds)
            counters.reached = counters.reached or now
        if self.workload.num_test_examples is not None and self.workload.has_reached_test_target(result):
            counters.test_goal_reached = True
        metric = result[self.metric_key]
        sign = self.workload.validation_target.direction.sign
        if math.isfinite(metric) and (counters.best is None or sign * metric > sign * counters.best.metric):
            counters.best = Best(counters.global_step, metric)

    def _times(self) -> dict[str, float]:
        return {
            "score": self.clock.seconds,
            "total_duration": time.perf_counter() - self._started_at,
            "accumulated_submission_time": self.clock.seconds,
            "accumulated_eval_time": self.counters.eval_seconds,
            "accumulated_logging_time": self.counters.logging_seconds,
        }

    def _progress(self) -> Progress:
        results = self.counters.eval_results
        return Progress(
            global_step=self.counters.global_step,
            step_budget=self.description.step_budget,
            metric_name=self.workload.target_metric_name,
            metric=results[-1][1][self.metric_key] if results else None,
            n_evaluations=len(results),
        )
