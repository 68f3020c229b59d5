"""A Slurm of one node on this machine, without systemd or control groups, for as long as a test needs it."""

import getpass
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tuning.programs import needed

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scontrol")
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=spare Nodes={host} MaxTime=60 State=UP
"""


@contextmanager
def slurm(folder: Path):
    """The environment in which Slurm's commands reach the cluster; skips where it cannot be installed."""
    _refuse_or_install()
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    for place in ("state", "spool"):
        (folder / place).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname()
    text = _CONFIGURATION.format(host=host, ports=_free_ports(2), folder=folder, cores=os.cpu_count())
    (folder / "slurm.conf").write_text(text)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]
    daemons = []
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            with open(folder / f"{command[0]}.out", "wb") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            _wait_for((folder / "munge.socket").exists, folder)
        _wait_for(lambda: _node_states(environment) == {"idle"}, folder)
        yield environment
    finally:
        subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _refuse_or_install() -> None:
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started as root here")
    for program in _PROGRAMS:
        needed(program, "slurmctld", "slurmd", "slurm-client", "munge")


def _free_ports(n: int) -> list[int]:
    probes = [socket.socket() for _ in range(n)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _node_states(environment: dict[str, str]) -> set[str]:
    told = subprocess.run(["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True)
    return set(told.stdout.split())


def _wait_for(condition: Callable[[], bool], folder: Path) -> None:
    limit = time.monotonic() + 60
    while not condition():
        if time.monotonic() > limit:
            files = sorted([*folder.glob("*.log"), *folder.glob("*.out")])
            logs = "\n".join(file.read_text(errors="replace")[-1000:] for file in files)
            pytest.fail(f"Slurm does not start:\n{logs}")
        time.sleep(0.1)
