"""What a worker does with a point whose trial ends in this way or that; the trials themselves are made up."""

import contextlib
import errno
import inspect
import json
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from tests.tuning.limits import fill, small_disk
from tuning import evidence, worker
from tuning.claim import Claim, ClaimLost, FolderClaimed
from tuning.errors import MachineFault, UserError
from tuning.interruption import Interrupted
from tuning.monitoring import Monitoring
from tuning.point_queue import PointQueue
from tuning.sweep import Request, Sweep
from tuning.worker import FaultInTrial, Worker


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Starts a worker on three points; `endings` maps a trial's index to what its trial raises, or does first."""
    monkeypatch.setattr(worker, "_IDLE_S", 0.02)

    def start(endings=None, max_retries=1, before=lambda sweep: None, **changes):
        request = Request(
            "b3db", "submissions/nadamw", str(tmp_path), "e", num_tuning_trials=3, heartbeat_s=0.1, **changes
        )
        sweep = Sweep(Request(**vars(request) | {"max_retries": max_retries}))
        said, ran = [], []

        def trial(description, workload, submission, claim, *, report, **options):
            ran.append(description.trial_index)
            start.options = options
            ending = (endings or {}).get(description.trial_index)
            if callable(ending):
                ending = ending(claim, report)
            if isinstance(ending, BaseException):
                raise ending
            content = {"reason": "budget", "steps_to_target": None, "step_budget": 5, "best_validation_metric": 0.5}
            return SimpleNamespace(to_json=lambda: content)

        monkeypatch.setattr(worker, "run_trial", trial)
        before(sweep)
        try:
            Worker(sweep, said.append).work()
            error = None
        except (Exception, Interrupted) as caught:
            error = caught
        status = {point.index: point for _, point in sweep.status()}
        return error, ran, status, said

    return start


@pytest.mark.parametrize("period_s", [7, 0])
def test_checkpoints_are_made_at_a_period_too(run, period_s):
    run(checkpoint_period_s=period_s)
    assert (run.options["checkpoints_to_keep"], run.options["checkpoint_period_s"]) == (2, period_s)


def test_trials_are_shown_as_asked_for(run):
    run(tensorboard=True)
    assert run.options["monitoring"] == Monitoring(tensorboard=True)


@pytest.mark.parametrize("function", [Worker.__init__, evidence.carry_out])
def test_a_line_is_in_the_log_before_an_error_that_follows_it(tmp_path, function):
    """Standard output, if it is a file, is buffered, and standard error is not."""
    log = inspect.signature(function).parameters["log"].default
    with open(tmp_path / "log", "w") as file, contextlib.redirect_stdout(file):
        log("trial 3: target at step 480")
        assert (tmp_path / "log").read_text() == "trial 3: target at step 480\n"


def states(status):
    return [(status[index].result or {}).get("reason", status[index].state) for index in sorted(status)]


def test_a_fault_of_the_machine_gives_the_point_back_a_bounded_number_of_times(run, tmp_path):
    fault = OSError(errno.EMFILE, "Too many open files")
    error, ran, status, _ = run({2: fault})
    assert isinstance(error, FaultInTrial) and error.exit_code == 74
    assert ran == [1, 2] and states(status) == ["budget", "waiting", "waiting"] and status[2].n_deaths == 0
    assert status[2].faults == ("OSError: [Errno 24] Too many open files",)
    error, ran, status, _ = run({2: fault})
    assert isinstance(error, FaultInTrial) and ran == [3, 2]  # after its turn for other machines
    error, ran, status, said = run({2: fault})  # it has had one retry: no more
    assert error is None and ran == [] and states(status) == ["budget", "crashed", "budget"]
    outcome = json.loads((tmp_path / "e" / "b3db_jax" / "trial_2" / "outcome.json").read_text())
    assert "machines failed 2 times" in outcome["error"] and "Too many open files" in outcome["error"]
    assert status[2].result["is_machine_fault"] and outcome["trial_index"] == 2
    error, ran, status, _ = run(before=lambda sweep: sweep.retry_crashed())
    assert error is None and ran == [2] and states(status) == ["budget"] * 3


