"""What a sweep refuses before anything is trained: real disks, real databases, real checkouts."""

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from tests.tuning.databases import postgresql
from tests.tuning.limits import fill, read_only, small_disk
from tests.tuning.sweeps import ROOT, arguments, refusal, start
from tuning.errors import UserError
from tuning.point_status import stored
from tuning.sweep import Request, Sweep


def request(folder, **changes):
    given = dict(workload="b3db", submission_path="submissions/nadamw", experiment_dir=str(folder))
    return Request(**given | dict(experiment_name="e", num_tuning_trials=3) | changes)


def refused(folder, **changes):
    with pytest.raises(UserError) as error:
        Sweep(request(folder, **changes))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_read_only_folder(tmp_path):
    Sweep(request(tmp_path))
    with read_only(tmp_path):
        for name in ("e", "new"):
            line = refused(tmp_path, experiment_name=name)
            assert f"cannot write into {tmp_path}/{name} (Read-only file system): free some space or choose" in line
        # Looking at it is no writing.
        assert [point.state for _, point in stored(request(tmp_path).storage_location, "e")] == ["waiting"] * 3


def test_another_precision_of_products(tmp_path):
    sweep = Sweep(request(tmp_path, matmul_precision="float32"))
    assert [trial.matmul_precision for trial in sweep.descriptions[0]] == ["float32"] * 3
    assert "matmul_precision" in refused(tmp_path)


def test_a_storage_that_can_be_read_but_not_written(tmp_path):
    (tmp_path / "store").mkdir()
    url = f"sqlite:///{tmp_path}/store/s.db"
    Sweep(request(tmp_path, storage=url))
    with read_only(tmp_path / "store"):
        line = refused(tmp_path, storage=url)
    assert f"cannot use the storage {tmp_path}/store/s.db: attempt to write a readonly database; check --st" in line


@pytest.mark.slow
def test_a_database_user_who_may_not_write(tmp_path):
    with postgresql() as url:
        Sweep(request(tmp_path, storage=url))
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE ROLE reader LOGIN PASSWORD 'secret' IN ROLE pg_read_all_data")
        theirs = url.replace("postgres@", "reader:secret@")
        line = refused(tmp_path, storage=theirs)
        assert "permission denied" in line and "secret" not in line
        assert len(stored(theirs, "e")) == 3


@pytest.mark.parametrize("leave", [0, 2**17])
def test_a_full_disk_and_one_that_gets_full_while_points_are_enqueued(tmp_path, leave):
    with small_disk(tmp_path / "disk", "4m") as disk:
        filler = fill(disk, leave)
        line = refused(disk)
        assert ("No space left on device" if leave == 0 else "database or disk is full") in line
        filler.unlink()
        sweep = Sweep(request(disk))
        assert [point.state for _, point in sweep.status()] == ["waiting"] * 3
        del sweep


def test_a_database_that_is_not_reachable(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nothing listens
        port = closed.getsockname()[1]
        line = refused(tmp_path, storage=f"postgresql://me:secret@127.0.0.1:{port}/db")
    assert "cannot use the storage postgresql://" in line and "refused" in line and "secret" not in line


def test_a_file_that_is_no_database_and_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "s.db").write_text("no database, but a text that is long enough to be looked at" * 20)
    assert "file is not a database; check --storage" in refused(tmp_path, storage=f"sqlite:///{tmp_path}/s.db")
    missing = f"sqlite:///{tmp_path}/no/such/s.db"
    assert "unable to open database file; check --storage" in refused(tmp_path, storage=missing)
    assert not (tmp_path / "no").exists()


def test_another_sweep_of_the_same_name(tmp_path):
    Sweep(request(tmp_path))
    assert 'has another workload: "b3db", not "mnist_vit"; give another --experiment_name' in refused(
        tmp_path, workload="mnist_vit"
    )
    assert "has another submission" in refused(tmp_path, submission_path="submissions/nesterov")
    space = tmp_path / "space.json"
    space.write_text(json.dumps({"learning_rate": {"min": 1e-3, "max": 1e-2, "scaling": "log"}}))
    assert "has another search space" in refused(tmp_path, tuning_search_space=str(space))
    assert 'has another pruning: "none", not "median"' in refused(tmp_path, prune="median")
    assert "has another number of points: 3, not 4" in refused(tmp_path, num_tuning_trials=4)
    Sweep(request(tmp_path))


def test_a_sweep_in_another_folder_with_the_same_name_and_storage(tmp_path):
    """The trials' files would be in neither folder as a whole. Machines may mount one folder at different paths."""
    url = f"sqlite:///{tmp_path}/s.db"
    here = Sweep(request(tmp_path / "here", storage=url, num_studies=2))
    (tmp_path / "mount").symlink_to(tmp_path / "here")
    for place in ("here", "mount"):
        found = Sweep(request(tmp_path / place, storage=url, num_studies=2)).status()
        assert [point.state for _, point in found] == ["waiting"] * 6
    line = refused(tmp_path / "there", storage=url, num_studies=2)
    assert "study 'e/study_1' in the storage has its trials in another folder than" in line and "there/e'; give" in line
    assert list((tmp_path / "there" / "e").iterdir()) == []
    Sweep(request(tmp_path / "there", storage=f"sqlite:///{tmp_path}/other.db"))  # now that folder has an id, too
    assert "in another folder than" in refused(tmp_path / "there", storage=url, num_studies=2)
    assert [lease.index for queue in here.queues for lease in [queue.lease()]] == [1, 1]


