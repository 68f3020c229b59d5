"""Times to target made into scores: numbers in, numbers out.

A miss is infinite here, and only here. Sources: Eschenhagen et al., "Kronecker-Factored Approximate Curvature for
Modern Neural Network Architectures", 2023 (best point, mean and standard error over seeds); Dahl et al., "Benchmarking
Neural Network Training Algorithms", 2023, section 4 (median over studies, performance profiles, their score).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

# Performance ratios above this count as infinite, and the profile is integrated up to it.
MAX_RATIO = 4.0

# Base workloads of the official benchmark, the denominator of its score.
OFFICIAL_WORKLOADS = (
    "criteo1tb",
    "fastmri",
    "imagenet_resnet",
    "imagenet_vit",
    "librispeech_conformer",
    "librispeech_deepspeech",
    "ogbg",
    "wmt",
)

# AlgoPerf's target metrics.
_LOWER_IS_BETTER = ("loss", "ce_loss", "ctc_loss", "l1_loss", "error_rate", "wer")
_HIGHER_IS_BETTER = ("accuracy", "bleu", "mean_average_precision", "ssim")

# Easier targets, as what is given up of the target's size.
LEVELS = {"target": 0.0, "98 %": 0.02, "95 %": 0.05}

_N_RESAMPLES = 9_999


def is_known(metric: str) -> bool:
    """Whether it is told of a metric which way is better."""
    return metric in _LOWER_IS_BETTER + _HIGHER_IS_BETTER


def lower_is_better(metric: str) -> bool:
    """Of a metric that is known."""
    return metric in _LOWER_IS_BETTER


def easier(target: float, given_up: float, metric: str) -> float:
    """A target that gives up a part of this one's size, in the direction in which the metric is worse."""
    return target + abs(target) * (given_up if lower_is_better(metric) else -given_up)


def first_hit(values: Sequence[float], target: float, metric: str) -> int | None:
    """Index of the first value at least as good as the target, as the published rules have it; NaN never is."""
    at_hand = np.asarray(values, float)
    reached = at_hand <= target if lower_is_better(metric) else at_hand >= target
    return int(reached.argmax()) if reached.any() else None


@dataclass(frozen=True)
class Spread:
    """Of one number over seeds.

    Attributes:
        mean: a miss counts as the budget, so that with `n_misses` above zero the mean is a lower bound.
        standard_error: of the mean; None of fewer than two values.
    """

    mean: float
    standard_error: float | None
    n: int
    n_misses: int

    @classmethod
    def of(cls, values: Sequence[float], n_misses: int) -> "Spread":
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(statistics.mean(values), error, len(values), n_misses)


def ratio_interval(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of mean(values) / mean(reference), both drawn again, from a fixed seed.

    None with fewer than two values on either side.
    """
    if min(len(values), len(reference)) < 2:
        return None
    found = stats.bootstrap(
        (np.asarray(values, float), np.asarray(reference, float)),
        lambda x, y, axis: x.mean(axis) / y.mean(axis),
        n_resamples=_N_RESAMPLES,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def median_of_best(studies: Mapping[int, Sequence[float]]) -> float:
    """AlgoPerf's time of a submission on a workload: the median over studies of the best trial, a miss being infinite.

    Args:
        studies: study -> its trials' times to target, `math.inf` for a miss.
    """
    return statistics.median(min(times, default=math.inf) for times in studies.values())


def performance_ratios(times: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """submission -> workload -> its time as a multiple of the workload's best; above `MAX_RATIO` infinite.

    Args:
        times: submission -> workload -> time to target; a workload may be missing or infinite.
    """
    workloads = sorted({workload for own in times.values() for workload in own})
    ratios: dict[str, dict[str, float]] = {}
    for submission, own in times.items():
        ratios[submission] = {}
        for workload in workloads:
            best = min(other.get(workload, math.inf) for other in times.values())
            ratio = own.get(workload, math.inf) / best if math.isfinite(best) else math.inf
            ratios[submission][workload] = ratio if ratio <= MAX_RATIO else math.inf
    return ratios


def profile(ratios: Mapping[str, float], tau: float, n_workloads: int) -> float:
    """rho(tau): the part of `n_workloads` workloads on which the ratio is at most tau."""
    return sum(ratio <= tau for ratio in ratios.values()) / n_workloads


def score(ratios: Mapping[str, float], n_workloads: int) -> float:
    """The integral of rho over tau in [1, 4], divided by 3: from 0 to 1, which is to be best everywhere.

    rho is a step function, to which a workload with ratio r adds 1 / n_workloads from r on.
    """
    return sum(max(0.0, MAX_RATIO - ratio) for ratio in ratios.values()) / (n_workloads * (MAX_RATIO - 1))


def speed_up(times: Mapping[str, float], reference: Mapping[str, float]) -> tuple[dict[str, float], float | None]:
    """workload -> the reference's time over this one's, where both reached the target; and their geometric mean."""
    each = {
        workload: reference[workload] / time
        for workload, time in times.items()
        if math.isfinite(time) and math.isfinite(reference.get(workload, math.inf))
    }
    return each, statistics.geometric_mean(each.values()) if each else None
