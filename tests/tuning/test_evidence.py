"""The protocol of an evidence run: which trials run, in which order, and what is chosen, with made-up trials."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tuning.report.folders import write_trial
from tuning import evidence, supervised_command
from tuning.errors import UserError
from tuning.report import reading
from tuning.report.protocols import Cost
from tuning.report.summary import summarise

# Evaluations to the target, by learning rate and seed; a rate that is not here misses.
HITS = {0.1: {0: 2, 1: 7}, 0.2: {0: 3, 1: 3}, 0.3: {0: 4, 1: 9}, 0.4: {0: 9, 1: 1}}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """(protocol, commands so far, run): `run` writes the trials of a command, as the scripts would."""
    direction = evidence.Direction.HIGHER_IS_BETTER
    target = type("Target", (), {"direction": direction})
    monkeypatch.setattr(evidence.registry, "load", lambda name: type("Workload", (), {"validation_target": target}))
    monkeypatch.setattr(evidence.submission_version, "of", lambda file: "as it was")
    trial = {"best_validation_metric": 0.5, "hyperparameters": {"learning_rate": 0.2}}
    best = {"best_validation_metric": 0.9, "hyperparameters": {"learning_rate": 0.4}}
    found = {"reference": "sgd", "hyperparameters": {"learning_rate": 0.3}}
    found["searches"] = {"sgd": [best, trial], "adam": [trial, best, {**best, "best_validation_metric": None}]}
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "digits.json").write_text(json.dumps(found))
    paths = ("submissions/sgd", "submissions/kfac")
    protocol = evidence.Protocol("digits", paths, tmp_path / "out", 5, 3, 2, targets=tmp_path / "targets")
    commands: list[dict[str, str]] = []

    def run(command):
        flags = dict(word.removeprefix("--").split("=", 1) for word in command[2:] if "=" in word)
        flags["script"] = Path(command[1]).name
        flags["switches"] = " ".join(word for word in command[2:] if "=" not in word)
        commands.append(flags)
        points = [{"learning_rate": rate} for rate in (0.0, 0.1, 0.2, 0.3, 0.4)]
        if "tuning_search_space" in flags:
            points = json.loads(Path(flags["tuning_search_space"]).read_text())
        seed = int(flags["rng_seed"])
        for index, point in enumerate(points, start=1):
            hit = HITS.get(point["learning_rate"], {}).get(min(seed, 1))
            place = Path(flags["experiment_dir"], flags["experiment_name"], "digits_jax", f"trial_{index}")
            if not place.exists():
                own = {"submission": Path(flags["submission_path"]).name, "submission_version": "as it was"}
                values = [0.1] * 10 if hit is None else [0.1] * (hit - 1) + [0.9]
                write_trial(place, values, point=point, outcome=own, seed=seed)

    return protocol, commands, run


def test_the_best_of_two_seeds_is_repeated_in_turns(machine, tmp_path):
    protocol, commands, run = machine
    evidence.carry_out(protocol, run, log=lambda line: None)
    told = [
        (
            Path(c["experiment_dir"]).relative_to(tmp_path / "out" / "digits").as_posix(),
            c["experiment_name"],
            c["rng_seed"],
        )
        for c in commands
    ]
    searches = [(name, phase, seed) for name in ("sgd", "kfac") for phase, seed in (("search", "0"), ("confirm", "1"))]
    order = ("sgd_for_target/target_reference", "adam_for_target/target_reference", "sgd/repeat", "kfac/repeat")
    assert told == searches + [(place, f"study_{n}", str(n + 1)) for n in (1, 2) for place in order]
    points = {c["experiment_dir"]: json.loads(Path(c["tuning_search_space"]).read_text()) for c in commands[4:]}
    rates = [[point["learning_rate"] for point in own] for own in points.values()]
    # The target's own point, the best of the other search in its file, and twice 0.2: 3 and 3 evaluations on both
    # seeds, where 0.1 took 2 and 7, and 0.4, with 9 on the first seed, was not among the three.
    assert rates == [[0.3], [0.4], [0.2], [0.2]]
    confirmed = json.loads((tmp_path / "out/digits/kfac/confirmed_points.json").read_text())
    assert [point["learning_rate"] for point in confirmed] == [0.1, 0.2, 0.3]
    timed = [c for c in commands if c["script"] == "run_trial.py"]
    assert all(c["compilation_cache_dir"] == "" for c in timed)
    # A stopped one begins anew, as a resumption compiles a second time.
    assert {(c["switches"], c["checkpoints_to_keep"]) for c in timed} == {("--overwrite", "0")}


def test_a_point_that_was_drawn_twice_is_confirmed_once(machine, tmp_path):
    """0.1 twice in one search; it takes 2 evaluations on seed 0, and 0.2 and 0.3 take 3 and 4."""
    protocol, _, run = machine
    drawn = tmp_path / "drawn.json"
    drawn.write_text(json.dumps([{"learning_rate": rate} for rate in (0.1, 0.1, 0.2, 0.3)]))

    def drawing(command):
        run([*command, f"--tuning_search_space={drawn}"] if "--experiment_name=search" in command else command)

    evidence.carry_out(protocol, drawing, log=lambda line: None)
    own = tmp_path / "out" / "digits" / "kfac"
    confirmed = json.loads((own / "confirmed_points.json").read_text())
    assert [point["learning_rate"] for point in confirmed] == [0.1, 0.2, 0.3]
    assert json.loads((own / "best_point.json").read_text()) == [{"learning_rate": 0.2}]


def test_the_report_reads_it(machine):
    """Repetitions: 0.3 at 90 steps, 0.4 at 10 (the better reference), 0.2 at 30."""
    protocol, _, run = machine
    evidence.carry_out(protocol, run, log=lambda line: None)
    records = reading.read([protocol.folder])
    (comparison,) = summarise(records, ["sgd", "adam"]).comparisons
    assert not records.problems
    medians = {result.submission: result.costs[Cost.STEPS].median for result in comparison.results}
    assert medians == {"adam (target's own)": 10, "kfac": 30, "sgd": 30, "sgd (target's own)": 90}
    assert comparison.reference == "adam (target's own)"
    assert comparison.ratios["kfac"][Cost.STEPS].value == 3
    assert {result.submission: result.search_hits for result in comparison.results}["kfac"] == (4, 5)


def test_it_continues_wherever_it_was_stopped(machine):
    """Stopped after every timed trial, it ends with all of them, none run twice."""
    protocol, commands, run = machine

    class Stopped(Exception):
        pass

    def stopping(command):
        run(command)
        if commands[-1]["script"] == "run_trial.py":
            raise Stopped

    for _ in range(8):
        with pytest.raises(Stopped):
            evidence.carry_out(protocol, stopping, log=lambda line: None)
    evidence.carry_out(protocol, stopping, log=lambda line: None)
    timed = [(c["experiment_dir"], c["experiment_name"]) for c in commands if c["script"] == "run_trial.py"]
    assert len(timed) == len(set(timed)) == 8


def test_a_repetition_that_crashes_by_its_own_fault_is_a_miss_and_the_others_run(machine):
    protocol, commands, run = machine

    def crashing(command):
        run(command)
        if commands[-1]["script"] == "run_trial.py" and commands[-1]["experiment_name"] == "study_1":
            (file,) = Path(commands[-1]["experiment_dir"]).rglob("study_1/digits_jax/trial_1/outcome.json")
            file.write_text(json.dumps(json.loads(file.read_text()) | {"reason": "crashed"}))
            raise supervised_command.CommandFailed("ended with code 1", 1)

    lines = []
    for _ in range(2):
        evidence.carry_out(protocol, crashing, log=lines.append)
    assert sum(c["script"] == "run_trial.py" for c in commands) == 8
    assert sum("crashed, which counts as a miss" in line for line in lines) == 4

    def failing(command):
        if "study_3" in str(command):
            raise supervised_command.CommandFailed("ended with code 69", 69)

    with pytest.raises(supervised_command.CommandFailed, match="69"):
        evidence.carry_out(dataclasses.replace(protocol, n_seeds=3), failing, log=lambda line: None)


def test_a_stop_after_the_result_was_written_ends_the_run(machine):
    protocol, commands, run = machine

    def stopped(command):
        run(command)
        if commands[-1]["script"] == "run_trial.py":
            raise supervised_command.CommandFailed("ended with code 75", 75)

    with pytest.raises(supervised_command.CommandFailed, match="75"):
        evidence.carry_out(protocol, stopped, log=lambda line: None)


def test_a_repetition_whose_record_is_damaged_is_named_and_kept(machine, tmp_path):
    protocol, commands, run = machine
    evidence.carry_out(protocol, run, log=lambda line: None)
    (file, *_) = sorted(tmp_path.rglob("study_1/digits_jax/trial_1/outcome.json"))
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be read .*; remove its folder to run the repetition again"):
        evidence.carry_out(protocol, run, log=lambda line: None)
    assert file.read_text() == "{"


def test_a_repetition_of_another_point_is_refused_and_kept(machine, tmp_path):
    protocol, commands, run = machine
    evidence.carry_out(protocol, run, log=lambda line: None)
    (tmp_path / "out" / "digits" / "kfac" / "best_point.json").write_text('[{"learning_rate": 0.7}]')
    n_run = sum(c["script"] == "run_trial.py" for c in commands)
    with pytest.raises(
        UserError, match=r"is of the point .*0.2}, not .*0.7}; remove that submission's folder, or give"
    ):
        evidence.carry_out(protocol, run, log=lambda line: None)
    assert sum(c["script"] == "run_trial.py" for c in commands) == n_run


def test_searches_alone_keep_compiled_programs_where_they_are_told_to(machine, tmp_path):
    protocol, commands, run = machine
    evidence.carry_out(
        dataclasses.replace(protocol, search_flags=("--compilation_cache_dir=here",)), run, log=lambda line: None
    )
    folders = {(c["script"], c["compilation_cache_dir"]) for c in commands}
    assert folders == {("run_sweep.py", "here"), ("run_trial.py", "")}
    assert "here" not in (tmp_path / "out" / "digits" / "protocol.json").read_text()


def test_the_script_finds_home_and_names_a_missing_target_in_one_line(tmp_path):
    command = [sys.executable, Path(__file__).parents[2] / "scripts" / "run_evidence.py", "--workloads=nosuch"]
    command += ["--targets=~/targets", "--experiment_dir=~/trials", "--out=~/out", "--compilation_cache_dir="]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"cannot take the references' configurations from {tmp_path}/targets/nosuch.json" in done.stderr


def test_another_version_of_a_submission_is_refused(machine, monkeypatch):
    protocol, commands, run = machine
    evidence.carry_out(protocol, run, log=lambda line: None)
    monkeypatch.setattr(evidence.submission_version, "of", lambda file: "edited")
    with pytest.raises(UserError, match="was made by another version of .*; remove that submission's folder, or give"):
        evidence.carry_out(protocol, run, log=lambda line: None)


@pytest.mark.parametrize(
    "change", [{"n_points": 6}, {"n_confirmed": 2}, {"seed": 1}, {"flags": ("--max_global_steps=7",)}]
)
def test_other_numbers_are_refused(machine, change):
    protocol, _, run = machine
    evidence.carry_out(protocol, run, log=lambda line: None)
    with pytest.raises(
        UserError, match="protocol.json' records a run with .*; give those flags, or another --experiment_dir"
    ):
        evidence.carry_out(dataclasses.replace(protocol, **change), run, log=lambda line: None)
    changed = {"n_seeds": 3, "flags": ("--data_dir=elsewhere",)}
    evidence.carry_out(dataclasses.replace(protocol, **changed), run, log=lambda line: None)


def test_a_first_call_that_fails_fixes_nothing(machine, tmp_path):
    protocol, _, run = machine
    (tmp_path / "targets" / "digits.json").rename(tmp_path / "digits.json")
    with pytest.raises(UserError, match="cannot take the references"):
        evidence.carry_out(dataclasses.replace(protocol, n_points=6), run, log=lambda line: None)
    (tmp_path / "digits.json").rename(tmp_path / "targets" / "digits.json")
    evidence.carry_out(protocol, run, log=lambda line: None)


def test_what_cannot_be_compared_is_refused(machine, tmp_path):
    protocol, _, run = machine
    with pytest.raises(UserError, match="no trial under .*sgd has ended, so there is no best point"):
        evidence.carry_out(protocol, lambda command: None, log=lambda line: None)
    (tmp_path / "targets" / "digits.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot take the references' .*digits.json .*; run scripts/set_target.py"):
        evidence.carry_out(protocol, run, log=lambda line: None)


def test_a_failed_command_is_named_with_its_code():
    with pytest.raises(supervised_command.CommandFailed, match=re.escape("ended with code 7")) as failure:
        supervised_command.run([sys.executable, "-c", "raise SystemExit(7)"])
    assert failure.value.exit_code == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2], ids=lambda number: number.name)
def test_a_signal_goes_to_the_command_which_ends_first(tmp_path, number):
    """A signal to the parent; the child takes a moment to save its state, and its code is the parent's."""
    child = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_): time.sleep(0.5); pathlib.Path('saved').touch(); sys.exit(75)\n"
        f"signal.signal({int(number)}, stop); pathlib.Path('ready').touch(); time.sleep(60)"
    )
    parent = f"from tuning import supervised_command as s\ntry: s.run([{sys.executable!r}, '-c', {child!r}])\n"
    parent += "except s.CommandFailed as error: raise SystemExit(error.exit_code)"
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env={"PYTHONPATH": root})
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(30) == 75 and (tmp_path / "saved").exists()


