"""Scores from times to target.

A miss is infinite. Sources: Eschenhagen et al., "Kronecker-Factored Approximate Curvature for Modern Neural Network
Architectures", 2023 (the best point, repeated over seeds); Dahl et al., "Benchmarking Neural Network Training
Algorithms", 2023, section 4 (performance profiles and their score).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

# Performance ratios above this count as infinite. The profile is integrated from 1 up to it. As in AlgoPerf's rules.
MAX_RATIO = 4.0

# The official score is the trapezoid rule on this many even points, as in AlgoPerf's scoring code.
_N_TAUS = 100

# Whether less is better, for AlgoPerf's target metrics.
LOWER_IS_BETTER = {
    **dict.fromkeys(("loss", "ce_loss", "ctc_loss", "l1_loss", "error_rate", "wer", "perplexity", "ppl"), True),
    **dict.fromkeys(("accuracy", "bleu", "mean_average_precision", "ssim"), False),
}

# Easier targets: the share of the target's absolute value by which each is easier. The shares are a choice.
LEVELS = {"target": 0.0, "98 %": 0.02, "95 %": 0.05}

_N_RESAMPLES = 9_999  # of the bootstrap; SciPy's default


def easier(target: float, share: float, lower_is_better: bool) -> float:
    """A target that is easier than this one by a share of its absolute value."""
    return target + abs(target) * (share if lower_is_better else -share)


def first_hit(values: Sequence[float] | np.ndarray, target: float, lower_is_better: bool) -> int | None:
    """Index of the first value at least as good as the target, as in the published rules.

    A value that is not finite never reaches the target, as in `workloads.spec.Target`.
    """
    metrics = np.asarray(values, float)
    is_reached = np.isfinite(metrics) & (metrics <= target if lower_is_better else metrics >= target)
    return int(is_reached.argmax()) if is_reached.any() else None


@dataclass(frozen=True)
class SeedMedian:
    """Median of one cost over seeds; a trial that missed the target counts as larger than any that reached it.

    Attributes:
        values: the hits' costs and then those of the misses, each in ascending order.
        median: a miss in the middle gives the budget that it spent.
        is_lower_bound: whether the median depends on a miss, and so is a lower bound.
    """

    values: tuple[float, ...]
    median: float
    n_misses: int
    is_lower_bound: bool

    @property
    def n(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, values: Sequence[float], missed: Sequence[bool]) -> "SeedMedian":
        """The median of at least one value; `missed` says which values are misses."""
        ordered = sorted(zip(missed, values, strict=True), key=lambda pair: (pair[0], math.isnan(pair[1]), pair[1]))
        middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
        median = statistics.mean(value for _, value in middle)
        values = tuple(value for _, value in ordered)
        return cls(values, median, sum(missed), any(is_miss for is_miss, _ in middle))


def ratio_interval(own: SeedMedian, reference: SeedMedian) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the ratio of two medians, both resampled from a fixed seed.

    In each resample misses come after hits, as in `SeedMedian`, and count as the budget that they spent. None if either
    side has fewer than two values, one of them NaN, or a median that depends on a miss, or if the reference has a value
    that is not positive.
    """
    values = own.values + reference.values
    if own.is_lower_bound or reference.is_lower_bound or any(map(math.isnan, values)):
        return None
    if min(own.n, reference.n) < 2 or min(reference.values) <= 0:
        return None
    result = stats.bootstrap(
        (np.arange(own.n), np.arange(reference.n)),
        lambda x, y, axis: _median_of_ranks(own, x, axis) / _median_of_ranks(reference, y, axis),
        n_resamples=_N_RESAMPLES,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _median_of_ranks(of: SeedMedian, ranks: np.ndarray, axis: int) -> np.ndarray:
    """Medians of resamples of the values of `of`. A resample is given by ranks: indices into `of.values`."""
    n = ranks.shape[axis]
    middle = np.sort(ranks, axis).take([(n - 1) // 2, n // 2], axis)
    return np.asarray(of.values)[middle].mean(axis)


def performance_ratios(times: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """submission -> workload -> its time as a multiple of the workload's best; above `MAX_RATIO` infinite.

    Args:
        times: submission -> workload -> time to target; a workload may be missing or infinite.
    """
    workloads = sorted({workload for own in times.values() for workload in own})
    best = {workload: min(own.get(workload, math.inf) for own in times.values()) for workload in workloads}
    return {
        submission: {workload: _ratio(own.get(workload, math.inf), best[workload]) for workload in workloads}
        for submission, own in times.items()
    }


def _ratio(time: float, best: float) -> float:
    """time / best for times that are not negative; 1 if both are 0."""
    if time == best < math.inf:
        return 1.0
    value = time / best if best > 0 else math.inf
    return value if value <= MAX_RATIO else math.inf  # NaN, the ratio of two misses, is not


def profile(ratios: Mapping[str, float], tau: float, n_workloads: int) -> float:
    """rho(tau): the share of the `n_workloads` workloads on which the ratio is at most tau."""
    return sum(ratio <= tau for ratio in ratios.values()) / n_workloads


def score(ratios: Mapping[str, float], n_workloads: int) -> float:
    """The integral of rho over tau in [1, 4], divided by 3, computed as by the official scorer.

    The scorer uses the trapezoid rule on 100 evenly spaced points. The exact integral of the step function differs by
    up to 1 / 99 for each workload.
    """
    taus = np.linspace(1, MAX_RATIO, _N_TAUS)
    heights = [profile(ratios, tau, n_workloads) for tau in taus]
    return float(np.trapezoid(heights, taus) / (MAX_RATIO - 1))


def speed_up(times: Mapping[str, float], reference: Mapping[str, float]) -> tuple[dict[str, float], float | None]:
    """(workload -> the reference's time / this one's, if both reached the target; the geometric mean of these)."""
    ratios = {
        workload: reference[workload] / time
        for workload, time in times.items()
        if 0 < time < math.inf and 0 < reference.get(workload, math.inf) < math.inf
    }
    return ratios, statistics.geometric_mean(ratios.values()) if ratios else None
