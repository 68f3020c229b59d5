"""Signals end a trial with a checkpoint, wherever it is, and it can be resumed to the same files."""

import csv
import functools
import signal
import sys

import jax
import numpy as np
import pytest
from fake_trial import FakeWorkload, fake_submission, log_loss, run_fake_trial

from tuning import training
from tuning.clock import SubmissionClock
from tuning.interruption import Interrupted, Interruption

TIMES = {"score", "total_duration", "preemption_count"}
TIMES |= {f"accumulated_{kind}_time" for kind in ("submission", "eval", "logging")}


class Queue:
    """Batches that can be restored, as a workload's own."""

    def __init__(self):
        self.n_batches = 0

    def __next__(self):
        self.n_batches += 1
        return {"inputs": self.n_batches}

    def get_state(self):
        return self.n_batches

    def set_state(self, state):
        self.n_batches = state


class Workload(FakeWorkload):
    """It sends the process `signals` {where: signal}; where is a step, or "set-up", or ("evaluation", step)."""

    def __init__(self, signals=()):
        super().__init__()
        self.signals = dict(signals)

    def send(self, where):
        if where in self.signals:
            signal.raise_signal(self.signals.pop(where))

    def _build_input_queue(self, data_rng, split, data_dir, global_batch_size):
        self.send("set-up")
        return Queue()

    def eval_model(self, batch_size, params, model_state, rng, data_dir, imagenet_v2_data_dir, global_step):
        self.send(("evaluation", global_step))
        return super().eval_model(batch_size, params, model_state, rng, data_dir, imagenet_v2_data_dir, global_step)


def log_batch_and_key(call):
    log_loss(call)
    logged = {"batch": call.batch["inputs"], "key": int(np.asarray(jax.random.bits(call.rng)))}
    call.workload.metrics_logger.append_scalar_metrics(logged, call.global_step)
    call.workload.send(call.global_step)


def prepare(**arguments):
    """One that changes the parameters' own state, so that preparing twice would be seen."""
    state = {"keys": arguments["optimizer_state"][0]["keys"] + 1}
    return (state, None), arguments["current_param_container"], arguments["model_state"]


def run(folder, signals=(), keep=2, **options):
    submission = fake_submission(log_batch_and_key, prepare_for_eval=prepare)
    with Interruption() as interruption:
        own = dict(checkpoints_to_keep=keep, resume=True, interruption=interruption)
        return run_fake_trial(folder, Workload(signals), submission, **own, **options)


def contents(folder):
    found = {}
    for name in ("measurements.csv", "eval_measurements.csv"):
        with open(folder / name, newline="") as file:
            found[name] = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return contents(folder)


@pytest.mark.parametrize(
    ("where", "name", "code", "step"),
    [
        (0, "SIGTERM", 75, 1),
        (14, "SIGUSR1", 75, 15),
        (19, "SIGHUP", 129, 20),  # the step before an evaluation, which is not made
        (("evaluation", 20), "SIGINT", 130, 20),
        (("evaluation", 40), "SIGTERM", 75, 40),
        ("set-up", "SIGINT", 130, None),
    ],
)
def test_a_signal_ends_the_trial_with_a_checkpoint_and_it_goes_on_as_if_nothing_was(
    tmp_path, whole, where, name, code, step
):
    with pytest.raises(Interrupted) as stop:
        run(tmp_path, {where: getattr(signal, name)})
    assert (stop.value.signal_name, stop.value.exit_code) == (name, code)
    line = str(stop.value)
    assert line.startswith(f"stopped by {name}") and "--resume" in line and "\n" not in line
    assert not (tmp_path / "outcome.json").exists()
    assert ("no new checkpoint" if step is None else f"the checkpoint of step {step} is saved") in line
    if step is not None:
        assert (tmp_path / "checkpoints" / f"{step}.checkpoint").exists()
    assert run(tmp_path).global_step == 40
    assert contents(tmp_path) == whole


