"""Who owns a folder: one process at a time, and none that was taken over writes again."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tuning import claim as claims
from tuning import process_identity
from tuning.claim import Claim, ClaimLost, FolderClaimed
from tuning.errors import UserError

ROOT = Path(__file__).parents[2]


def test_a_second_comer_is_refused_in_one_line_with_host_and_process(tmp_path):
    with Claim.take(tmp_path / "t", beat_s=0.05):
        with pytest.raises(FolderClaimed, match=rf"is in use by process {os.getpid()} on host \S+: wait") as error:
            Claim.take(tmp_path / "t")
        assert "\n" not in str(error.value)
    with Claim.take(tmp_path / "t"):
        pass
    assert not (tmp_path / "t").exists()


def test_a_folder_that_holds_something_stays_and_only_that(tmp_path):
    with Claim.take(tmp_path / "a" / "t") as claim:
        claim.write(tmp_path / "a" / "t" / "sub" / "file", b"x")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "a",
        "a/t",
        "a/t/sub",
        "a/t/sub/file",
    ]


def test_of_many_comers_at_once_one_wins(tmp_path):
    won, start = [], threading.Barrier(12)

    def come():
        start.wait()
        try:
            won.append(Claim.take(tmp_path / "t", beat_s=0.05))
        except FolderClaimed:
            pass

    threads = [threading.Thread(target=come) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (claim,) = won
    claim.check()
    claim.release()


def _silent(folder, lease_s=0.4):
    """A claim whose owner gives no sign of life any more, as of a process that was stopped."""
    claim = Claim.take(folder, beat_s=60, lease_s=lease_s)
    return claim


def test_an_owner_that_is_silent_for_its_lease_is_taken_over_and_can_write_nothing(tmp_path):
    stopped = _silent(tmp_path / "t")
    stopped.write(tmp_path / "t" / "a", b"own")
    (stopped._staging / "half.tmp").write_bytes(b"left over")
    began = time.monotonic()
    with Claim.take(tmp_path / "t") as claim:
        assert 0.4 <= time.monotonic() - began < 5
        assert sorted(path.name for path in claim._staging.iterdir()) == ["beat", "owner.json"]
        claim.write(tmp_path / "t" / "b", b"new")
        for attempt in (
            stopped.check,
            lambda: stopped.write(tmp_path / "t" / "a", b"late"),
            lambda: stopped.discard(tmp_path / "t" / "b"),
        ):
            with pytest.raises(ClaimLost, match=f"was taken over by process {os.getpid()}"):
                attempt()
        stopped.release()
        claim.check()
        assert ((tmp_path / "t" / "a").read_bytes(), (tmp_path / "t" / "b").read_bytes()) == (b"own", b"new")
    assert not (tmp_path / "t" / ".claim").exists()
    with pytest.raises(ClaimLost, match="taken over by another process or removed"):
        stopped.check()


def test_a_write_that_was_stopped_before_its_last_step_changes_nothing(tmp_path, monkeypatch):
    """Stopped after the temporary file was written: the rename itself is fenced."""
    stopped, replace = _silent(tmp_path / "t"), os.replace
    stopped.write(tmp_path / "t" / "a", b"own")

    def take_over_first(source, target):
        if Path(target) == tmp_path / "t" / "a":
            monkeypatch.setattr(os, "replace", replace)
            Claim.take(tmp_path / "t", beat_s=60)
        replace(source, target)

    monkeypatch.setattr(os, "replace", take_over_first)
    with pytest.raises(ClaimLost):
        stopped.write(tmp_path / "t" / "a", b"late")
    assert (tmp_path / "t" / "a").read_bytes() == b"own"


@pytest.mark.parametrize("step_s", [100.0, -3600.0])
def test_no_wall_clock_is_looked_at(tmp_path, monkeypatch, step_s):
    shift = [0.0]
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + shift[0])
    with Claim.take(tmp_path / "t", beat_s=0.05) as claim:
        os.utime(claim._staging / "beat", (wall() - step_s, wall() - step_s))
        shift[0] = step_s
        with pytest.raises(FolderClaimed):
            Claim.take(tmp_path / "t")
    _silent(tmp_path / "dead")
    shift[0] = -step_s
    Claim.take(tmp_path / "dead").release()


@pytest.mark.parametrize("kind", ["killed", "reused process id", "not collected"])
def test_a_process_that_is_gone_is_taken_over_at_once(tmp_path, kind):
    program = f"from tuning.claim import Claim; Claim.take(__import__('pathlib').Path({str(tmp_path / 't')!r}))"
    program += "; print('.', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b".\n"
    process.send_signal(signal.SIGKILL)
    if kind == "not collected":
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    else:
        process.wait()
    if kind == "reused process id":
        (file,) = (tmp_path / "t" / ".claim").glob("*/owner.json")
        info = json.loads(file.read_text())
        info["process"]["process_id"] = os.getpid()  # alive, but it began at another time
        file.write_text(json.dumps(info))
    began = time.monotonic()
    Claim.take(tmp_path / "t").release()
    assert time.monotonic() - began < 2
    process.wait()
    process.stdin.close(), process.stdout.close()


def test_a_process_of_another_machine_is_never_looked_up():
    own = process_identity.current()
    assert not process_identity.has_ended(own)
    assert process_identity.has_ended(own | {"start": own["start"] - 1})
    assert not process_identity.has_ended(own | {"start": own["start"] - 1, "boot": "another"})
    assert not process_identity.has_ended(own | {"start": own["start"] - 1, "id_namespace": "another"})
    assert not process_identity.has_ended({})


def test_a_live_process_of_another_user_is_not_taken_for_ended_where_proc_hides_it(monkeypatch):
    def refuse(process_id, number):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    own = process_identity.current()
    monkeypatch.setattr(process_identity, "_start", lambda process_id: None)
    assert process_identity.has_ended(own)  # a zombie
    monkeypatch.setattr(os, "kill", refuse)
    assert not process_identity.has_ended(own)


@pytest.mark.parametrize("torn", ["owner.json", "beat"])
def test_what_a_loss_of_power_tore_is_judged_by_its_lease(tmp_path, monkeypatch, torn):
    monkeypatch.setattr(claims, "LEASE_S", 0.2)
    lost = _silent(tmp_path / "t", lease_s=0.2)
    (lost._staging / torn).write_bytes(b"")
    Claim.take(tmp_path / "t").release()


def test_comers_that_were_killed_leave_nothing(tmp_path):
    place = tmp_path / "t" / ".claim-abc" / "owner-abc"
    place.mkdir(parents=True)
    dead = process_identity.current()
    (place / "owner.json").write_text(json.dumps({"process": dead | {"start": dead["start"] - 1}}))
    alive = tmp_path / "t" / ".claim-def" / "owner-def"
    alive.mkdir(parents=True)
    (alive / "owner.json").write_text(json.dumps({"process": dead}))
    with Claim.take(tmp_path / "t"):
        assert not place.parent.exists() and alive.exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_while_a_folder_is_released_hides_no_error(tmp_path, monkeypatch, number):
    def fail(source, target):
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match="^cannot write$"), Claim.take(tmp_path / "t"):
        monkeypatch.setattr(os, "rename", fail)
        raise UserError("cannot write")


def test_a_place_where_no_folder_can_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, cure in ((tmp_path / "file", "another"), (tmp_path / "file" / "t", "another"), ("n" * 300, "shorter")):
        with pytest.raises(UserError, match=f"cannot write into .*: give a?n?o?t?h?e?r? ?.*{cure}") as error:
            Claim.take(tmp_path / folder)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
