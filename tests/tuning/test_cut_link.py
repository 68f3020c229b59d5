"""A sweep of two hosts, network namespaces on this machine, over PostgreSQL; the link to one is cut and restored."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from tests.tuning.databases import postgresql_server
from tests.tuning.sweeps import ROOT

pytestmark = pytest.mark.slow

N_POINTS = 6
_HOST = f"""
import pathlib, sys, time
from tuning.point_queue import PointQueue
storage, held = sys.argv[1], pathlib.Path(sys.argv[2])
queue = PointQueue(storage, "cut", {{}}, [{{"x": float(i)}} for i in range({N_POINTS})], heartbeat_s=1)
while not all(point.state == "done" for point in queue.status()):
    lease = queue.lease()
    if lease is None:
        time.sleep(0.2)
        continue
    print("took", lease.index, flush=True)
    with queue.alive(lease):
        time.sleep(0.3)
        while held.exists():
            time.sleep(0.1)
    print("ended" if queue.finish(lease, {{}}, 1.0) else "lost", lease.index, flush=True)
"""


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


@contextmanager
def host(number):
    """(name, this machine's address as it sees it) of a network namespace with a link to this machine."""
    name, ours, theirs = (f"kfac{kind}{os.getpid() % 10_000}{number}" for kind in "nab")
    net = f"10.213.{number}"
    try:
        ip("netns", "add", name)
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        for where, link, address in (([], ours, f"{net}.1/24"), (["-n", name], theirs, f"{net}.2/24")):
            ip(*where, "addr", "add", address, "dev", link)
            ip(*where, "link", "set", link, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
    try:
        yield name, f"{net}.1", ours
    finally:
        subprocess.run(["ip", "netns", "del", name])
        subprocess.run(["ip", "link", "del", ours], capture_output=True)


@contextmanager
def forwarded(address, port):
    """A port on this address, whose connections go on to `port` of 127.0.0.1, where alone the server listens."""
    listener = socket.create_server((address, 0))

    def pump(source, sink):
        try:
            while chunk := source.recv(65536):
                sink.sendall(chunk)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def serve():
        while True:
            try:
                ends = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            for pair in (ends, ends[::-1]):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_a_link_cut_for_longer_than_a_lease_ends_every_point_once(tmp_path):
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip")
    with ExitStack() as stack:
        server = stack.enter_context(postgresql_server())
        own_port = int(server.url.rpartition(":")[2].partition("/")[0])
        hosts = [stack.enter_context(host(number)) for number in (1, 2)]
        ports = [stack.enter_context(forwarded(address, own_port)) for _, address, _ in hosts]
        held, never = tmp_path / "held", tmp_path / "never"

        def start(index, flag):
            name, address, _ = hosts[index]
            command = ["ip", "netns", "exec", name, sys.executable, "-c", _HOST]
            url = f"postgresql://postgres@{address}:{ports[index]}/postgres"
            return subprocess.Popen([*command, url, str(flag)], cwd=ROOT, stdout=subprocess.PIPE, text=True)

        held.touch()
        far = start(1, held)
        took = far.stdout.readline().split()[1]
        ip("link", "set", hosts[1][2], "down")
        near = start(0, never)
        said = [near.stdout.readline().strip()]
        assert said[0].startswith("took")
        began = time.monotonic()
        while f"ended {took}" not in said:  # the other host takes over what the cut one held
            said.append(near.stdout.readline().strip())
            assert said[-1], near.wait()
        assert time.monotonic() - began > 3  # the lease: three heartbeats
        ip("link", "set", hosts[1][2], "up")
        held.unlink()
        said += near.communicate(timeout=300)[0].splitlines()
        of_far = far.communicate(timeout=300)[0].splitlines()
        assert near.returncode == far.returncode == 0
        assert of_far[0] == f"lost {took}"
        ended = sorted(line for line in said + of_far if line.startswith("ended"))
        assert ended == [f"ended {index}" for index in range(1, N_POINTS + 1)]
