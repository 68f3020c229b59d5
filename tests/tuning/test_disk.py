"""Which folder cannot be written, and which failure is the machine's."""

import errno
import os
import resource
import tempfile

import pytest

from tuning import disk
from tuning.errors import MachineFault, UserError


def test_a_folder_is_tried_without_a_file_that_a_kill_would_leave(tmp_path, monkeypatch):
    seen, make = [], tempfile.TemporaryFile

    def make_and_look(**options):
        file = make(**options)
        seen.append(list((tmp_path / "new").iterdir()))
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", make_and_look)
    disk.check_writable(tmp_path / "new")
    assert seen == [[]]


def test_a_process_without_files_left_is_at_fault_and_not_the_folder(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        with pytest.raises(MachineFault, match=r"Too many open files\): raise the limit of open files"):
            disk.check_writable(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    ("number", "place", "words"),
    [
        (errno.EACCES, "out/trial_1/x", "cannot write into .*out .Permission denied.: give another --experiment_dir"),
        (errno.EACCES, None, "cannot write into .*out .Permission denied.: give another --experiment_dir"),
        (errno.EACCES, "data/x", "cannot use '.*data/x' .Permission denied.: fix that, and run the command again"),
        (errno.EIO, "data/x", "cannot use '.*data/x' .Input/output error.: fix that"),
        (errno.EMFILE, "data/x", "cannot use '.*data/x' .Too many open files.: raise the limit of open files"),
    ],
)
def test_the_place_that_failed_is_named_with_its_cure(tmp_path, number, place, words):
    error = OSError(number, os.strerror(number), place and str(tmp_path / place))
    with pytest.raises(UserError, match=words) as refusal:
        disk.raise_if_disk_failed(error, tmp_path / "out")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.ENOMEM])
def test_the_cure_of_what_passes_says_how_a_trial_goes_on(tmp_path, number):
    with pytest.raises(UserError, match=r"run the command again \(run_trial.py with --resume\): what is done is kept$"):
        disk.raise_if_disk_failed(OSError(number, os.strerror(number)), tmp_path)


def test_an_error_of_the_program_passes(tmp_path):
    disk.raise_if_disk_failed(FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), tmp_path)
    disk.raise_if_disk_failed(ValueError("its own"), tmp_path)