def test_without_checkpoints_the_line_does_not_promise_one(tmp_path):
    with pytest.raises(Interrupted) as stop:
        run_fake_trial(tmp_path, Workload(), fake_submission(), interruption=_noted("SIGTERM"))
    assert "no new checkpoint" in str(stop.value) and stop.value.exit_code == 75


def test_a_resumed_trial_that_is_to_keep_no_checkpoints_reads_the_last_and_saves_none(tmp_path, whole):
    with pytest.raises(Interrupted):
        run(tmp_path, {14: signal.SIGTERM})
    before = sorted((tmp_path / "checkpoints").iterdir())
    with pytest.raises(Interrupted, match="no new checkpoint"):
        run(tmp_path, {24: signal.SIGTERM}, keep=0)
    outcome = run(tmp_path, keep=0)
    assert [each["global_step"] for each in outcome.resumptions] == [15]
    assert contents(tmp_path) == whole and sorted((tmp_path / "checkpoints").iterdir()) == before


def _noted(name):
    interruption = Interruption()
    interruption.signal_name = name
    return interruption


def test_signals_between_trials_and_ignored_ones(tmp_path):
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert interruption.signal_name is None
            signal.raise_signal(signal.SIGTERM)
            assert interruption.signal_name == "SIGTERM"
            with pytest.raises(Interrupted), interruption.interruptible():
                raise AssertionError
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, ignored)


def test_checkpoints_at_a_period_are_off_the_clock_and_resumed_bit_for_bit(tmp_path, whole, monkeypatch):
    """Every perf_counter is the fake time: a step lasts 1.25 s, and a checkpoint is made to last 1,000 s."""

    class Killed(BaseException):
        pass

    def kill(progress):
        if progress.global_step == 38:
            raise Killed

    saved, save = [], training.Checkpoints.save
    with monkeypatch.context() as patch:
        now = Workload().time
        patch.setattr(training.time, "perf_counter", now)
        patch.setattr(FakeWorkload, "__init__", _on_time(FakeWorkload.__init__, now))

        def slow_save(self, step, *others):
            saved.append(step)
            save(self, step, *others)
            now.advance(1000.0)

        patch.setattr(training.Checkpoints, "save", slow_save)
        patch.setattr(training, "SubmissionClock", functools.partial(SubmissionClock, now))
        with pytest.raises(Killed):
            run(tmp_path, checkpoint_period_s=5.0, report=kill)
        # 1.25 s a step: due after 4 steps. An evaluation makes one too.
        assert saved == [4, 8, 10, 14, 18, 20, 24, 28, 30, 34]
    assert run(tmp_path).resumptions[0]["global_step"] == 34
    assert contents(tmp_path) == whole
    with open(tmp_path / "eval_measurements.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accumulated_submission_time"]) for row in rows][:3] == [12.5, 25.0, 37.5]


def _on_time(make, now):
    return lambda self, *arguments, **named: make(self, *arguments, **named | {"time": now})


def test_a_signal_in_a_destructor_is_noted_without_a_traceback(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with Interruption() as interruption:
        with pytest.raises(Interrupted), interruption.interruptible():
            last = Last()
            del last
            interruption.raise_if_signalled()
    assert interruption.signal_name == "SIGTERM" and not reported


def test_a_second_signal_while_the_first_ones_error_is_dropped_prints_no_traceback(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    class FirstAndLast:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    class Dropped:
        """An error that Python drops, as it looks at the moment of a second signal."""

        @property
        def exc_value(self):
            signal.raise_signal(signal.SIGTERM)
            return Interrupted("SIGINT")

    with Interruption() as interruption:
        with pytest.raises(Interrupted), interruption.interruptible():
            last = FirstAndLast()
            del last
            sys.unraisablehook(Dropped())
            reported.append("nothing was raised")
            interruption.raise_if_signalled()
    assert interruption.signal_name == "SIGTERM" and reported == ["nothing was raised"]
