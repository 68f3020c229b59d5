"""The rows of a global batch that are this process's, and global arrays made of every process's own.

A process that trains alone has all rows, as NumPy arrays. Several that train together (`jax.distributed`) divide the
rows in the order of their devices, so that any number of them sees the batches of one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any


def own_rows(n_rows: int) -> slice:
    """Of arrays with `n_rows` rows over all processes.

    Raises:
        ValueError: the devices of all processes do not divide them.
    """
    if jax.process_count() == 1:
        return slice(0, n_rows)
    n_devices = jax.device_count()
    if n_rows % n_devices:
        raise ValueError(f"a batch of {n_rows} rows does not split over {n_devices} devices; use a multiple")
    places = [place[0] for place in _split().addressable_devices_indices_map((n_rows,)).values() if place]
    return slice(min(place.start or 0 for place in places), max(place.stop or n_rows for place in places))


def joined(own: PyTree) -> PyTree:
    """Every array's rows of this process -> the global arrays, of which it holds those rows alone."""
    if jax.process_count() == 1:
        return own
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(_split(), rows), own)


def whole(arrays: PyTree) -> PyTree:
    """Global arrays -> the same with all rows at every process; unchanged where this one is alone."""
    return arrays if jax.process_count() == 1 else _gather()(arrays)


def batch(make: Callable[..., PyTree], examples: np.ndarray, size: int) -> PyTree:
    """The global batch of `examples`, of which this process makes its own rows by `make(examples, size=n_rows)`."""
    rows = own_rows(size)
    return joined(make(examples[rows], size=rows.stop - rows.start))


@functools.cache
def _gather() -> Callable[[PyTree], PyTree]:
    return jax.jit(lambda arrays: arrays, out_shardings=NamedSharding(_split().mesh, PartitionSpec()))


@functools.cache
def _split() -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch"))
