"""Learning-rate schedules on the host: optax's take no traced lengths, and a rate passed as an array compiles once.

Both equal the optax schedules that the AlgoPerf reference submissions use, at every step.
"""

import math


def cosine(step: int, *, peak: float, length: int, warmup_factor: float) -> float:
    """Linear warm-up from zero, then a cosine to zero at step `length`."""
    warmup = int(warmup_factor * length)
    if step < warmup:
        return peak * step / warmup
    progress = min((step - warmup) / max(length - warmup, 1), 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def polynomial(
    step: int, *, peak: float, length: int, warmup_factor: float, decay_steps_factor: float, end_factor: float
) -> float:
    """Linear warm-up from zero, then linear decay to `end_factor·peak`, then constant.

    The decay takes `decay_steps_factor` of the steps that the warm-up leaves.
    """
    warmup = int(warmup_factor * length)
    if step < warmup:
        return peak * step / warmup
    progress = min((step - warmup) / max(int((length - warmup) * decay_steps_factor), 1), 1.0)
    return peak * (end_factor + (1 - end_factor) * (1 - progress))
