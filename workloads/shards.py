"""This process's rows of a global batch, and global arrays made of the rows of all processes.

A process that trains alone has all rows, as NumPy arrays. Several that train together (`jax.distributed`) divide the
rows in the order of their devices, so that any number of processes has the same batches.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any


def own_rows(n_rows: int) -> slice:
    """This process's rows of arrays with `n_rows` rows over all processes.

    Raises:
        ValueError: the number of devices of all processes does not divide `n_rows`.
    """
    if jax.process_count() == 1:
        return slice(0, n_rows)
    n_devices = jax.device_count()
    if n_rows % n_devices:
        raise ValueError(f"a batch of {n_rows} rows does not split over {n_devices} devices; use a multiple")
    slices = [index[0] for index in over_devices("batch").addressable_devices_indices_map((n_rows,)).values() if index]
    return slice(min(rows.start or 0 for rows in slices), max(rows.stop or n_rows for rows in slices))


def global_arrays(own: PyTree) -> PyTree:
    """The global arrays, from this process's rows of each. It holds no other rows."""
    if jax.process_count() == 1:
        return own
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(over_devices("batch"), rows), own)


def gathered(arrays: PyTree) -> PyTree:
    """Global arrays with all rows in every process; unchanged if there is only one process."""
    return arrays if jax.process_count() == 1 else _gather()(arrays)


def batch(make: Callable[..., PyTree], examples: np.ndarray, size: int) -> PyTree:
    """The global batch of `examples`. This process makes its own rows by `make(examples, size=n_rows)`."""
    rows = own_rows(size)
    return global_arrays(make(examples[rows], size=rows.stop - rows.start))


@functools.cache
def _gather() -> Callable[[PyTree], PyTree]:
    return jax.jit(lambda arrays: arrays, out_shardings=over_devices())


@functools.cache
def over_devices(*axes: str) -> NamedSharding:
    """Over the devices of all processes: `over_devices("batch")` splits the first axis, `over_devices()` replicates."""
    return NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec(*axes))
