import csv
import errno
import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_trial import FakeTime, FakeWorkload, fake_submission, log_loss, run_fake_trial

from tuning import training
from tuning.clock import SubmissionClock
from tuning.errors import MachineFault, UserError
from tuning.randomness import Keys, Stream
from workloads.spec import Direction


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a trial with its submission clock on the workload's fake time."""

    def run(workload, submission, **options):
        monkeypatch.setattr(training, "SubmissionClock", functools.partial(SubmissionClock, workload.time))
        return run_fake_trial(tmp_path, workload, submission, **({"rng_seed": 5} | options))

    return run


def test_reaching_the_target_scores_steps_and_submission_seconds(run, tmp_path):
    outcome = run(FakeWorkload(target=0.2), fake_submission(log_loss))
    # 20 steps of data selection and update, two preparations; the evaluations' 100 s each are not in it.
    assert (outcome.steps_to_target, outcome.seconds_to_target) == (20, 20 * 1.25 + 2 * 2.0)
    assert (outcome.reason, outcome.error, outcome.global_step, outcome.step_budget) == (None, None, 20, 40)
    assert (outcome.best_validation_metric, outcome.best_validation_step) == (0.2, 20)
    written = json.loads((tmp_path / "outcome.json").read_text())
    assert written == outcome.to_json()
    for both, of_it in (("submission_seconds", ""), ("seconds_to_target", "_to_target")):
        assert written[f"training_seconds{of_it}"] == written[both] - written[f"compile_seconds{of_it}"]
    assert written["hyperparameters"] == {"learning_rate": 0.1} and written["rng_seed"] == 5
    assert json.loads((tmp_path / "hparams.json").read_text()) == {"learning_rate": 0.1}
    assert json.loads((tmp_path / "meta_data_0.json").read_text())["workload.step_hint"] == 40


def test_measurements_on_disk(run, tmp_path):
    run(FakeWorkload(target=0.2), fake_submission(log_loss))
    evaluations = rows(tmp_path / "eval_measurements.csv")
    assert list(evaluations[0]) == [
        "global_step",
        "preemption_count",
        "score",
        "total_duration",
        "accumulated_submission_time",
        "accumulated_eval_time",
        "accumulated_logging_time",
        "train/loss",
        "validation/loss",
        "validation/score",
        "test/score",
    ]
    assert [row["global_step"] for row in evaluations] == ["10", "20"]
    assert [float(row["score"]) for row in evaluations] == [14.5, 29.0]
    assert [row["accumulated_submission_time"] for row in evaluations] == ["14.5", "29.0"]
    measured = rows(tmp_path / "measurements.csv")
    assert [int(row["global_step"]) for row in measured] == [*range(10), 10, *range(10, 20), 20]
    assert [float(row["loss"]) for row in measured if row["loss"]] == [1 / (1 + step) for step in range(20)]
    flags = json.loads((tmp_path / "flags_0.json").read_text())
    assert (flags["rng_seed"], flags["batch_size"], flags["step_budget"]) == (5, 8, 40)


def test_out_of_steps(run):
    outcome = run(FakeWorkload(target=0.9), fake_submission())
    assert (outcome.reason, outcome.steps_to_target, outcome.seconds_to_target) == ("budget", None, None)
    assert (outcome.global_step, outcome.best_validation_step) == (40, 40)


def test_fewer_steps_end_with_an_evaluation_and_more_are_not_given(run):
    fewer = run(FakeWorkload(), fake_submission(), max_global_steps=13)
    assert (fewer.global_step, fewer.best_validation_step, fewer.target_value) == (13, 13, None)
    assert run(FakeWorkload(), fake_submission(), max_global_steps=99).global_step == 40


def test_out_of_time_makes_no_late_evaluation(run, tmp_path):
    workload = FakeWorkload(target=0.15)
    workload.max_allowed_runtime_sec = 20
    outcome = run(workload, fake_submission())
    # 14.5 s after step 10 and its preparation, 1.25 s a step: past 20 s after step 15: no evaluation.
    assert (outcome.reason, outcome.global_step, outcome.steps_to_target) == ("budget", 15, None)
    assert [row["global_step"] for row in rows(tmp_path / "eval_measurements.csv")] == ["10"]


def test_training_on_after_the_target_keeps_the_first_score(run):
    outcome = run(FakeWorkload(target=0.2), fake_submission(), stop_at_target=False)
    assert (outcome.global_step, outcome.steps_to_target, outcome.seconds_to_target) == (40, 20, 29.0)
    assert (outcome.reason, outcome.best_validation_step) == (None, 40)