def test_a_fault_that_only_the_probe_finds_is_the_machines_too(run, monkeypatch):
    broken = []

    def breaks(claim, report):
        broken.append(True)
        return ValueError("nonsense from a broken device")

    def probe():
        if broken:
            raise MachineFault("device 0 computes wrongly")

    monkeypatch.setattr(worker.faults, "probe_devices", probe)
    error, ran, status, _ = run({1: breaks})
    assert isinstance(error, FaultInTrial) and ran == [1] and status[1].faults == ("device 0 computes wrongly",)
    error, ran, status, _ = run()
    assert isinstance(error, MachineFault) and error.exit_code == 69 and ran == []  # no point was taken
    assert states(status) == ["waiting"] * 3


def test_a_fault_that_only_one_probe_finds_counts(run, monkeypatch):
    probed = []

    def breaks(claim, report):
        monkeypatch.setattr(worker.faults, "probe_devices", probe)
        return ValueError("nonsense from a device that fails now and then")

    def probe():
        probed.append(True)
        if len(probed) == 1:
            raise MachineFault("device 0 computes wrongly")

    error, _, status, _ = run({1: breaks})
    assert isinstance(error, FaultInTrial) and status[1].faults == ("device 0 computes wrongly",) and len(probed) == 1


def test_a_trials_own_failure_is_a_crash_and_the_next_trials_run(run):
    error, ran, status, _ = run({1: ValueError("its own"), 2: FileNotFoundError(errno.ENOENT, "its own file")})
    assert error is None and ran == [1, 2, 3] and states(status) == ["crashed", "crashed", "budget"]
    assert status[1].result["error"] == "ValueError: its own"


@pytest.mark.parametrize("kind", ["user", "full", "signal"])
def test_what_the_next_point_would_meet_too_ends_the_worker_and_costs_nothing(run, kind):
    full = UserError("cannot write")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    ending = {"user": UserError("no data set"), "full": full, "signal": Interrupted("SIGTERM")}[kind]
    error, ran, status, _ = run({1: ending})
    assert error is ending and ran == [1] and states(status) == ["waiting"] * 3
    assert (status[1].n_deaths, status[1].faults) == (0, ())
    assert run()[1] == [2, 3, 1]


@pytest.mark.parametrize("problem", [UserError("cannot write into e"), MachineFault("too many open files")])
def test_a_folder_that_can_no_longer_be_written_costs_no_point_a_death(run, monkeypatch, problem):
    """A full disk is everybody's, and ends the sweep; a process without files left is this worker's."""

    def breaks(claim, report):
        monkeypatch.setattr(worker.disk, "check_writable", refuse)
        return OSError(errno.ENOSPC, "No space left on device")

    def refuse(folder):
        raise problem

    error, ran, status, _ = run({1: breaks})
    is_own = isinstance(problem, MachineFault)
    assert isinstance(error, FaultInTrial) if is_own else error is problem
    assert ran == [1] and states(status) == ["waiting"] * 3
    assert (status[1].n_deaths, status[1].faults) == (0, ("too many open files",) if is_own else ())


def test_a_disk_that_a_trial_finds_full_costs_no_point_a_death_though_the_storage_is_on_it(run, tmp_path):
    def fills(claim, report):
        fill(tmp_path / "e")
        return OSError(errno.ENOSPC, "No space left on device")

    with small_disk(tmp_path / "e", "8m"):
        error, ran, status, _ = run({1: fills})
        assert isinstance(error, UserError) and "No space left on device" in str(error) and ran == [1]
        assert states(status) == ["waiting"] * 3 and (status[1].n_deaths, status[1].faults) == (0, ())


