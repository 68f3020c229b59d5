"""Several processes that carry out a trial together, each with devices of its own, on one host or many.

All run the same program. Only the first process writes files. It makes every decision that depends on a clock, a signal
or a file, and sends it to the others by JAX's coordination service, so that no device waits for it.
"""

import atexit
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from tuning import machine
from tuning.errors import MachineFault, UserError, one_line
from workloads.shards import over_devices

PyTree = Any
T = TypeVar("T")

_MESSAGES_PER_BATCH = 1000  # a batch of messages is deleted once all processes have read it
_ANSWER_S = 24 * 3600.0  # timeout of waiting for a message, before which there may be an evaluation
_LISTEN_S = 1.0  # between two checks for signals that other processes received
_SHUTDOWN_S = 30  # timeout of waiting for the other processes to end
_COMPILE_S = 1800
# Variables that a launcher sets for every process; a row each for Open MPI's mpirun, MPICH's and Intel MPI's mpirun,
# and Slurm's srun. They hold the number of processes and this one's number; the third, if it is set, means that JAX
# finds the first process's address by itself. Under Slurm, mpirun starts its helpers by srun, and its processes inherit
# srun's variables; so srun's row comes last.
_LAUNCHED = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_hnp_uri"),  # the last one by Open MPI 4 alone
    ("PMI_SIZE", "PMI_RANK", ""),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_PROCID"),
)
# This process's number on its host, and how many processes each host has (Slurm: "4(x2)" for four on each of two).
_ON_HOST = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


class Processes:
    """This process among the processes of its trial; by default it is the only one."""

    def __init__(self, index: int = 0, count: int = 1, client: Any = None):
        self.index, self.count, self._client = index, count, client
        self._n_messages = self._n_phases = 0
        self._listened_at, self._others_signal = float("-inf"), None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def from_first(self, value: T) -> T:
        """Returns the first process's value, plain data, in every process. All must call this in the same order.

        Raises:
            UserError: the first process has ended.
        """
        if self.count == 1:
            return value
        if self.is_first:
            self._send({"value": value})
            return value
        return self._receive()

    def arrays_of_first(self, arrays: PyTree) -> PyTree:
        """Returns the first process's arrays in every process; the other processes' arrays give the shapes."""
        return arrays if self.count == 1 else multihost_utils.broadcast_one_to_all(arrays, is_source=self.is_first)

    @contextmanager
    def finished_by_all(self) -> Iterator[None]:
        """A block that each process leaves only when all have finished it. An error in one process ends all.

        Raises:
            UserError: another process failed.
        """
        if self.count == 1:
            yield
            return
        self._n_phases += 1
        phase, problem = f"phases/{self._n_phases}", ""
        try:
            yield
        except BaseException as error:
            problem = one_line(error)
            raise
        finally:
            self._client.key_value_set(f"{phase}/{self.index}", problem)
        for index in range(self.count):
            if problem := self._client.blocking_key_value_get(f"{phase}/{index}", int(1000 * _ANSWER_S)):
                raise UserError(f"process {index} of {self.count}: {problem}")

    def connect_devices(self) -> None:
        """Runs a first collective operation, right after a barrier.

        On CPUs the first collective waits only 30 s for the other processes, which may still be compiling later on.
        """
        self._client.wait_at_barrier("connect", int(1000 * _ANSWER_S))
        ones = jax.make_array_from_process_local_data(over_devices("batch"), np.ones(jax.local_device_count()))
        jax.block_until_ready(jax.jit(lambda x: x.sum(), out_shardings=over_devices())(ones))
        multihost_utils.sync_global_devices("connected")

    def check_same_in_all(self, values: dict[str, Any], what: str) -> None:
        """
        Raises:
            UserError: the values, plain data, differ from the first process's.
        """
        if (first := self.from_first(values)) != json.loads(json.dumps(values)) and not self.is_first:
            names = [name for name in values if values[name] != first.get(name)]
            raise UserError(
                f"process {self.index} has another {what} than the first one ({', '.join(names)} differ): "
                "give all of them the same flags, code and data"
            )

    @contextmanager
    def telling_others_of_errors(self) -> Iterator[None]:
        """A block whose error in this process also reaches the other processes, which may wait for a message."""
        try:
            yield
        except BaseException as error:
            if self.count > 1 and self.is_first:
                self._send({"end": one_line(error)})
            elif self.count > 1:
                key = f"phases/{self._n_phases + 1}/{self.index}"
                self._client.key_value_set(key, one_line(error), allow_overwrite=True)
            if self.count > 1 and isinstance(error, MachineFault):
                atexit.register(os._exit, error.exit_code)  # JAX's shutdown would wait for the lost ones
            raise

    def signal(self, own: str | None) -> str | None:
        """The name of the signal that this process received (`own`); in the first process, that any received."""
        if self.count == 1:
            return own
        if not self.is_first:
            if own:
                self._client.key_value_set(f"signals/{self.index}", own, allow_overwrite=True)
            return own
        if not (own or self._others_signal) and time.monotonic() - self._listened_at >= _LISTEN_S:
            self._listened_at = time.monotonic()
            self._others_signal = next((name for _, name in self._client.key_value_dir_get("signals")), None)
        return own or self._others_signal

    def _send(self, message: dict[str, Any]) -> None:
        self._client.key_value_set(self._message_key(), json.dumps(message))
        self._count_message()

    def _receive(self) -> Any:
        message = json.loads(self._client.blocking_key_value_get(self._message_key(), int(1000 * _ANSWER_S)))
        self._count_message()
        if "end" in message:
            raise UserError(f"the first of the {self.count} processes has ended: {message['end']}")
        return message["value"]

    def _message_key(self) -> str:
        return f"messages/{self._n_messages // _MESSAGES_PER_BATCH}/{self._n_messages}"

    def _count_message(self) -> None:
        self._n_messages += 1
        if self._n_messages % _MESSAGES_PER_BATCH:
            return
        batch = self._n_messages // _MESSAGES_PER_BATCH - 1
        self._client.wait_at_barrier(f"batch {batch}", int(1000 * _ANSWER_S))
        if self.is_first:
            self._client.key_value_delete(f"messages/{batch}")


