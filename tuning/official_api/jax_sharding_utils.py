"""`algoperf.jax_sharding_utils`: arrays over all devices, either whole on each or split along their first axis."""

from typing import Any

import jax
from jax.sharding import NamedSharding

from workloads.shards import over_devices

PyTree = Any


def get_replicate_sharding() -> NamedSharding:
    return over_devices()


def get_batch_dim_sharding() -> NamedSharding:
    return over_devices("batch")


def replicate(x: PyTree) -> PyTree:
    return jax.device_put(x, get_replicate_sharding())


def shard_along_batch_dim(x: PyTree) -> PyTree:
    return jax.device_put(x, get_batch_dim_sharding())