def test_a_signal_so_late_that_the_command_ends_well_is_an_interruption(tmp_path):
    child = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); pathlib.Path('ready').touch(); time.sleep(60)"
    )
    parent = (
        f"from tuning import interruption, supervised_command as s\ntry: s.run([{sys.executable!r}, '-c', {child!r}])\n"
    )
    parent += "except interruption.Interrupted as stop: print(stop); raise SystemExit(stop.exit_code)"
    options = {"cwd": tmp_path, "env": {"PYTHONPATH": str(Path(__file__).parents[2])}, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", parent], text=True, **options) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and said.startswith("stopped by SIGTERM: what is done is kept")


def test_a_command_ends_with_a_parent_that_is_killed(tmp_path):
    child = (
        "import pathlib, signal, sys, time; from tuning import parent\n"
        "def stop(*_): pathlib.Path('stopped').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); parent.end_with_supervisor(); pathlib.Path('ready').touch()\n"
        "time.sleep(60)"
    )
    parent = f"from tuning import supervised_command as s; s.run([{sys.executable!r}, '-c', {child!r}])"
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env={"PYTHONPATH": root})
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
    process.kill()
    process.wait()
    limit = time.monotonic() + 20
    while not (tmp_path / "stopped").exists():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_signal_while_the_command_starts_goes_to_it(monkeypatch):
    start = subprocess.Popen

    def start_late(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return start(*arguments, **options)

    monkeypatch.setattr(supervised_command.subprocess, "Popen", start_late)
    with pytest.raises(supervised_command.CommandFailed) as failed:
        supervised_command.run([sys.executable, "-c", "import time; time.sleep(60)"])
    assert failed.value.exit_code == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_reduced_run_from_the_search_to_the_table(tmp_path):
    """By the real commands, which leave what is done alone when called again."""
    script = Path(__file__).parents[2] / "scripts" / "run_evidence.py"
    command = [sys.executable, script, "--workloads=mnist_vit", "--submissions=nadamw", "--num_tuning_trials=1"]
    command += ["--num_confirmed=1", "--num_seeds=1", "--max_global_steps=2", "--targets="]
    command += [f"--experiment_dir={tmp_path / 'trials'}", f"--out={tmp_path / 'out'}"]
    command += [f"--compilation_cache_dir={tmp_path / 'cache'}"]
    archive = tmp_path / "out" / "mnist_vit.tar.xz"
    archives = []
    for _ in range(2):
        subprocess.run(command, check=True, capture_output=True)
        trials = reading.read([archive]).trials
        assert [(trial.phase, trial.rng_seed) for trial in trials] == [
            ("confirm", 2001),
            ("repeat", 2002),
            ("search", 2000),
        ]
        assert "| nadamw" in (tmp_path / "out" / "table.md").read_text()
        archives.append(archive.read_bytes())
    assert archives[0] == archives[1] and any((tmp_path / "cache").iterdir())
