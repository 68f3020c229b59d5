"""Device memory of training the full-size workloads, as the compiler counts it. Nothing is run."""

from collections.abc import Sequence

from benchmarks import programs
from benchmarks.timing import markdown
from submissions.kfac.algoperf import KFAC, KFACMuon
from submissions.kfac.algoperf.curvature import KroneckerAlgorithm
from submissions.kfac.sharing import Sharing
from workloads import registry

_ALGORITHMS: dict[str, KroneckerAlgorithm] = {
    "kfac_expand": KFAC(Sharing.EXPAND),
    "kfac_reduce": KFAC(Sharing.REDUCE),
    "kfac_muon_expand": KFACMuon(Sharing.EXPAND),
    "kfac_muon_reduce": KFACMuon(Sharing.REDUCE),
}


def table(cases: Sequence[tuple[str, int, int]]) -> str:
    """A row for each (workload, batch size, micro-batches) and algorithm: GiB of its greater program."""
    rows = []
    for name, batch_size, micro_batches in cases:
        workload = registry.load(name)
        batch = next(workload.synthetic_queue(0, batch_size))
        for algorithm_name, algorithm in _ALGORITHMS.items():
            n_bytes = programs.memory(workload, algorithm, batch, seed=0, micro_batches=micro_batches)
            rows.append([name, batch_size, micro_batches, algorithm_name, n_bytes / 2**30])
    return markdown(["workload", "batch", "micro-batches", "submission", "memory (GiB)"], rows)