def own_cuda_devices() -> list[int] | None:
    """Which of the visible CUDA devices a launched process uses; None if there are none, or no launcher.

    A launcher shows a process either its own devices alone or all of its host's, which are then shared out in equal
    parts. JAX by itself takes the one device of the process's number on the host: this device does not exist in the
    former case, and others stay idle where a process has several.
    """
    n_visible = len(machine.visible_cuda_devices())
    found = next((names for names in _ON_HOST if all(name in os.environ for name in names)), None)
    if not n_visible or found is None:
        return None
    index, n_processes = (int(re.split(r"\D", os.environ[name])[0]) for name in found)
    asked_for = os.environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]  # "2" or "v100:2"
    n_own = int(asked_for) if asked_for.isdecimal() else max(1, n_visible // n_processes)
    first = index * n_own if n_visible >= n_processes * n_own else 0
    return list(range(first, min(first + n_own, n_visible)))


def _launcher() -> tuple[str, str, str] | None:
    """The variables of what started this process as one of several; None if nothing did."""
    found = [names for names in _LAUNCHED if int(os.environ.get(names[0], 1)) > 1]
    if len(found) > 1 and len({os.environ[names[0]] for names in found}) == 1:
        return found[-1]  # srun sets the variables of MPICH, too
    return found[0] if found else None


def join(coordinator_address: str | None = None, n_processes: int | None = None, index: int | None = None) -> Processes:
    """Connects to the other processes, if flags or the launcher name any. No device may have been used before.

    Args:
        coordinator_address: host and port of the first process. A launcher provides the other arguments, and Slurm and
            Open MPI 4 this one, too.

    Raises:
        UserError: some of the arguments are missing, or the processes do not connect.
    """
    launcher = _launcher()
    if coordinator_address is n_processes is index is None:
        if launcher is None:
            return Processes()
        if launcher[2] not in os.environ:
            problem = f"the launcher started {os.environ[launcher[0]]} processes, but set no address to connect to"
            cure = "give every process --coordinator_address=HOST:PORT, the first one's host and a free port on it"
            raise UserError(f"{problem}: {cure}")
    elif launcher is not None and n_processes is index is None:
        n_processes, index = (int(os.environ[name]) for name in launcher[:2])
    elif coordinator_address is None or n_processes is None or index is None:
        raise UserError("several processes need --coordinator_address, --num_processes and --process_id, all three")
    elif not 0 <= index < n_processes:
        raise UserError(f"--process_id={index} must be from 0 to {n_processes - 1}, one less than --num_processes")
    jax.config.update("jax_enable_preemption_service", False)  # its SIGTERM handler would replace ours
    # On CPUs processes that have compiled a program wait for the others, for longer than XLA's 30 and 40 s.
    timeouts = (f"--xla_cpu_collective_{kind}timeout_seconds={_COMPILE_S}" for kind in ("", "call_terminate_"))
    os.environ["XLA_FLAGS"] = " ".join([*timeouts, os.environ.get("XLA_FLAGS", "")])
    place = (coordinator_address, n_processes, index, own_cuda_devices())
    try:
        jax.distributed.initialize(*place, shutdown_timeout_seconds=_SHUTDOWN_S)
    except (RuntimeError, ValueError) as error:
        problem = f"the processes of this trial cannot connect to each other ({one_line(error)[:300]})"
        raise UserError(
            f"{problem}: check --coordinator_address, if it is given, and that all of them are started"
        ) from error
    from orbax.checkpoint import multihost

    processes = Processes(jax.process_index(), jax.process_count(), multihost.get_jax_distributed_client())
    processes.connect_devices()
    return processes
