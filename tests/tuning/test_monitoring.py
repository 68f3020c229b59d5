import importlib.machinery
import json
import struct
import sys
import types

import jax
import pytest
from fake_trial import FakeWorkload, fake_submission, log_loss, run_fake_trial

from tuning import trial
from tuning.claim import ClaimLost
from tuning.errors import UserError
from tuning.metrics_logger import MetricsLogger
from tuning.monitoring import Monitoring, Scalars, parse_steps


def scalars(folder):
    """[(step, name, value)] that TensorBoard shows of the event files, which are TFRecords of protocol buffers.

    The start of a session hides all events before it from its step on.
    """
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            if event.session_log.status == event_pb2.SessionLog.START:
                found = [one for one in found if one[0] < event.step]
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            content = content[16 + length :]
    return found


@pytest.mark.parametrize("checkpoints_to_keep", [2, 0])
def test_tensorboard_has_what_the_measurements_have_and_a_resumed_trial_goes_on(tmp_path, checkpoints_to_keep):
    """Without a checkpoint it starts again at step 0."""

    class Cut(BaseException):
        pass

    def cut(progress):
        if progress.global_step == 25:
            raise Cut

    own = dict(monitoring=Monitoring(tensorboard=True), checkpoints_to_keep=checkpoints_to_keep, resume=True)
    with pytest.raises(Cut):
        run_fake_trial(tmp_path, FakeWorkload(), fake_submission(log_loss), report=cut, **own)
    for file in (tmp_path / "tensorboard").iterdir():  # its name has the second, which may be the same for both runs
        file.rename(file.with_name(f"an_earlier_{file.name}"))
    run_fake_trial(tmp_path, FakeWorkload(), fake_submission(log_loss), **own)
    found = scalars(tmp_path)
    losses = [(step, value) for step, name, value in found if name == "loss"]
    assert losses == [(step, pytest.approx(1 / (1 + step))) for step in range(40)]
    assert [(step, value) for step, name, value in found if name == "validation/loss"] == [
        (10, 0.5), (20, 0.5), (30, 0.5), (40, 0.5)
    ]  # fmt: skip
    assert not {name for _, name, _ in found} & {"global_step", "preemption_count"}


def test_a_process_that_lost_its_claim_shows_nothing(tmp_path):
    def refuse(path, content):
        raise ClaimLost("taken over")

    shown = []
    logger = MetricsLogger(tmp_path, refuse)
    logger.show = shown.append
    logger.append_scalar_metrics({"loss": 1.0}, 1)
    with pytest.raises(ClaimLost):
        logger.flush()
    assert not shown


def _wandb(monkeypatch):
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.Error = type("Error", (Exception,), {})
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_without_an_account_is_one_line_and_no_crash_of_the_trial(tmp_path, monkeypatch):
    module = _wandb(monkeypatch)

    def init(**options):
        raise module.Error("api_key not configured (no-tty)")

    module.init = init
    with pytest.raises(UserError, match=r"cannot be used \(api_key not configured .*: run `wandb login`, or set"):
        run_fake_trial(
            tmp_path, FakeWorkload(), fake_submission(log_loss), monitoring=Monitoring(wandb_project="molecules")
        )
    assert not (tmp_path / "outcome.json").exists()


@pytest.mark.parametrize("experiment", ["e", "e/study_2"])
def test_wandb_is_given_the_description_and_the_rows(tmp_path, monkeypatch, experiment):
    """A stand-in with the three calls of wandb's that are used."""
    logged, asked, ended = [], {}, []
    module = _wandb(monkeypatch)
    run = types.SimpleNamespace(log=lambda row, step: logged.append((step, row)), finish=lambda: ended.append(1))
    module.init = lambda **options: asked.update(options) or run
    monitoring = Monitoring(wandb_project="molecules")
    monitoring.check_libraries()
    run_fake_trial(tmp_path / experiment / "w" / "t", FakeWorkload(), fake_submission(log_loss), monitoring=monitoring)
    assert asked["project"] == "molecules" and asked["config"]["rng_seed"] == 0 and ended == [1]
    assert asked["group"] == experiment and asked["resume"] == "allow"
    assert [(step, row["loss"]) for step, row in logged if "loss" in row] == [(i, 1 / (1 + i)) for i in range(40)]


