"""Weak scaling from compiled programs: the bytes that devices send in a step, and each device's share of a refresh.

Nothing is run, so that simulated devices suffice. As a process has a fixed number of devices, each number of devices is
compiled in a process of its own, with the arguments "WORKLOAD BATCH_SIZE SEED SUBMISSION...", which prints JSON.
"""

import graphlib
import json
import math
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks.operations import lowered_programs
from benchmarks.timing import markdown
from tuning import submission
from tuning.errors import UserError

N_DEVICES = (1, 2, 4, 8)

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_FACTORISATIONS = re.compile(r'custom_call_target="(lapack_[sd](?:potrf|syevd|geqrf)\w*)"')
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?[\w.\-]+ = (.+?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|calls|to_apply|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Counts(NamedTuple):
    """Counts of one device's program.

    Attributes:
        collective_bytes: bytes of the results of its collectives.
        refresh_work: Σ n³ over the matrices `[n, n]` that it factorises.
    """

    collective_bytes: int
    refresh_work: int


def counts(program: str) -> Counts:
    """Counts in an optimised program's text; the body of a loop counts once per iteration."""
    computations, entry = _computations(program)
    callees = {
        name: {called for line in lines for called in _called(line) if called in computations}
        for name, lines in computations.items()
    }
    n_calls: dict[str, int] = defaultdict(int)
    n_calls[entry] = 1
    n_bytes = work = 0
    for name in reversed([*graphlib.TopologicalSorter(callees).static_order()]):  # callers first
        for line in computations[name]:
            kind, operation = _INSTRUCTION.match(line).groups()  # type: ignore[union-attr]
            trips = _TRIPS.search(line)
            for called in _called(line):
                n_calls[called] += n_calls[name] * (int(trips[1]) if trips and operation == "while" else 1)
            if operation.removesuffix("-start") in _COLLECTIVES:
                n_bytes += n_calls[name] * sum(math.prod(shape) * size for size, shape in _arrays(kind))
            elif _FACTORISATIONS.search(line):
                _, shape = next(_arrays(kind))
                work += n_calls[name] * math.prod(shape) * shape[-1]
    return Counts(n_bytes, work)


def table(workload: str, batch_size: int, submissions: Sequence[str], seed: int) -> str:
    """A row for each submission, program and number of devices, with `batch_size` examples on each device.

    Raises:
        UserError: a submission or the workload does not compile.
    """
    counted = {n: _in_a_process(n, [workload, str(n * batch_size), str(seed), *submissions]) for n in N_DEVICES}
    rows = []
    for name in submissions:
        for kind, single in counted[1][name].items():
            for n in N_DEVICES:
                several = counted[n][name][kind]
                share = several["refresh_work"] / single["refresh_work"] if single["refresh_work"] else None
                sent = [several["collective_bytes"] / 1e6, several["gradient_bytes"] / 1e6 if n > 1 else 0.0]
                rows.append([name, kind, n, *sent, *(("-", "-") if share is None else (share, 1 / n))])
    titles = ["submission", "program", "devices", "collectives (MB)", "gradient (MB)", "share of refresh", "ideal"]
    return markdown(titles, rows)


def _in_a_process(n_devices: int, arguments: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
    variables = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={n_devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.scaling", *arguments]
    root = Path(__file__).resolve().parents[1]
    process = subprocess.run(command, env=os.environ | variables, cwd=root, capture_output=True, text=True)
    if process.returncode:
        raise UserError(f"the programs for {n_devices} devices do not compile: {process.stderr.strip()[-300:]}")
    return json.loads(process.stdout)


def _of_each_program(workload_name: str, batch_size: int, seed: int, name: str) -> dict[str, dict[str, int]]:
    lowered = lowered_programs(workload_name, batch_size, submission.load(submission.submission_path(name)), seed)
    gradient_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(lowered.params))
    by_kind = {}
    for kind, program in lowered.programs.items():
        # Machine code is not optimised, since it is not run. The counts do not depend on it.
        text = program.compile({"xla_backend_optimization_level": 0}).as_text()
        by_kind[kind] = counts(text)._asdict() | {"gradient_bytes": gradient_bytes}
    return by_kind


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """(name of a computation -> lines of its instructions, name of the entry computation)"""
    computations: dict[str, list[str]] = {}
    entry, instructions = "", list[str]()
    for line in program.splitlines():
        if header := _HEADER.match(line):
            instructions = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif _INSTRUCTION.match(line):
            instructions.append(line)
    return computations, entry


def _called(line: str) -> list[str]:
    branches = _BRANCHES.search(line)
    names = _CALLED.findall(line) + (branches[1].split(",") if branches else [])
    return [name.strip().lstrip("%") for name in names]


def _arrays(kind: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(bytes of an entry, shape) of each array of an instruction's result."""
    for name, shape in _ARRAY.findall(kind):
        bits = 8 if name == "pred" else int(re.sub(r"^[a-z]+", "", name))
        yield bits // 8, tuple(int(length) for length in shape.split(",") if length)


def main(workload: str, batch_size: str, seed: str, *submissions: str) -> None:
    print(json.dumps({name: _of_each_program(workload, int(batch_size), int(seed), name) for name in submissions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
