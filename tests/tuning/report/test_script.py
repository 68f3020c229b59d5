"""scripts/report.py as a process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tuning.report.folders import write_comparison, write_trial

SCRIPT = Path(__file__).parents[3] / "scripts" / "report.py"


def start(*arguments: object, **environment: str) -> subprocess.Popen:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_it_prints_the_table_and_where_the_page_is(tmp_path):
    place = write_comparison(tmp_path / "in") / "digits" / "kfac" / "search" / "trial_1" / "eval_measurements.csv"
    place.write_text(place.read_text() + "110,")
    process = start(tmp_path / "in", f"--out={tmp_path / 'out'}", "--references=sgd")
    printed, problems = process.communicate()
    assert process.returncode == 0
    assert "digits: to accuracy 0.8" in printed and "0.43" in printed and "sgd (reference)" in printed
    assert printed.rstrip().endswith(str(tmp_path / "out" / "index.html"))
    assert f"{place} line 12 is left out" in problems


def test_it_prints_to_a_terminal_that_has_ascii_alone(tmp_path):
    write_comparison(tmp_path / "in")
    process = start(tmp_path / "in", f"--out={tmp_path / 'out'}", "--references=sgd", PYTHONIOENCODING="ascii")
    printed, _ = process.communicate()
    assert process.returncode == 0 and printed.isascii() and "sgd (reference)" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: name the folders to report on"),
        (["/nowhere/at/all"], "error: '/nowhere/at/all' is neither a folder nor a .tar.xz archive"),
        (["/tmp", "--referenses=x"], "error: Unknown command line flag 'referenses'"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, message):
    process = start(*arguments)
    _, error = process.communicate()
    assert process.returncode == 2 and error.startswith(message) and len(error.splitlines()) == 1


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    write_comparison(tmp_path / "in")
    (tmp_path / "file").write_text("")
    process = start(tmp_path / "in", f"--out={tmp_path / 'file' / 'out'}")
    _, error = process.communicate()
    assert process.returncode == 2 and "cannot write into" in error and len(error.splitlines()) == 1


@pytest.mark.slow
def test_watch_follows_a_sweep_until_interrupted(tmp_path):
    """Started before there is any trial; the page tells the browser to load it again."""
    (tmp_path / "in").mkdir()
    page = tmp_path / "out" / "index.html"
    process = start(tmp_path / "in", f"--out={tmp_path / 'out'}", "--watch", "--watch_period_s=1")

    def wait_for(text: str) -> None:
        limit = time.monotonic() + 60
        while not (page.exists() and text in page.read_text()):
            assert time.monotonic() < limit and process.poll() is None
            time.sleep(0.1)

    try:
        wait_for("There is no trial to report on.")
        write_trial(tmp_path / "in" / "digits_jax" / "trial_1", [0.9], point={}, outcome={"submission": "kfac"})
        wait_for("kfac needs the fewest steps")
        assert '<meta http-equiv="refresh" content="1">' in page.read_text()
    finally:
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert "Traceback" not in error