@pytest.mark.parametrize("when", ["training", "idle"])
def test_a_worker_that_a_signal_ends_says_how_a_sweep_goes_on(run, when):
    def stop(claim, report):
        signal.raise_signal(signal.SIGTERM)

    def hold_the_others(sweep):
        [sweep.queues[0].lease() for _ in range(3)]
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()

    error, ran, status, _ = run({1: stop}) if when == "training" else run(before=hold_the_others)
    line = "stopped by SIGTERM: no new checkpoint; run the same command again to go on"
    assert isinstance(error, Interrupted) and str(error) == line and error.exit_code == 75
    assert states(status) == (["budget", "waiting", "waiting"] if when == "training" else ["running"] * 3)


def test_a_lost_lease_ends_the_trial_at_its_next_report(run, tmp_path):
    def taken_over(claim, report):
        report(None)  # the lease is not lost
        queue = sweeps[0].queues[0]
        (mine,) = (trial for trial in queue._study.trials() if trial.state.name == "RUNNING")
        queue._rows.end(mine._trial_id, mine.state.FAIL)
        with pytest.raises(ClaimLost) as lost:
            for _ in range(1000):
                report(None)
                worker.time.sleep(0.01)
        return lost.value

    sweeps = []
    error, ran, status, said = run({1: taken_over}, before=sweeps.append, max_retries=0)
    assert error is None and said[0] == "trial 1: taken over, since this worker seemed dead"
    assert status[1].n_deaths == 1 and states(status) == ["crashed", "budget", "budget"]


def test_a_folder_that_is_at_work_elsewhere_is_put_off_and_then_refused(run, tmp_path):
    with Claim.take(tmp_path / "e" / "b3db_jax" / "trial_1", beat_s=0.05):
        error, ran, status, said = run()
    assert isinstance(error, FolderClaimed) and "is in use by process" in str(error)
    assert 1 not in ran and states(status) == ["waiting", "budget", "budget"] and said[0].startswith("trial 1: put off")
    assert run()[1] == [1]


def test_a_trial_that_was_run_with_another_batch_is_refused(run, tmp_path):
    sweeps = []
    run(before=sweeps.append, endings={1: UserError("to look at the description only")})
    place = tmp_path / "e" / "b3db_jax" / "trial_1"
    place.mkdir(parents=True, exist_ok=True)
    earlier = sweeps[0].descriptions[0][0].to_json() | {"batch_size": 32, "step_budget": 1, "reason": "budget"}
    (place / "outcome.json").write_text(json.dumps(earlier))
    error, ran, status, _ = run()
    assert isinstance(error, UserError) and "has batch_size 32, not " in str(error)
    assert 1 not in ran and states(status)[0] == "waiting"


def test_a_damaged_outcome_is_refused_by_name(run, tmp_path):
    place = tmp_path / "e" / "b3db_jax" / "trial_1"
    place.mkdir(parents=True)
    (place / "outcome.json").write_text('{"reason": ')
    error, ran, status, _ = run()
    assert isinstance(error, UserError) and "outcome.json' is damaged" in str(error)
    assert ran == [] and states(status) == ["waiting"] * 3


def test_an_outcome_on_disk_counts_though_its_worker_died_before_it_was_stored(run, tmp_path, monkeypatch):
    """Without retries, too: the point must not be stored as crashed."""

    def dies(queue, lease, *_):
        queue._rows.end(lease.trial_id, queue._study.storage.get_trial(lease.trial_id).state.FAIL)
        raise Interrupted("TERM")

    outcome = SimpleNamespace(to_json=lambda: {"reason": "time", "steps_to_target": None})
    with monkeypatch.context() as patched:
        patched.setattr(PointQueue, "finish", dies)
        run(max_retries=0)
    monkeypatch.setattr(
        worker, "finished_outcome", lambda description, _: description.trial_index == 1 and outcome or None
    )
    error, ran, status, _ = run(max_retries=0)
    assert error is None and ran == [2, 3] and states(status) == ["time", "budget", "budget"]
