"""What several processes of a trial tell each other, with a store in place of JAX's coordination service."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tuning import processes as module
from tuning.errors import UserError
from tuning.processes import Processes, join


class Store:
    """The coordination service's methods that are used, for threads."""

    def __init__(self, n):
        self.values, self.changed, self.barrier = {}, threading.Condition(), threading.Barrier(n)

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            assert allow_overwrite or key not in self.values, key
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, timeout_ms):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, 10), key
            return self.values[key]

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.values.items() if key.startswith(f"{folder}/")]

    def key_value_delete(self, key):
        with self.changed:
            self.values = {k: v for k, v in self.values.items() if k != key and not k.startswith(f"{key}/")}

    def wait_at_barrier(self, name, timeout_ms):
        self.barrier.wait(10)


def each(n, work):
    """[what `work(processes)` gave or raised in each of n processes]"""
    store, results = Store(n), [None] * n

    def one(index):
        try:
            results[index] = work(Processes(index, n, store))
        except UserError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results, store


def test_alone_nothing_is_told():
    alone = Processes()
    with alone.telling_others_of_errors(), alone.finished_by_all():
        assert alone.is_first and alone.from_first([1.5, None]) == [1.5, None] and alone.signal("SIGTERM") == "SIGTERM"


def test_the_first_one_s_values_count_and_what_all_have_read_goes(monkeypatch):
    monkeypatch.setattr(module, "_MESSAGES_PER_BATCH", 4)
    results, store = each(3, lambda own: [own.from_first(100 * own.index + i) for i in range(10)])
    assert results == [list(range(10))] * 3
    assert len(store.values) == 2


def test_a_failure_of_one_in_a_common_phase_is_one_of_all():
    def work(own):
        with own.finished_by_all():
            if own.index == 1:
                raise UserError("no data here")
        return "done"

    assert each(3, work)[0] == ["process 1 of 3: no data here", "no data here", "process 1 of 3: no data here"]


def test_a_failure_before_the_common_phase_is_heard_in_it():
    def work(own):
        with own.telling_others_of_errors():
            if own.index == 1:
                raise UserError("no such workload")
            with own.finished_by_all():
                pass

    assert each(2, work)[0] == ["process 1 of 2: no such workload", "no such workload"]


def test_the_end_of_the_first_ends_the_others():
    def work(own):
        with own.telling_others_of_errors():
            own.from_first(1)
            if own.is_first:
                raise UserError("the disk is full")
            own.from_first(2)

    told = "the first of the 2 processes has ended: the disk is full"
    assert each(2, work)[0] == ["the disk is full", told]


def test_a_signal_of_any_reaches_the_first(monkeypatch):
    monkeypatch.setattr(module, "_LISTEN_S", 0.0)

    def work(own):
        had = own.signal("SIGUSR1" if own.index == 2 else None)
        with own.finished_by_all():
            pass
        return had or own.signal(None)

    assert each(3, work)[0] == ["SIGUSR1", None, "SIGUSR1"]


def test_another_trial_is_refused():
    def work(own):
        own.check_same_in_all({"rng_seed": own.index, "workload": "b3db"}, "trial")

    first, second = each(2, work)[0]
    assert first is None
    assert second.startswith("process 1 has another trial than the first one (rng_seed differ)")


def test_half_of_the_flags_is_refused(monkeypatch):
    with pytest.raises(UserError, match="all three"):
        join("localhost:1", 2, None)
    with pytest.raises(UserError, match="--process_id=2 must be from 0 to 1"):
        join("localhost:1", 2, 2)
    for name, *_ in module._LAUNCHED:
        monkeypatch.setenv(name, "1")
    assert join().count == 1
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert module._launcher()[0] == "SLURM_STEP_NUM_TASKS"  # srun's, which may set both
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")  # of an mpirun's own helpers
    with pytest.raises(
        UserError, match="launcher started 2 processes, but set no address .* --coordinator_address=HOST"
    ):
        join()


@pytest.mark.parametrize(
    ("launcher", "index", "on_host", "visible", "asked_for", "own"),
    [
        ("SLURM", 3, "4(x2)", "0", "1", [0]),  # each sees its own alone
        ("SLURM", 1, "2", "0,1", "v100:2", [0, 1]),
        ("SLURM", 1, "2", "4,5,6,7", "2", [2, 3]),  # all see those of the host
        ("SLURM", 3, "4(x2)", "0,1,2,3", None, [3]),
        ("SLURM", 0, "1(x2)", "0,1,2,3", None, [0, 1, 2, 3]),  # one process has them all
        ("OMPI", 1, "2", "0,1,2,3", None, [2, 3]),
        ("OMPI", 1, "2", "", None, None),  # on CPUs
        (None, None, None, "0,1", None, None),
    ],
)
def test_a_launched_process_uses_its_share_of_the_devices(
    monkeypatch, launcher, index, on_host, visible, asked_for, own
):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)
    names = {"SLURM": module._ON_HOST[2], "OMPI": module._ON_HOST[0], None: ()}[launcher]
    for name, value in zip(names, (index, on_host), strict=False):
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if asked_for:
        monkeypatch.setenv("SLURM_GPUS_PER_TASK", asked_for)
    assert module.own_cuda_devices() == own


_MEET = """
import sys
import jax
from tuning import processes
own = processes.join(*sys.argv[1:])
print(own.index, own.count, own.from_first(7 + own.index), jax.config.read("jax_cuda_visible_devices"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["slurm", "ompi", "pmi"])
def test_a_launcher_s_environment_tells_each_process_its_place(launcher):
    port = 61440 + os.getpid() % 4096  # JAX makes the port of the job's number in this way

    def environment(index):
        if launcher == "slurm":
            own = {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
            own |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
            own |= {"SLURM_STEP_TASKS_PER_NODE": "2"}
        elif launcher == "pmi":
            own = {"PMI_SIZE": "2", "PMI_RANK": str(index), "MPI_LOCALRANKID": str(index), "MPI_LOCALNRANKS": "2"}
        else:
            own = {"OMPI_MCA_orte_hnp_uri": f"{port * 4096}.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2"}
            own |= {"OMPI_COMM_WORLD_RANK": str(index), "OMPI_COMM_WORLD_LOCAL_RANK": str(index)}
            own |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
        others = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
        return others | {"CUDA_VISIBLE_DEVICES": "0"} | own

    root = Path(__file__).parents[2]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", _MEET, *([f"127.0.0.1:{port}"] if launcher == "pmi" else [])]
    started = [subprocess.Popen(command, cwd=root, env=environment(index), **pipes) for index in range(2)]
    said = [process.communicate(timeout=600) for process in started]
    assert [out.splitlines()[-1:] for out, _ in said] == [["0 2 7 0"], ["1 2 7 0"]], said
