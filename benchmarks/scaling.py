"""Weak scaling from the compiled program: what devices send each other in a step, and how a refresh is spread.

Nothing is run, so that simulated devices do. Their number is set once per process; each number has a process of its
own, which reads "WORKLOAD BATCH_SIZE SEED SUBMISSION..." from its arguments and prints JSON.
"""

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

from benchmarks.timing import markdown
from tuning import search_space, submission
from tuning.errors import UserError
from workloads import registry

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
    """Of one device's program.

    Attributes:
        collective_bytes: of the results of its collectives.
        refresh_work: Σ n³ over the matrices `[n, n]` that it factorises.
    """

    collective_bytes: int
    refresh_work: int


def counts(program: str) -> Counts:
    """Of an optimised program's text, loops as often as they turn."""
    computations, entry = _computations(program)
    times: dict[str, int] = defaultdict(int)
    times[entry] = 1
    n_bytes = work = 0
    for name in _callers_first(computations, entry):
        for line in computations[name]:
            kind, operation = _INSTRUCTION.match(line).groups()  # type: ignore[union-attr]
            trips = _TRIPS.search(line)
            for called in _called(line):
                times[called] += times[name] * (int(trips[1]) if trips and operation == "while" else 1)
            if operation.removesuffix("-start") in _COLLECTIVES:
                n_bytes += times[name] * sum(math.prod(shape) * size for size, shape in _arrays(kind))
            elif _FACTORISATIONS.search(line):
                _, shape = next(_arrays(kind))
                work += times[name] * math.prod(shape) * shape[-1]
    return Counts(n_bytes, work)


def table(workload: str, batch_size: int, submissions: Sequence[str], seed: int) -> str:
    """A row for each submission, kind of step and number of devices, with `batch_size` examples on each device.

    Raises:
        UserError: a submission or the workload does not compile.
    """
    found = {n: _in_a_process(n, [workload, str(n * batch_size), str(seed), *submissions]) for n in N_DEVICES}
    rows = []
    for name in submissions:
        for variant in found[1][name]:
            alone = found[1][name][variant]
            for n in N_DEVICES:
                own = found[n][name][variant]
                share = own["refresh_work"] / alone["refresh_work"] if alone["refresh_work"] else None
                kind = "refresh" if alone["refresh_work"] else "plain"
                sent = [own["collective_bytes"] / 1e6, own["gradient_bytes"] / 1e6 if n > 1 else 0.0]
                rows.append([name, kind, n, *sent, *(("-", "-") if share is None else (share, 1 / n))])
    titles = ["submission", "step", "devices", "collectives (MB)", "gradient (MB)", "share of refresh", "ideal"]
    return markdown(titles, rows)


def _in_a_process(n_devices: int, arguments: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
    own = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={n_devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.scaling", *arguments]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, env=os.environ | own, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the programs for {n_devices} devices do not compile: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout)


def _of_each_step(workload_name: str, batch_size: int, seed: int, name: str) -> dict[str, dict[str, int]]:
    workload, key, chosen = (
        registry.load(workload_name),
        jax.random.PRNGKey(seed),
        submission.load(f"submissions/{name}"),
    )
    point = search_space.points(search_space.read(chosen.search_space_file), 1, seed)[0]
    batch = next(workload.synthetic_queue(key, batch_size))
    params, model_state = workload.init_model_fn(key)
    state, steps = chosen.init_optimizer_state(workload, params, model_state, point, key)
    gradient_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    found = {}
    for variant in dict.fromkeys(steps.variants(point, workload.step_hint)):
        lowered = steps.lower(variant, point, state, params, model_state, batch, key)
        # Only the code that would be run is made quickly; what is counted is decided before.
        text = lowered.compile({"xla_backend_optimization_level": 0}).as_text()
        found[str(variant)] = counts(text)._asdict() | {"gradient_bytes": gradient_bytes}
    return found


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """(name -> lines of its instructions, name of the first one to run)"""
    computations: dict[str, list[str]] = {}
    entry, own = "", list[str]()
    for line in program.splitlines():
        if header := _HEADER.match(line):
            own = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif _INSTRUCTION.match(line):
            own.append(line)
    return computations, entry


def _called(line: str) -> list[str]:
    branches = _BRANCHES.search(line)
    names = _CALLED.findall(line) + (branches[1].split(",") if branches else [])
    return [name.strip().lstrip("%") for name in names]


def _callers_first(computations: dict[str, list[str]], entry: str) -> list[str]:
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order or name not in computations:
            return
        for line in computations[name]:
            for called in _called(line):
                visit(called)
        order.append(name)

    visit(entry)
    return order[::-1]


def _arrays(kind: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(bytes of an entry, shape) of each array of an instruction's result."""
    for name, shape in _ARRAY.findall(kind):
        bits = 8 if name == "pred" else int(re.sub(r"^[a-z]+", "", name))
        yield bits // 8, tuple(int(length) for length in shape.split(",") if length)


def main(workload: str, batch_size: str, seed: str, *submissions: str) -> None:
    print(json.dumps({name: _of_each_step(workload, int(batch_size), int(seed), name) for name in submissions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
