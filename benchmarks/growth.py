"""Growth of a step's time with a model's width, its depth and the number of shared positions of an example."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import matplotlib
from flax import linen as nn

from benchmarks.programs import PROGRAMS, milliseconds, programs
from benchmarks.synthetic import SyntheticImages
from benchmarks.timing import markdown
from submissions.kfac.algoperf import KFAC, KFACMuon
from submissions.kfac.algoperf.curvature import KroneckerAlgorithm
from submissions.kfac.sharing import Sharing

ALGORITHMS: dict[str, KroneckerAlgorithm] = {
    "kfac_expand": KFAC(Sharing.EXPAND),
    "kfac_reduce": KFAC(Sharing.REDUCE),
    "kfac_muon_expand": KFACMuon(Sharing.EXPAND),
    "kfac_muon_reduce": KFACMuon(Sharing.REDUCE),
}
_BATCH_SIZE = 32
_SIZES = {"width": 256, "depth": 2, "positions": 64}


class TokenMLP(nn.Module):
    """[batch, positions, width, 1] -> logits [batch, num_classes]: residual Dense layers at every position, a mean."""

    num_classes: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: float | jax.Array) -> jax.Array:
        del train, dropout_rate
        x = x[..., 0]
        for _ in range(self.depth):
            x = x + nn.gelu(nn.Dense(x.shape[-1])(x))
        return nn.Dense(self.num_classes)(x.mean(1))


class TokenWorkload(SyntheticImages):
    """Random tokens in the shape of images, to time steps."""

    def __init__(self, width: int, depth: int, positions: int):
        super().__init__()
        self.model = TokenMLP(num_classes=10, depth=depth)
        self.image_shape = (positions, width, 1)


Cost = Mapping[str, Mapping[str, float]]  # algorithm -> one of PROGRAMS -> milliseconds


def measure(axis: str, sizes: Sequence[int], *, n_rounds: int, seed: int) -> dict[int, Cost]:
    """Size along the axis ("width", "depth" or "positions") -> each algorithm's programs."""
    return {size: _cost(**(_SIZES | {axis: size}), n_rounds=n_rounds, seed=seed) for size in sizes}


def table(axis: str, costs: Mapping[int, Cost]) -> str:
    rows = [
        [size, algorithm, *(steps[name] for name in PROGRAMS)]
        for size, cost in costs.items()
        for algorithm, steps in cost.items()
    ]
    return markdown([axis, "submission", *(f"{name} (ms)" for name in PROGRAMS)], rows)


def plot(by_axis: Mapping[str, Mapping[int, Cost]], path: Path, title: str) -> None:
    """Plots a panel for each axis and program, with a line for each algorithm and for SGD, on log scales."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    sgd, *shown = PROGRAMS
    figure, panels = pyplot.subplots(
        len(by_axis), len(shown), figsize=(4 * len(shown), 3.2 * len(by_axis)), sharex="row", squeeze=False
    )
    looks = [("C0", "-", "o"), ("C0", "--", "s"), ("C1", "-", "^"), ("C1", "--", "v")]
    styles = dict(zip(ALGORITHMS, looks, strict=True))
    for row, (axis, costs) in zip(panels, by_axis.items(), strict=True):
        for panel, kind in zip(row, shown, strict=True):
            for algorithm, (color, line, marker) in styles.items():
                times = [cost[algorithm][kind] for cost in costs.values()]
                panel.plot(list(costs), times, color=color, linestyle=line, marker=marker, label=algorithm)
            base = [statistics.median(steps[sgd] for steps in cost.values()) for cost in costs.values()]
            panel.plot(list(costs), base, color="0.5", linestyle=":", label=sgd)
            panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms", title=f"{kind}, by {axis}")
            panel.set_xticks(list(costs), [str(size) for size in costs])
            panel.minorticks_off()
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(title)
    figure.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _cost(*, width: int, depth: int, positions: int, n_rounds: int, seed: int) -> Cost:
    workload = TokenWorkload(width, depth, positions)
    batch = next(workload.synthetic_queue(seed, _BATCH_SIZE))
    return {
        name: milliseconds(programs(workload, algorithm, batch, seed), n_rounds=n_rounds)
        for name, algorithm in ALGORITHMS.items()
    }
