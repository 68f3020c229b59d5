"""Counted work of whole training runs: floating-point operations and memory traffic of the compiled steps.

The compiler counts them from its program, so nothing is run and no machine's speed enters. Library calls (Cholesky,
`eigh`) count as nothing there; with curvature that is refreshed ever more rarely they are few in a run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import jax

from benchmarks.programs import work
from benchmarks.timing import markdown
from tuning import search_space
from tuning.submission import Submission
from workloads import registry

_COUNTED = {"flops": "operations (GFLOP)", "bytes accessed": "memory traffic (GB)"}


def table(workload_name: str, batch_size: int, submissions: Sequence[Submission], seed: int) -> str:
    """A row for each submission: the mean over a run of the workload's own length, and its ratio to the first row."""
    means = {submission.name: _run_means(workload_name, batch_size, submission, seed) for submission in submissions}
    first, rows = means[submissions[0].name], []
    for name, own in means.items():
        cells = [cell for key in _COUNTED for cell in (own[key] / 1e9, own[key] / first[key])]
        rows.append([name, *cells])
    columns = [column for title in _COUNTED.values() for column in (title, "ratio")]
    return markdown(["submission", *columns], rows)


def _run_means(workload_name: str, batch_size: int, submission: Submission, seed: int) -> Mapping[str, float]:
    """Name of a count (of `_COUNTED`) -> its mean over the steps of a whole run."""
    workload, key = registry.load(workload_name), jax.random.PRNGKey(seed)
    point = search_space.points(search_space.read(submission.search_space_file), 1, seed)[0]
    batch = next(workload.synthetic_queue(key, batch_size))
    params, model_state = workload.init_model_fn(key)
    state, steps = submission.init_optimizer_state(workload, params, model_state, point, key)
    counts = Counter(steps.variants(point, workload.step_hint))
    means = dict.fromkeys(_COUNTED, 0.0)
    for variant, n in counts.items():
        lowered = steps.lower(variant, point, state, params, model_state, batch, key)
        counted = work(lowered.compile())
        for name in _COUNTED:
            means[name] += counted[name] * n / workload.step_hint
    return means
