"""Work of whole training runs: floating-point operations and memory traffic of the compiled programs.

The compiler counts them in its program. So nothing is run, and the result does not depend on a machine's speed. The
compiler does not count library calls (Cholesky, `eigh`), but refreshes become rare, so that a run has few of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks.programs import work
from benchmarks.timing import markdown
from tuning import search_space
from tuning.submission import Submission
from workloads import registry

_COUNTED = {"flops": "operations (GFLOP)", "bytes accessed": "memory traffic (GB)"}


def table(workload_name: str, batch_size: int, submissions: Sequence[Submission], seed: int) -> str:
    """A row for each submission: the mean over a run of the workload's length, and its ratio to the first row."""
    means = {submission.name: _run_means(workload_name, batch_size, submission, seed) for submission in submissions}
    first, rows = means[submissions[0].name], []
    for name, mean in means.items():
        cells = [cell for key in _COUNTED for cell in (mean[key] / 1e9, mean[key] / first[key])]
        rows.append([name, *cells])
    columns = [column for title in _COUNTED.values() for column in (title, "ratio")]
    return markdown(["submission", *columns], rows)


def _run_means(workload_name: str, batch_size: int, submission: Submission, seed: int) -> Mapping[str, float]:
    """Key of `_COUNTED` -> mean over the steps of a whole run."""
    _, n_runs, lowered = lowered_programs(workload_name, batch_size, submission, seed)
    means = dict.fromkeys(_COUNTED, 0.0)
    for kind, program in lowered.items():
        counts = work(program.compile())
        for name in _COUNTED:
            means[name] += counts[name] * n_runs[kind] / n_runs["step"]
    return means


def lowered_programs(
    workload_name: str, batch_size: int, submission: Submission, seed: int
) -> tuple[Any, dict[str, int], dict[str, Any]]:
    """(parameters, "step" or "refresh" -> how often a run of the workload's length runs it, and before compilation)."""
    workload, key = registry.load(workload_name), jax.random.PRNGKey(seed)
    (point,) = search_space.points(search_space.read(submission.search_space_file), 1, seed)
    h = search_space.as_hyperparameters(point)
    batch = next(workload.synthetic_queue(key, batch_size))
    params, model_state = workload.init_model_fn(key)
    state, programs = submission.init_optimizer_state(workload, params, model_state, h, key)
    n_refreshes = sum(programs.are_refreshes_due(h, workload.step_hint))
    n_runs = {"step": workload.step_hint} | ({"refresh": n_refreshes} if n_refreshes else {})
    lowered = {kind: programs.lower(kind, h, state, params, model_state, batch, key) for kind in n_runs}
    return params, n_runs, lowered
