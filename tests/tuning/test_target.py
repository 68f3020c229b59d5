"""How a target is set, on a fake workload whose metric is known: learning rate × step / 100, and a little by trial."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from fake_trial import FakeWorkload, fake_submission

from tests.molecules import data_dir
from tests.tuning.sweeps import children
from tuning import search_space, target, target_workers
from tuning.claim import Claim
from tuning.errors import MachineFault, UserError
from tuning.outcome import Miss, Progress
from tuning.target import Protocol
from workloads import registry
from workloads.spec import Direction

ROOT = Path(__file__).parents[2]
RATES = {"one": [1.0, 2.0, 0.5, 3.0, 0.1], "other": [0.2, 0.3, 0.4, 0.1, 0.5]}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """(direction) -> a protocol of two references with five points each, and the list of trials that have run.

    The trials whose number is in `diverging` have losses that are not finite from their first step on.
    """

    def make(direction=Direction.HIGHER_IS_BETTER, diverging=()):
        workload, ran = FakeWorkload(direction=direction), []

        def update(call):
            rate = call.hyperparameters.learning_rate
            if call.global_step == 0:
                ran.append(rate)
            if len(ran) in diverging:
                call.workload.metrics_logger.append_scalar_metrics({"loss": math.nan}, call.global_step)
            sign, shift = (1 if direction is Direction.HIGHER_IS_BETTER else -1), len(ran) / 1000
            call.workload.evaluate = lambda step: sign * (rate * step / 100 + shift)

        loaded = {}
        for name, rates in RATES.items():
            file = tmp_path / name / "target_search_space.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps([{"learning_rate": rate} for rate in rates]))
            own = fake_submission(update)
            loaded[name] = dataclasses.replace(own, name=name, file=file.with_name("submission.py"))
        monkeypatch.setattr(target.registry, "load", lambda name: workload)
        monkeypatch.setattr(target, "_loaded", lambda name, reference: (workload, loaded[reference]))
        return Protocol("fake", tuple(loaded), 5, 4, 0, tmp_path / "out", str(tmp_path)), workload, ran

    return make


def find(protocol):
    (found,) = target.find_targets([protocol], log=lambda line: None)
    return found


@pytest.mark.parametrize("direction", Direction)
def test_the_target_is_the_median_of_the_best_points_seeds(world, direction):
    protocol, _, ran = world(direction)
    found = find(protocol)
    sign = 1 if direction is Direction.HIGHER_IS_BETTER else -1
    assert (found["reference"], found["hyperparameters"]) == ("one", {"learning_rate": 3.0})
    assert ran[10:] == [3.0] * 4
    # After 40 steps 3 × 0.4, and 0.011 … 0.014 by trial: the easier of the middle two is 1.212.
    assert [trial["rng_seed"] for trial in found["repetitions"]] == [1, 2, 3, 4]
    assert found["validation_target"] == found["test_target"] == pytest.approx(sign * 1.212)
    assert [trial["steps_to_target"] for trial in found["repetitions"]] == [None, 40, 40, 40]
    assert found["median_steps_to_target"] == 40


@pytest.mark.parametrize("direction", Direction)
def test_a_seed_that_diverges_before_its_first_evaluation_counts_as_the_worst(world, direction):
    protocol, _, _ = world(direction, diverging={1, 13})
    found = find(protocol)
    sign = 1 if direction is Direction.HIGHER_IS_BETTER else -1
    assert found["validation_target"] == found["test_target"] == pytest.approx(sign * 1.211)
    assert [trial["steps_to_target"] for trial in found["repetitions"]] == [40, 40, None, 40]
    assert found["repetitions"][2]["best_validation_metric"] is None
    json.dumps(found, allow_nan=False)


def test_no_target_is_set_by_a_point_of_which_half_of_the_seeds_diverge(world):
    protocol, _, _ = world(diverging={12, 13})
    with pytest.raises(UserError, match="half of the best point's 4 seeds, or more, diverged before a finite metric: "):
        find(protocol)


def test_a_finished_trial_that_lost_its_evaluations_is_named(world, tmp_path):
    protocol, _, _ = world()
    find(protocol)
    (lost,) = (tmp_path / "out").rglob("*seed_2/eval_measurements.csv")
    lost.unlink()
    with pytest.raises(UserError, match="seed_2/eval_measurements.csv' lacks the evaluation of step 40: remove"):
        find(protocol)


def test_the_script_finds_home_and_tells_of_an_unknown_workload_in_one_line(tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "b3db.json").write_text("{}")
    command = [sys.executable, ROOT / "scripts" / "set_target.py", "--workloads=b3db,mnist", "--out=~/targets"]
    environment = os.environ | {"HOME": str(tmp_path)}
    command += ["--experiment_dir=~/trials", "--compilation_cache_dir="]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.startswith("the target of b3db is already set in") and done.returncode == 2
    assert done.stderr.startswith("error: unknown workload 'mnist'; known workloads: b3db")
    assert done.stderr.count("\n") == 1 and [file.name for file in tmp_path.iterdir()] == ["targets"]


def test_every_point_runs_to_the_end_without_rungs(world):
    protocol, _, _ = world()
    found = find(protocol)
    assert found["rungs"] == ()
    assert {trial["reason"] for trials in found["searches"].values() for trial in trials} == {Miss.BUDGET}


def test_points_in_the_worse_half_at_a_rung_stop_there(world):
    protocol, _, _ = world()
    found = find(dataclasses.replace(protocol, rungs=(0.25, 0.5)))
    search = found["searches"]["one"]
    assert found["rungs"] == (0.25, 0.5)
    assert [(trial["reason"], trial["global_step"]) for trial in search[:4]] == [(Miss.BUDGET, 40)] * 4
    assert (search[4]["reason"], search[4]["global_step"]) == (Miss.PRUNED, 10)


def test_a_resumed_point_takes_its_rungs_from_all_of_its_evaluations(tmp_path):
    """The rule of the process that goes on has seen the last evaluation alone; the earlier ones are on disk."""
    folder = tmp_path / "search" / "trial_1"
    with Claim.take(folder) as claim:
        rows = "global_step,validation/score,test/score\n10,0.3,0.3\n20,0.2,0.2\n"
        (folder / "eval_measurements.csv").write_text(rows)
        is_behind = target.halving(claim, FakeWorkload(step_hint=40), (0.25, 0.5))
        assert not is_behind(Progress(20, 40, "score", 0.2))
        assert json.loads((folder / "rungs.json").read_text()) == {"10": 0.3, "20": 0.3}


def test_a_line_about_each_trial_shows_its_point_with_text_and_null(world, tmp_path):
    protocol, _, _ = world()
    point = {"learning_rate": 0.12345, "kind": "a", "period": None, "steps": 1000}
    (tmp_path / "one" / "target_search_space.json").write_text(json.dumps([point]))
    protocol, lines = dataclasses.replace(protocol, references=("one",), n_points=1, n_seeds=1), []
    list(target.find_targets([protocol], log=lines.append))
    assert [line.partition(" [")[2] for line in lines] == ["learning_rate=0.123 kind=a period=None steps=1000]"] * 2


def test_each_trial_is_told_when_it_ends(world):
    protocol, _, ran = world()
    n_ran = []
    list(target.find_targets([protocol], log=lambda line: n_ran.append(len(ran))))
    assert n_ran[:10] == [*range(1, 11)]


def test_finished_trials_are_used_again(world):
    protocol, _, ran = world()
    first = find(protocol)
    ran.clear()
    assert find(protocol) == first and not ran
    find(dataclasses.replace(protocol, n_seeds=5))
    assert ran == [3.0]


def test_the_reference_runs_point_is_written_as_a_search_space(world, tmp_path):
    protocol, _, _ = world()
    found = find(protocol)
    file, preset = target.write(found, tmp_path / "targets", tmp_path / "presets")
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    (point,) = search_space.points(search_space.read(preset), 1, seed=0)
    assert point == found["hyperparameters"] and preset.name == "fake_one.json"
    with pytest.raises(UserError, match="the target of fake is set: .*remove that file to set it anew"):
        target.write(found, tmp_path / "targets", tmp_path / "presets")


def test_a_worker_that_is_killed_is_one_line_with_the_cure():
    with pytest.raises(MachineFault, match="^a worker died; run the command again$"), target_workers.pool(2):
        raise BrokenProcessPool("a process was terminated abruptly")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be chosen here")
def test_each_worker_keeps_to_a_core_of_its_own(tmp_path):
    with target_workers.pool(2) as submit:
        jobs = [submit(cores_beside, *order) for order in itertools.permutations([tmp_path / "one", tmp_path / "two"])]
        cores = [job.result(timeout=120) for job in jobs]
    assert [len(own) for own in cores] == [1, 1]
    assert len(set.union(*cores)) == min(2, len(os.sched_getaffinity(0)))


def cores_beside(own: Path, other: Path) -> set[int]:
    """The cores of this process, once another job runs, too: until then its process would carry out both."""
    own.touch()
    while not other.exists():
        time.sleep(0.01)
    return os.sched_getaffinity(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Flags of folders that have the data and the compiled programs, so that two workers train at the same time."""
    flags = [f"--data_dir={data_dir()}", f"--compilation_cache_dir={tmp_path_factory.mktemp('cache')}"]
    command = [sys.executable, ROOT / "scripts" / "run_trial.py", "--workload=b3db", "--max_global_steps=1", *flags]
    command += ["--submission_path=submissions/nadamw", f"--experiment_dir={tmp_path_factory.mktemp('trial')}"]
    subprocess.run([*command, "--experiment_name=e"], cwd=ROOT, capture_output=True, check=True)
    return flags


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_processes_of_the_search_with_checkpoints(made, tmp_path, number):
    """In their last moment they save a checkpoint, and none begins another trial."""
    command = [sys.executable, ROOT / "scripts" / "set_target.py", "--workloads=b3db", "--workers=2", *made]
    command += ["--references=submissions/nadamw", "--num_tuning_trials=6", f"--experiment_dir={tmp_path}"]
    command += [f"--out={tmp_path / 'out'}", f"--presets={tmp_path / 'presets'}"]
    search = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        trials = tmp_path / "b3db" / "nadamw" / "search"
        while len({file.parts[-3] for file in trials.glob("*/checkpoints/*.checkpoint")}) < 2:  # both train
            assert search.poll() is None, search.communicate()[1]
            time.sleep(0.1)
        children = processes_of_the_pool(search.pid)
        begun = sorted(trials.iterdir())
        search.send_signal(number)
        deadline = time.monotonic() + 60
        while any(map(lives, children)):
            assert time.monotonic() < deadline, "a process of the search goes on"
            time.sleep(0.1)
        _, said = search.communicate(timeout=60)
    finally:
        search.kill()
    assert len(children) == 2 and sorted(trials.iterdir()) == begun and not list(tmp_path.rglob("outcome.json"))
    assert not list(trials.glob("*/.claim"))  # each released its trial, after its last checkpoint
    if number == signal.SIGTERM:
        assert search.returncode == 75
        expected = "stopped by SIGTERM: the running trials' checkpoints are kept; run the same command again to go on"
        assert said.splitlines()[-1] == expected and "Traceback" not in said


