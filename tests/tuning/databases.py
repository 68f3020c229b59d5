"""Storages to test on: an SQLite file, and a PostgreSQL server started for the test."""

import glob
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.tuning.programs import installed

_USER = "postgres"


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server with an empty database, that can be stopped and started again."""

    url: str
    start: Callable[[], None]
    stop: Callable[[], None]


@contextmanager
def postgresql():
    """URL of an empty database on a server of its own; skips where PostgreSQL or its driver is not installed."""
    with postgresql_server() as server:
        yield server.url


@contextmanager
def postgresql_server():
    """The server of `postgresql`."""
    pytest.importorskip("psycopg", reason="pip install psycopg[binary]")
    initdb = installed(_initdb, "postgresql")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed, and cannot be here: apt install postgresql")
    server = Path(initdb).resolve().parent
    # Not under pytest's own folder: another pytest closes that to the server's user at any time.
    data = Path(tempfile.mkdtemp(prefix="postgresql_"))
    prefix = []
    if os.geteuid() == 0:  # the server refuses to run as root
        if shutil.which("runuser") is None or subprocess.run(["id", _USER], capture_output=True).returncode:
            pytest.skip(f"the PostgreSQL server needs a user {_USER!r} where the tests run as root")
        shutil.chown(data, _USER)
        prefix = ["runuser", "-u", _USER, "--"]
    # The data need not survive a crash of the machine, and the disk is slow where others write.
    options = f"-c fsync=off -c synchronous_commit=off -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
    control = [*prefix, str(server / "pg_ctl"), "-D", str(data / "db"), "-w"]
    try:
        making = [*prefix, initdb, "-N", "-D", data / "db", "-U", _USER, "-A", "trust"]
        making += ["--no-locale", "-E", "UTF8"]
        subprocess.run(making, check=True, capture_output=True, cwd="/")
        run = partial(subprocess.run, cwd="/", stdout=subprocess.DEVNULL)
        for _ in range(5):  # another program may take the free port before the server does
            port = _free_port()
            starting = [*control, "-l", str(data / "log"), "-o", f"-p {port} {options}", "start"]
            if run(starting).returncode == 0:
                break
        else:
            pytest.fail((data / "log").read_text())
        start, stop = partial(run, starting, check=True), partial(run, [*control, "-m", "fast", "stop"], check=True)
        yield Server(f"postgresql://{_USER}@127.0.0.1:{port}/postgres", start, stop)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], capture_output=True, cwd="/")
        shutil.rmtree(data)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _initdb() -> str | None:
    return shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None)