def test_a_trial_that_should_prune_ends_as_pruned_unless_it_has_won(run):
    pruned = run(FakeWorkload(target=0.9), fake_submission(), should_prune=lambda progress: progress.global_step >= 20)
    assert (pruned.reason, pruned.global_step, pruned.steps_to_target) == ("pruned", 20, None)
    won = run(FakeWorkload(target=0.2), fake_submission(), should_prune=lambda progress: progress.global_step >= 20)
    assert (won.reason, won.steps_to_target) == (None, 20)


def test_lower_is_better(run):
    workload = FakeWorkload(target=-0.1, direction=Direction.LOWER_IS_BETTER)
    workload.evaluate = {10: 0.4, 20: -0.05, 30: 0.3, 40: 0.2}.get
    outcome = run(workload, fake_submission())
    assert (outcome.best_validation_metric, outcome.best_validation_step) == (-0.05, 20)
    assert outcome.reason == "budget"


def test_two_logged_losses_in_a_row_that_are_not_finite_end_the_trial_at_once(run, tmp_path):
    def log_nan(call):
        loss = math.nan if call.global_step in (5, 11, 12) else 1.0
        call.workload.metrics_logger.append_scalar_metrics({"loss": loss}, call.global_step)

    outcome = run(FakeWorkload(target=0.2), fake_submission(log_nan))
    assert (outcome.reason, outcome.global_step, outcome.steps_to_target) == ("diverged", 13, None)
    assert json.loads((tmp_path / "outcome.json").read_text())["reason"] == "diverged"
    assert rows(tmp_path / "measurements.csv")[-1]["loss"] == "nan"


def test_an_evaluation_that_is_not_finite_ends_the_trial(run, tmp_path):
    workload = FakeWorkload(target=0.2)
    workload.evaluate = {10: 0.1, 20: math.nan}.get
    outcome = run(workload, fake_submission())
    assert (outcome.reason, outcome.global_step, outcome.best_validation_metric) == ("diverged", 20, 0.1)
    assert rows(tmp_path / "eval_measurements.csv")[-1]["validation/score"] == "nan"


def test_a_crash_is_written_and_raised(run, tmp_path):
    def fail_at_12(call):
        log_loss(call)
        if call.global_step == 12:
            raise ValueError("first line\n  second line")

    with pytest.raises(ValueError, match="first line") as caught:
        run(FakeWorkload(), fake_submission(fail_at_12))
    assert not isinstance(caught.value, UserError)
    written = json.loads((tmp_path / "outcome.json").read_text())
    assert (written["reason"], written["error"]) == ("crashed", "ValueError: first line second line")
    assert (written["global_step"], written["best_validation_step"]) == (12, 10)
    assert rows(tmp_path / "measurements.csv")[-1]["global_step"] == "12"


def test_a_crashed_trial_that_goes_on_has_not_crashed_when_it_is_stopped(run, tmp_path):
    class Stopped(BaseException):
        pass

    def fail_at_12(call):
        if call.global_step == 12:
            raise ValueError("a bug, then fixed")

    def stop(progress):
        if progress.global_step == 15:
            raise Stopped

    options = dict(checkpoints_to_keep=2, resume=True)
    with pytest.raises(ValueError, match="then fixed"):
        run(FakeWorkload(), fake_submission(fail_at_12), **options)
    with pytest.raises(Stopped):
        run(FakeWorkload(), fake_submission(), report=stop, **options)
    assert not (tmp_path / "outcome.json").exists() and (tmp_path / "eval_measurements.csv").exists()
    assert run(FakeWorkload(), fake_submission(), **options).reason == "budget"


def test_an_ended_trial_that_goes_on_has_not_ended_when_it_is_stopped(run, tmp_path):
    class Stopped(BaseException):
        pass

    def stop(progress):
        if progress.global_step == 15:
            raise Stopped

    options = dict(checkpoints_to_keep=2, resume=True)
    assert run(FakeWorkload(), fake_submission(), max_global_steps=10, **options).reason == "budget"
    with pytest.raises(Stopped):
        run(FakeWorkload(), fake_submission(), report=stop, **options)
    assert not (tmp_path / "outcome.json").exists()
    assert run(FakeWorkload(), fake_submission(), **options).reason == "budget"


