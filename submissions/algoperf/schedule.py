"""Learning-rate schedules, computed on the host.

optax's schedules take no traced lengths. A learning rate that is passed as an array needs only one compilation.

Both equal the optax schedules that the AlgoPerf reference submissions use, at every step.
"""

import math
from typing import Any


def cosine(step: int, length: int, h: Any) -> float:
    """Linear warm-up from zero to `h.learning_rate`, then a cosine to zero at step `length`."""
    warmup = int(h.warmup_factor * length)
    if step < warmup:
        return float(h.learning_rate * step / warmup)
    progress = min((step - warmup) / max(length - warmup, 1), 1.0)
    return float(h.learning_rate * 0.5 * (1 + math.cos(math.pi * progress)))


def polynomial(step: int, length: int, h: Any) -> float:
    """Linear warm-up from zero to `h.learning_rate`, then linear decay to `h.end_factor` of it, then constant.

    The decay takes `h.decay_steps_factor` of the steps that the warm-up leaves; without such steps there is no decay.
    """
    warmup = int(h.warmup_factor * length)
    if step < warmup:
        return float(h.learning_rate * step / warmup)
    n_decay = int((length - warmup) * h.decay_steps_factor)
    progress = min((step - warmup) / n_decay, 1.0) if n_decay > 0 else 0.0
    return float(h.learning_rate * (h.end_factor + (1 - h.end_factor) * (1 - progress)))