def test_a_resumed_trial_continues_its_run_at_wandb(tmp_path, monkeypatch):
    ids = []
    module = _wandb(monkeypatch)
    run = types.SimpleNamespace(log=lambda row, step: None, finish=lambda: None)
    module.init = lambda id, **options: ids.append(id) or run
    for first_step in (0, 20, 0):
        description = {"workload": "w", "submission": "s", "trial_index": 1}
        Scalars(Monitoring(wandb_project="p"), tmp_path, first_step, description).close()
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("monitoring", [Monitoring(tensorboard=True), Monitoring(wandb_project="p")])
def test_a_missing_library_is_one_line(monitoring, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    library = "tensorboardX" if monitoring.tensorboard else "wandb"
    with pytest.raises(UserError, match=f"needs {library}, which is not installed: run `pip install {library}`"):
        monitoring.check_libraries()
    Monitoring().check_libraries()


def test_a_profile_is_of_the_steps_asked_for(tmp_path):
    on_device = jax.jit(lambda x: x + 1, inline=False)

    def update(call):
        with jax.profiler.TraceAnnotation(f"own step {call.global_step}"):
            on_device(call.current_param_container["w"])

    outcome = run_fake_trial(tmp_path, FakeWorkload(), fake_submission(update), monitoring=Monitoring(profile=(3, 5)))
    (file,) = (tmp_path / "profile").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    names = {event.name for plane in planes for line in plane.lines for event in line.events}
    assert {name for name in names if name.startswith("own step")} == {"own step 3", "own step 4", "own step 5"}
    assert json.loads((tmp_path / "outcome.json").read_text())["profiled_steps"] == [3, 5]
    assert outcome.profiled_steps == (3, 5)


def test_a_profile_that_the_end_cuts_short_is_written_too(tmp_path):
    outcome = run_fake_trial(tmp_path, FakeWorkload(), fake_submission(), monitoring=Monitoring(profile=(38, 99)))
    assert list((tmp_path / "profile").rglob("*.xplane.pb")) and outcome.profiled_steps == (38, 39)


def test_only_what_was_traced_is_recorded_and_a_resumed_trial_knows_of_it(tmp_path, caplog):
    def run(max_global_steps, first_and_last):
        own = dict(checkpoints_to_keep=2, resume=True, monitoring=Monitoring(profile=first_and_last))
        workload = FakeWorkload()
        return run_fake_trial(tmp_path, workload, fake_submission(), max_global_steps=max_global_steps, **own)

    assert run(10, (500, 501)).profiled_steps is None and not (tmp_path / "profile").exists()
    assert "--profile=500:501 traced nothing: its first step was not among this run's" in caplog.text
    assert run(20, (12, 13)).profiled_steps == (12, 13)
    assert run(30, None).profiled_steps == run(40, (12, 13)).profiled_steps == (12, 13)


def test_the_steps_of_a_profile():
    assert parse_steps("10:12") == (10, 12) and parse_steps("0:0") == (0, 0)
    for text in ("10", "12:10", "a:b", ":", "1:2:3", "-1:4"):
        with pytest.raises(UserError, match="is not FIRST:LAST"):
            parse_steps(text)


def test_percentiles_are_over_steps_of_their_blocks_means_and_no_wait_is_added(tmp_path):
    outcome = run_fake_trial(tmp_path, FakeWorkload(), fake_submission())
    low, middle, high = outcome.step_seconds_percentiles.values()
    assert 0 < low <= middle <= high
    assert outcome.peak_device_memory_bytes is None  # a CPU does not tell
    assert trial._percentiles([]) is None
    assert trial._percentiles([(90, 1.0), (10, 11.0)]) == {"5": 1.0, "50": 1.0, "95": 11.0}