@pytest.mark.parametrize(
    "fault",
    [
        jax.errors.JaxRuntimeError("INTERNAL: CUDA error: an illegal memory access was encountered"),
        MemoryError("cannot allocate"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_fault_of_the_machine_is_one_line_and_no_crash_of_the_trial(run, tmp_path, fault):
    def fail_at_15(call):
        log_loss(call)
        if call.global_step == 15:
            raise fault

    options = dict(checkpoints_to_keep=2, resume=True)
    with pytest.raises(MachineFault) as caught:
        run(FakeWorkload(), fake_submission(fail_at_15), **options)
    assert "\n" not in str(caught.value) and (fault.args[-1] in str(caught.value))
    assert "--resume" in str(caught.value) or "what is done is kept" in str(caught.value)
    assert not (tmp_path / "outcome.json").exists()
    resumed = run(FakeWorkload(), fake_submission(log_loss), **options)
    assert (resumed.reason, [one["global_step"] for one in resumed.resumptions]) == ("budget", [10])


def test_a_submission_may_end_its_training(run):
    class TrainingCompleteError(Exception):
        pass

    def stop_at_4(call):
        if call.global_step == 4:
            raise TrainingCompleteError

    workload = FakeWorkload()
    workload.eval_model = lambda *arguments: {"validation/score": 0.1, "validation/loss": 1.0}
    outcome = run(workload, fake_submission(stop_at_4))
    assert (outcome.reason, outcome.global_step, outcome.best_validation_step) == ("budget", 5, 5)


def test_a_bad_hyperparameter_is_the_users_error_and_writes_nothing(run, tmp_path):
    def refuse(*arguments):
        raise ValueError("unknown hyperparameter 'lr'; known: learning_rate")

    with pytest.raises(UserError, match="^unknown hyperparameter 'lr'; known: learning_rate$"):
        run(FakeWorkload(), fake_submission(init_optimizer_state=refuse))

    def read_missing(workload, params, state, hyperparameters, rng):
        return hyperparameters.momentum

    with pytest.raises(UserError, match="'counting' needs hyperparameter 'momentum'; add it"):
        run(FakeWorkload(), fake_submission(init_optimizer_state=read_missing))
    assert not list(tmp_path.iterdir())


def test_an_evaluation_batch_that_the_workload_refuses_ends_the_set_up(run, tmp_path):
    class Picky(FakeWorkload):
        def _build_input_queue(self, data_rng, split, data_dir, global_batch_size):
            if split == "test" and global_batch_size == 3:
                raise ValueError("the batch size must be even")
            return super()._build_input_queue(data_rng, split, data_dir, global_batch_size)

    with pytest.raises(UserError, match="^the batch size must be even$"):
        run(Picky(), fake_submission(lambda call: pytest.fail("trained"), get_eval_batch_size=lambda name: 3))
    assert not list(tmp_path.iterdir())
    assert run(Picky(), fake_submission(get_eval_batch_size=lambda name: 4)).eval_batch_size == 4


def test_a_submission_without_a_usable_batch_size_is_the_users_error(run, tmp_path):
    with pytest.raises(UserError, match="submission 'counting' has the batch size None for 'fake'; return a positive"):
        run(FakeWorkload(), fake_submission(get_batch_size=lambda name: None))

    def unknown(name):
        raise ValueError(f"unknown workload {name!r}")

    assert run(FakeWorkload(), fake_submission(get_eval_batch_size=unknown)).eval_batch_size == 8


def test_keys_are_folded_by_purpose_and_handed_to_the_submission(run):
    key = jax.random.PRNGKey(5)
    for number in (3, int(Stream.UPDATE)):
        key = jax.random.fold_in(key, number)
    seen = []
    submission = fake_submission(lambda call: seen.append(call.rng))
    run(FakeWorkload(), submission, trial_index=3, max_global_steps=3)
    np.testing.assert_array_equal(seen, [jax.random.fold_in(key, step) for step in range(3)])
    everything = {
        tuple(np.asarray(Keys(seed, trial).of(stream, step)).tolist())
        for seed in range(2)
        for trial in range(2)
        for stream in Stream
        for step in range(2)
    }
    assert len(everything) == 2 * 2 * len(Stream) * 2


def test_seeds_beyond_32_bits_have_keys_of_their_own_and_small_ones_jaxs(run):
    def key(seed):
        return np.asarray(Keys(seed, 1).of(Stream.DATA)).tolist()

    seeds = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 1]
    assert len({tuple(key(seed)) for seed in seeds}) == len(seeds)
    for seed in seeds:
        with jax.enable_x64():
            own = jax.random.PRNGKey(np.uint64(seed))
        for number in (1, int(Stream.DATA), 0):  # trial, stream, step
            own = jax.random.fold_in(own, number)
        assert key(seed) == np.asarray(own).tolist()
    for seed in (-1, 2**64):
        with pytest.raises(UserError, match=f"seed {seed} is out of range; give one from 0 to 18446744073709551615"):
            run(FakeWorkload(), fake_submission(), rng_seed=seed)


def test_the_matmul_precision_holds_in_every_call_of_the_submission_and_is_recorded(run, tmp_path):
    seen = []
    submission = fake_submission(lambda call: seen.append(jax.config.jax_default_matmul_precision))
    outcome = run(FakeWorkload(), submission, max_global_steps=2, matmul_precision="float32")
    assert seen == ["float32"] * 2 and outcome.matmul_precision == "float32"
    assert json.loads((tmp_path / "flags_0.json").read_text())["matmul_precision"] == "float32"
    assert run(FakeWorkload(), submission, max_global_steps=2).matmul_precision == "default"
    assert jax.config.jax_default_matmul_precision is None


def test_a_checkpoint_is_on_disk_before_it_counts(run, tmp_path, monkeypatch):
    """After a loss of power what was not synced may be gone: the file is synced before its name, and the name too."""
    synced, replaced, (sync, replace) = [], [], (os.fsync, os.replace)

    def note_sync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def note_replace(source, target):
        if str(target).endswith(".checkpoint"):
            after_it = synced[synced.index(str(source)) :]
            assert str(tmp_path) in after_it  # the name of the folder of checkpoints, which is new
            synced.clear()
            replaced.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    run(FakeWorkload(), fake_submission(), checkpoints_to_keep=2, max_global_steps=10)
    assert len(replaced) == 1 and synced[0] == str(tmp_path / "checkpoints")


@pytest.mark.parametrize("failing", [3, 5, 8])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EMFILE])
def test_a_full_or_failing_disk_is_one_line_and_no_crash_of_the_trial(run, tmp_path, monkeypatch, failing, number):
    n_synced, sync = [], os.fsync

    def fail(descriptor):
        n_synced.append(descriptor)
        if len(n_synced) >= failing:
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    options = dict(checkpoints_to_keep=2, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(
            UserError, match=f"cannot write into .*{os.strerror(number)}.*: what is done is kept"
        ) as error:
            run(FakeWorkload(), fake_submission(log_loss), **options)
    assert "\n" not in str(error.value) and not (tmp_path / "outcome.json").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert run(FakeWorkload(), fake_submission(log_loss), **options).reason == "budget"


def test_the_device_is_waited_for_once_per_evaluation(run):
    class Pending:
        n_waits = 0

        def block_until_ready(self):
            Pending.n_waits += 1
            return self

    waits_in_step = []
    submission = fake_submission(
        lambda call: waits_in_step.append(Pending.n_waits),
        init_optimizer_state=lambda *arguments: (Pending(), None),
    )
    reported = []
    run(FakeWorkload(), submission, report=reported.append)
    assert waits_in_step == [1] * 10 + [2] * 10 + [3] * 10 + [4] * 10
    assert [p.global_step for p in reported] == sorted([*range(1, 41), 10, 20, 30, 40])
    assert reported[10].metric == 0.1 and reported[9].metric is None


def test_evaluation_by_time(run, monkeypatch, tmp_path):
    now = FakeTime()
    workload = FakeWorkload(time=now)
    workload.eval_period_steps, workload.eval_period_time_sec = None, 15
    monkeypatch.setattr(training.time, "perf_counter", now)
    run(workload, fake_submission())
    # 1.25 s a step: due every 12 steps, and at the end.
    evaluations = rows(tmp_path / "eval_measurements.csv")
    assert [row["global_step"] for row in evaluations] == ["12", "24", "36", "40"]


def test_train_state_is_passed_to_those_that_ask_and_cannot_be_written(run):
    seen = []

    def update_params(*, current_param_container, optimizer_state, model_state, train_state, workload, **others):
        workload.time.advance(1.0)
        seen.append(train_state["accumulated_submission_time"])
        with pytest.raises(TypeError):
            train_state["is_time_remaining"] = True
        return optimizer_state, {"w": current_param_container["w"] + 1}, model_state

    run(FakeWorkload(), fake_submission(update_params=update_params), max_global_steps=3)
    assert seen == [0.0, 1.25, 2.5]


@pytest.mark.parametrize("wait_rows", [3, 40])
def test_a_killed_trial_leaves_whole_files(tmp_path, wait_rows):
    program = f"import fake_trial; fake_trial.run_for_ever({str(tmp_path)!r})"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path})
    evaluations = tmp_path / "eval_measurements.csv"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not evaluations.exists() or len(rows(evaluations)) < wait_rows):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = rows(evaluations)
    assert [int(row["global_step"]) for row in found] == [2 * (i + 1) for i in range(len(found))]
    assert len(found) >= wait_rows and all(row["test/score"] for row in found)
    measured = rows(tmp_path / "measurements.csv")
    assert all(row["loss"] or row["train/loss"] for row in measured)
    for name in ("hparams.json", "meta_data_0.json", "flags_0.json"):
        json.loads((tmp_path / name).read_text())
    assert not (tmp_path / "outcome.json").exists()
