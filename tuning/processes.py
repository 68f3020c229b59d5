"""Several processes that carry out a trial together, each with devices of its own, on one host or many.

All run the same program. What depends on a clock, a signal or a file is decided by the first one, which alone writes,
and the others follow. Its decisions travel by JAX's coordination service, so that no device waits for them.
"""

import atexit
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tuning.errors import MachineFault, UserError, one_line

PyTree = Any
T = TypeVar("T")

_N_KEPT = 1000  # messages that are kept until all processes have read them
_ANSWER_S = 24 * 3600.0  # for the first process's next message: an evaluation may lie before it
_LISTEN_S = 1.0  # between two looks for signals that other processes had
_SHUTDOWN_S = 30  # for the others to end, too
_COMPILE_S = 1800
# Set for every process by Slurm's srun and by Open MPI's mpirun.
_LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


class Processes:
    """This process among those of its trial; without arguments it is alone."""

    def __init__(self, index: int = 0, count: int = 1, client: Any = None):
        self.index, self.count, self._client = index, count, client
        self._n_told = self._n_phases = 0
        self._listened_at, self._heard = float("-inf"), None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def same(self, value: T) -> T:
        """The first process's value, plain data, on all of them. All must call this in the same order.

        Raises:
            UserError: the first process has ended.
        """
        if self.count == 1:
            return value
        if self.is_first:
            self._tell({"value": value})
            return value
        return self._hear()

    def arrays_of_first(self, arrays: PyTree) -> PyTree:
        """The first process's arrays, on all of them; those of the others give the shapes."""
        return arrays if self.count == 1 else multihost_utils.broadcast_one_to_all(arrays, is_source=self.is_first)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes leave after all have done it; what one of them fails of ends all.

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
            if said := self._client.blocking_key_value_get(f"{phase}/{index}", int(1000 * _ANSWER_S)):
                raise UserError(f"process {index} of {self.count}: {said}")

    def connect_devices(self) -> None:
        """Has the devices compute together, while all processes are at the same place.

        On CPUs the first collective waits 30 s for the other processes, however long these compile.
        """
        self._client.wait_at_barrier("connect", int(1000 * _ANSWER_S))
        mesh = Mesh(np.array(jax.devices()), ("all",))
        split, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
        ones = jax.make_array_from_process_local_data(split, np.ones(jax.local_device_count()))
        jax.block_until_ready(jax.jit(lambda x: x.sum(), out_shardings=whole)(ones))
        multihost_utils.sync_global_devices("connected")

    def refuse_other(self, own: Any, what: str) -> None:
        """
        Raises:
            UserError: `own`, plain data, differs from the first process's.
        """
        if (first := self.same(own)) != json.loads(json.dumps(own)) and not self.is_first:
            names = [name for name in own if own[name] != first.get(name)]
            raise UserError(
                f"process {self.index} has another {what} than the first one ({', '.join(names)} differ): "
                "give all of them the same flags, code and data"
            )

    @contextmanager
    def led(self) -> Iterator[None]:
        """A block that ends the other processes' waiting where this one leaves it by an error."""
        try:
            yield
        except BaseException as error:
            if self.count > 1 and self.is_first:
                self._tell({"end": one_line(error)})
            elif self.count > 1:
                place = f"phases/{self._n_phases + 1}/{self.index}"
                self._client.key_value_set(place, one_line(error), allow_overwrite=True)
            if self.count > 1 and isinstance(error, MachineFault):
                atexit.register(os._exit, error.exit_code)  # before JAX's own end, which waits for the lost processes
            raise

    def signal(self, own: str | None) -> str | None:
        """The name of a signal that this process had; for the first process, of one that any had."""
        if self.count == 1:
            return own
        if not self.is_first:
            if own:
                self._client.key_value_set(f"signals/{self.index}", own, allow_overwrite=True)
            return own
        if not (own or self._heard) and time.monotonic() - self._listened_at >= _LISTEN_S:
            self._listened_at = time.monotonic()
            self._heard = next((name for _, name in self._client.key_value_dir_get("signals")), None)
        return own or self._heard

    def _tell(self, message: dict[str, Any]) -> None:
        self._client.key_value_set(self._place(), json.dumps(message))
        self._count()

    def _hear(self) -> Any:
        message = json.loads(self._client.blocking_key_value_get(self._place(), int(1000 * _ANSWER_S)))
        self._count()
        if "end" in message:
            raise UserError(f"the first of the {self.count} processes has ended: {message['end']}")
        return message["value"]

    def _place(self) -> str:
        return f"told/{self._n_told // _N_KEPT}/{self._n_told}"

    def _count(self) -> None:
        self._n_told += 1
        if self._n_told % _N_KEPT:
            return
        chapter = self._n_told // _N_KEPT - 1
        self._client.wait_at_barrier(f"chapter {chapter}", int(1000 * _ANSWER_S))
        if self.is_first:
            self._client.key_value_delete(f"told/{chapter}")


def join(coordinator_address: str | None = None, n_processes: int | None = None, index: int | None = None) -> Processes:
    """Meets the other processes, before any device is touched, where flags or the launcher say that there are some.

    Args:
        coordinator_address: host and port of the first process; without it Slurm or Open MPI tells all.

    Raises:
        UserError: some of the arguments are missing, or the processes do not meet.
    """
    if coordinator_address is n_processes is index is None:
        if all(int(os.environ.get(name, 1)) < 2 for name in _LAUNCHED):
            return Processes()
    elif coordinator_address is None or n_processes is None or index is None:
        raise UserError("several processes need --coordinator_address, --num_processes and --process_id, all three")
    elif not 0 <= index < n_processes:
        raise UserError(f"--process_id={index} must be from 0 to {n_processes - 1}, one less than --num_processes")
    jax.config.update("jax_enable_preemption_service", False)  # its handler of SIGTERM would replace ours
    # On CPUs those that have compiled a program wait for those that have not: longer than XLA's 30 and 40 s.
    waits = (f"--xla_cpu_collective_{kind}timeout_seconds={_COMPILE_S}" for kind in ("", "call_terminate_"))
    os.environ["XLA_FLAGS"] = " ".join([*waits, os.environ.get("XLA_FLAGS", "")])
    try:
        jax.distributed.initialize(coordinator_address, n_processes, index, shutdown_timeout_seconds=_SHUTDOWN_S)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this trial do not meet: {one_line(error)[:300]}") from error
    from orbax.checkpoint import multihost

    own = Processes(jax.process_index(), jax.process_count(), multihost.get_jax_distributed_client())
    own.connect_devices()
    return own
