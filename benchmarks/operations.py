"""Work of whole training runs: floating-point operations and memory traffic of the compiled programs.

The compiler counts them in its program. So nothing is run, and the counts do not depend on a machine's speed. The
compiler does not count library calls (Cholesky, `eigh`), but refreshes become rare, so that a run has few of them.
The seconds of compilation are measured beside them, since AlgoPerf's clock counts them.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks.programs import work
from benchmarks.timing import markdown
from tuning import search_space
from tuning.submission import Submission
from workloads import registry

_COUNTED = {"flops": "operations (GFLOP)", "bytes accessed": "memory traffic (GB)"}
_SECONDS = "compilation (s)"


class Lowered(NamedTuple):
    """A submission's programs before compilation: "step" and, if the submission uses curvature, "refresh".

    Attributes:
        n_runs: how often a run of the workload's length runs each program.
        seconds: to make the optimizer's state, and to trace and lower the programs.
    """

    params: Any
    n_runs: dict[str, int]
    programs: dict[str, Any]
    seconds: float


def table(workload_name: str, batch_size: int, submissions: Sequence[Submission], seed: int) -> str:
    """A row for each submission: the mean over a run of the workload's length, and its ratio to the first row."""
    lowered_programs(workload_name, batch_size, submissions[0], seed)  # fills JAX's caches, for equal conditions
    means = {submission.name: _run_means(workload_name, batch_size, submission, seed) for submission in submissions}
    first, rows = means[submissions[0].name], []
    for name, mean in means.items():
        cells = [cell for key in _COUNTED for cell in (mean[key] / 1e9, mean[key] / first[key])]
        rows.append([name, *cells, mean[_SECONDS], mean[_SECONDS] / first[_SECONDS]])
    columns = [column for title in (*_COUNTED.values(), _SECONDS) for column in (title, "ratio")]
    return markdown(["submission", *columns], rows)


def _run_means(workload_name: str, batch_size: int, submission: Submission, seed: int) -> Mapping[str, float]:
    """Key of `_COUNTED` -> mean over the steps of a whole run; and `_SECONDS`."""
    lowered = lowered_programs(workload_name, batch_size, submission, seed)
    means = dict.fromkeys(_COUNTED, 0.0) | {_SECONDS: lowered.seconds}
    for kind, program in lowered.programs.items():
        began = time.perf_counter()
        compiled = program.compile()
        means[_SECONDS] += time.perf_counter() - began
        counts = work(compiled)
        for name in _COUNTED:
            means[name] += counts[name] * lowered.n_runs[kind] / lowered.n_runs["step"]
    return means


def lowered_programs(workload_name: str, batch_size: int, submission: Submission, seed: int) -> Lowered:
    """The programs of a submission at the first point of its search space."""
    workload, key = registry.load(workload_name), jax.random.PRNGKey(seed)
    (point,) = search_space.points(search_space.read(submission.search_space_file), 1, seed)
    h = search_space.as_hyperparameters(point)
    batch = next(workload.synthetic_queue(key, batch_size))
    params, model_state = workload.init_model_fn(key)
    began = time.perf_counter()
    state, programs = submission.init_optimizer_state(workload, params, model_state, h, key)
    n_refreshes = sum(programs.are_refreshes_due(h, workload.step_hint))
    n_runs = {"step": workload.step_hint} | ({"refresh": n_refreshes} if n_refreshes else {})
    lowered = {kind: programs.lower(kind, h, state, params, model_state, batch, key) for kind in n_runs}
    return Lowered(params, n_runs, lowered, time.perf_counter() - began)