def processes_of_the_pool(parent: int) -> list[str]:
    """Process numbers, without multiprocessing's own helper."""
    return [str(pid) for pid in children(parent) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def lives(process: str) -> bool:
    try:
        state = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"  # ended, though nobody has asked for its code


@pytest.mark.parametrize("name", ["nesterov", "nadamw"])
def test_the_references_target_spaces_are_wide(name):
    space = search_space.read(ROOT / "submissions" / name / "target_search_space.json")
    rate = space["learning_rate"]
    assert rate["max"] / rate["min"] >= 1000 and rate["scaling"] == "log"
    assert {"one_minus_beta1", "weight_decay", "warmup_factor", "schedule_fraction"} <= set(space)


@pytest.mark.parametrize("file", sorted((ROOT / "results" / "targets").glob("*.json")), ids=lambda file: file.stem)
def test_the_workloads_targets_are_those_found(file):
    found, workload = json.loads(file.read_text(encoding="utf-8")), registry.load(file.stem)
    is_higher = workload.validation_target.direction is Direction.HIGHER_IS_BETTER
    best = sorted((trial["best_validation_metric"] for trial in found["repetitions"]), reverse=is_higher)
    assert found["validation_target"] == best[len(best) // 2]
    for value, exact in (("validation_target_value", "validation_target"), ("test_target_value", "test_target")):
        assert 0 <= (1 if is_higher else -1) * (found[exact] - getattr(workload, value)) < 1e-5
    hits = sum(trial["steps_to_target"] is not None for trial in found["repetitions"])
    assert hits >= len(best) / 2 and len(found["searches"]) == 2
    preset = search_space.read(ROOT / "presets" / f"{file.stem}_{found['reference']}.json")
    assert preset == [found["hyperparameters"]]
