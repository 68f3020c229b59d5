"""Work of whole training runs: floating-point operations and memory traffic of the compiled steps.

The compiler counts them in its program. So nothing is run, and the result does not depend on a machine's speed. The
compiler does not count library calls (Cholesky, `eigh`), but refreshes become rare, so that a run has few of them.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
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
    _, n_steps, lowered = lowered_steps(workload_name, batch_size, submission, seed)
    means = dict.fromkeys(_COUNTED, 0.0)
    for variant, program in lowered.items():
        counts = work(program.compile())
        for name in _COUNTED:
            means[name] += counts[name] * n_steps[variant] / n_steps.total()
    return means


def lowered_steps(
    workload_name: str, batch_size: int, submission: Submission, seed: int
) -> tuple[Any, Counter[Hashable], dict[Hashable, Any]]:
    """(parameters, variant of the step -> number of its steps in a run, variant -> its program before compilation)."""
    workload, key = registry.load(workload_name), jax.random.PRNGKey(seed)
    point = search_space.points(search_space.read(submission.search_space_file), 1, seed)[0]
    batch = next(workload.synthetic_queue(key, batch_size))
    params, model_state = workload.init_model_fn(key)
    state, steps = submission.init_optimizer_state(workload, params, model_state, point, key)
    n_steps = Counter(steps.variants(point, workload.step_hint))
    programs = {variant: steps.lower(variant, point, state, params, model_state, batch, key) for variant in n_steps}
    return params, n_steps, programs
