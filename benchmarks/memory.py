"""Device memory of training the full-size workloads, as the compiler counts it. Nothing is run."""

from collections.abc import Sequence

from benchmarks import programs
from benchmarks.timing import markdown
from submissions.kfac.algoperf.curvature import KroneckerAlgorithm
from workloads import registry


def table(cases: Sequence[tuple[str, int, int]], algorithms: dict[str, KroneckerAlgorithm]) -> str:
    """A row for each (workload, batch size, micro-batches) and algorithm: GiB of its greater program."""
    rows = []
    for name, batch_size, micro_batches in cases:
        workload = registry.load(name)
        batch = next(workload.synthetic_queue(0, batch_size))
        for algorithm_name, algorithm in algorithms.items():
            n_bytes = programs.memory(workload, algorithm, batch, seed=0, micro_batches=micro_batches)
            rows.append([name, batch_size, micro_batches, algorithm_name, n_bytes / 2**30])
    return markdown(["workload", "batch", "micro-batches", "submission", "memory (GiB)"], rows)
