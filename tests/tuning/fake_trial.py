"""A workload and a submission without mathematics: every number of a trial can be told in advance.

The parameter counts the steps, the validation metric is the step divided by 100, and each of the contract's
functions moves a fake clock by a known number of seconds.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp

from tuning.claim import Claim
from tuning.description import describe
from tuning.submission import Submission
from tuning.trial import run_trial
from workloads.spec import Direction, Target

SELECT_S, UPDATE_S, PREPARE_S, EVAL_S = 0.25, 1.0, 2.0, 100.0


class FakeTime:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


class FakeWorkload:
    loss_type = model_params_types = None
    target_metric_name = "score"
    hardware_profile = None
    pads_batches = False
    test_target_value = 0.0
    num_train_examples = num_eval_train_examples = num_validation_examples = num_test_examples = 10
    eval_batch_size = 8
    eval_period_time_sec = 600

    def __init__(self, target=math.inf, direction=Direction.HIGHER_IS_BETTER, step_hint=40, time=None):
        self.validation_target = Target("score", target, direction)
        self.validation_target_value = target
        self.step_hint, self.eval_period_steps, self.max_allowed_runtime_sec = step_hint, 10, 10_000
        self.time = time or FakeTime()
        self.metrics_logger = None
        self.evaluate = lambda step: step / 100
        self.n_batches = 0

    def has_reached_validation_target(self, result):
        return self.validation_target.is_reached(result["validation/score"])

    def has_reached_test_target(self, result):
        return False

    def attach_metrics_logger(self, logger):
        self.metrics_logger = logger

    def _build_input_queue(self, data_rng, split, data_dir, global_batch_size):
        while True:
            self.n_batches += 1
            yield {"inputs": self.n_batches}

    def init_model_fn(self, rng):
        return {"w": jnp.zeros(())}, None

    def eval_model(self, batch_size, params, model_state, rng, data_dir, imagenet_v2_data_dir, global_step):
        self.time.advance(EVAL_S)
        assert float(params["w"]) == global_step
        score = self.evaluate(global_step)
        return {"train/loss": 0.25, "validation/loss": 0.5, "validation/score": score, "test/score": score}


def fake_submission(update=None, **changes):
    """A Submission that counts; `update(call)` is called in each update_params with its keyword arguments."""

    def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
        return {"keys": rng}, None

    def data_selection(workload, input_queue, *others):
        workload.time.advance(SELECT_S)
        return next(input_queue)

    def update_params(
        *,
        workload,
        current_param_container,
        current_params_types,
        model_state,
        hyperparameters,
        batch,
        loss_type,
        optimizer_state,
        eval_results,
        global_step,
        rng,
    ):
        workload.time.advance(UPDATE_S)
        if update:
            update(SimpleNamespace(**locals()))
        return optimizer_state, {"w": current_param_container["w"] + 1}, model_state

    def prepare_for_eval(*, workload, current_param_container, optimizer_state, model_state, **others):
        workload.time.advance(PREPARE_S)
        return optimizer_state, current_param_container, model_state

    functions = dict(
        init_optimizer_state=init_optimizer_state,
        update_params=update_params,
        data_selection=data_selection,
        prepare_for_eval=prepare_for_eval,
        get_batch_size=lambda name: 8,
        get_eval_batch_size=None,
    )
    return Submission(name="counting", file=Path("counting/submission.py"), **(functions | changes))


def log_loss(call):
    loss = 1.0 / (1 + call.global_step)
    call.workload.metrics_logger.append_scalar_metrics({"loss": loss}, call.global_step)


DESCRIBED = ("rng_seed", "trial_index", "max_global_steps", "stop_at_target", "pruning", "matmul_precision")


def run_fake_trial(trial_dir, workload, submission, point=None, claim=(), **options):
    """run_trial, on a folder that it claims by `claim`'s options; others are those of `describe` and of `run_trial`."""
    described = {"rng_seed": 0, "trial_index": 1}
    described |= {name: options.pop(name) for name in DESCRIBED if name in options}
    description = describe(
        "fake", workload, submission, point or {"learning_rate": 0.1}, data_dir=str(trial_dir), **described
    )
    with Claim.take(trial_dir, **dict(claim)) as own:
        return run_trial(description, workload, submission, own, **options)


def run_for_ever(trial_dir):
    """For a process that is to be killed: logs at every step and evaluates after every second one."""
    workload = FakeWorkload(step_hint=10**9)
    workload.eval_period_steps, workload.max_allowed_runtime_sec = 2, math.inf
    run_fake_trial(Path(trial_dir), workload, fake_submission(log_loss))
