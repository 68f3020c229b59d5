"""Random keys by purpose, folded from (seed, trial, stream, step), so that no stream affects another."""

from enum import IntEnum

import jax
import numpy as np


class Stream(IntEnum):
    """The purpose of a key. The numbers are part of every result: never renumber, only append."""

    DATA = 0
    MODEL_INIT = 1
    OPTIMIZER_INIT = 2
    DATA_SELECTION = 3
    UPDATE = 4
    PREPARE_FOR_EVAL = 5
    EVAL = 6


class Keys:
    """The keys of one trial: raw uint32 [2] arrays, as AlgoPerf's runner passes them.

    Args:
        rng_seed: has 64 bits. Both halves are used, whether or not JAX computes in 64 bits.
    """

    def __init__(self, rng_seed: int, trial_index: int):
        # Compiled, since uncompiled it takes a quarter of a millisecond of every step.
        self._fold = jax.jit(jax.random.fold_in)
        seed_key = np.array([rng_seed >> 32, rng_seed & 0xFFFFFFFF], np.uint32)  # as PRNGKey does it with 64 bits
        trial_key = self._fold(seed_key, trial_index)
        self._streams = {stream: self._fold(trial_key, int(stream)) for stream in Stream}

    def of(self, stream: Stream, step: int = 0) -> jax.Array:
        return self._fold(self._streams[stream], step)