def test_a_new_storage_goes_on_with_the_folder_and_a_study_of_an_earlier_version_with_any(tmp_path):
    Sweep(request(tmp_path, storage=f"sqlite:///{tmp_path}/lost.db"))
    url = f"sqlite:///{tmp_path}/s.db"
    storage = Sweep(request(tmp_path, storage=url)).queues[0]._study.storage
    Sweep(request(tmp_path, storage=url))
    identity = storage.get_study_user_attrs(1)["identity"]
    storage.set_study_user_attr(1, "identity", {key: identity[key] for key in identity.keys() - {"folder"}})
    for place in (tmp_path, tmp_path / "elsewhere"):
        assert len(Sweep(request(place, storage=url)).status()) == 3


@pytest.mark.parametrize("name", ["q?x", "h#x", "a%41b", "{x}", "cuda/"])
def test_a_name_is_one_folder_one_database_and_one_study(tmp_path, name):
    sweep = Sweep(request(tmp_path, experiment_name=name))
    assert [path.name for path in tmp_path.iterdir()] == [name.rstrip("/")]
    assert [path.name for path in (tmp_path / name).iterdir()] == ["study.db"]
    sweep.queues[0].lease()
    for same in (name, name.rstrip("/")):
        again = request(tmp_path, experiment_name=same)
        for found in (Sweep(again).status(), stored(again.storage_location, again.experiment_folder.name)):
            assert [point.state for _, point in found] == ["running", "waiting", "waiting"]
    assert [path.name for path in tmp_path.iterdir()] == [name.rstrip("/")]


@pytest.mark.parametrize("name", ["..", "a/../..", "/", "", "n" * 300, "\udcff"])
def test_a_name_that_is_no_folders_is_refused(tmp_path, name):
    refused(tmp_path, experiment_name=name)
    assert list(tmp_path.iterdir()) == []


_INTERRUPTED_CHANGE = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")  # so that changed pages go to the file before the end
connection.execute("BEGIN")
connection.execute("UPDATE trials SET state = 'FAIL'")
connection.execute("UPDATE trial_user_attributes SET value_json = value_json || hex(randomblob(9999))")
os._exit(9)
"""


def test_one_looks_beside_a_change_that_was_cut_short(tmp_path):
    Sweep(request(tmp_path))
    file = tmp_path / "e" / "study.db"
    assert subprocess.run([sys.executable, "-c", _INTERRUPTED_CHANGE, str(file)]).returncode == 9
    before = {path.name: path.read_bytes() for path in file.parent.iterdir()}
    assert (
        set(before) == {"study.db", "study.db-journal"} and before["study.db-journal"][:8].hex() == "d9d505f920a163d7"
    )
    with read_only(tmp_path / "e"):
        assert [point.state for _, point in stored(file, "e")] == ["waiting"] * 3
    assert [point.state for _, point in stored(file, "e")] == ["waiting"] * 3
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == before
    assert [point.state for _, point in Sweep(request(tmp_path)).status()] == ["waiting"] * 3  # and one goes on


def test_one_looks_only_at_what_is_there(tmp_path):
    with pytest.raises(UserError, match="no sweep is in .*study.db: check --experiment_dir and --experiment_name"):
        stored(request(tmp_path).storage_location, "e")
    assert list(tmp_path.iterdir()) == []
    Sweep(request(tmp_path))
    with pytest.raises(UserError, match="the storage has no sweep 'other'"):
        stored(request(tmp_path).storage_location, "other")


@pytest.mark.slow
def test_the_script_tells_it_in_one_line_and_starts_no_worker(tmp_path):
    (tmp_path / "e").mkdir()
    with read_only(tmp_path / "e"):
        assert "Read-only file system" in refusal(start(tmp_path, "e"))
    assert list((tmp_path / "e").iterdir()) == []


@pytest.mark.slow
def test_the_script_says_what_it_waits_for_and_a_signal_meanwhile_is_one_line(tmp_path):
    (tmp_path / "e").mkdir()
    with closing(sqlite3.connect(tmp_path / "e" / "study.db", isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        sweep = start(tmp_path, "e")
        assert "waiting for the storage" in (line := sweep.stdout.readline()) and "database is locked" in line
        sweep.send_signal(signal.SIGTERM)
        output, _ = sweep.communicate()
    assert output == "stopped by SIGTERM: no new checkpoint; run the same command again to go on\n"
    assert sweep.returncode == 75


@pytest.mark.slow
def test_another_code_version(tmp_path):
    copy = tmp_path / "copy"
    cloned = subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], capture_output=True, text=True)
    if shutil.which("git") is None or cloned.returncode:
        pytest.skip(f"the tests do not run in a git checkout: {cloned.stderr.strip()}")
    Sweep(request(tmp_path))
    for folder in ("scripts", "submissions", "tuning", "workloads"):  # as they are now, committed or not
        shutil.copytree(ROOT / folder, copy / folder, dirs_exist_ok=True)
    settings = ("user.name=a", "user.email=a@example.org", "commit.gpgsign=false", "core.hooksPath=/dev/null")
    options = [word for setting in settings for word in ("-c", setting)]
    subprocess.run(["git", *options, "commit", "-qam", "Another version", "--allow-empty"], cwd=copy, check=True)
    command = [sys.executable, "scripts/run_sweep.py", *arguments(tmp_path, "e", "--num_tuning_trials=3")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    line = refusal(subprocess.Popen(command, cwd=copy, **pipes))
    assert "has another code version: " in line and "use the settings and code that it was made with" in line
    assert not (tmp_path / "e" / "logs").exists()
