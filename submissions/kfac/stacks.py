"""Functions of many square matrices: one batch for each size, split over the devices."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .devices import is_explicit

PyTree = Any
Key = TypeVar("Key", bound=Hashable)


def map_by_size(
    function: Callable[..., PyTree], stacks: Mapping[Key, tuple[Array, ...]], mesh: Mesh | None = None
) -> dict[Key, PyTree]:
    """`function` of every key's arguments, made one stack with all others of their size.

    Args:
        function: of one or more stacks `[k, n, n]`, to arrays with the same leading axis.
        stacks: key -> its arguments, all `[k, n, n]`; k and n may differ between keys.
        mesh: one-dimensional, of the devices that share the work; None leaves that to the compiler.
    """
    by_size: dict[int, list[Key]] = {}
    for key, arguments in stacks.items():
        by_size.setdefault(arguments[0].shape[-1], []).append(key)
    results: dict[Key, PyTree] = {}
    for keys in by_size.values():
        joined = [jnp.concatenate(column) for column in zip(*(stacks[key] for key in keys), strict=True)]
        outputs, start = map_stack(function, joined, mesh), 0
        for key in keys:
            stop = start + len(stacks[key][0])
            results[key] = jax.tree.map(lambda x, own=slice(start, stop): x[own], outputs)
            start = stop
    return results


def one_by_one(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Maps a function of one matrix over a stack `[k, n, n]`: as a batch, but on a CPU one matrix after another."""

    def mapped(stack: Array) -> Array:
        result: Array = jax.lax.platform_dependent(
            stack, cpu=functools.partial(in_turn, function), default=jax.vmap(function)
        )
        return result

    return mapped


def in_turn(function: Callable[[Array], Array], stack: Array) -> Array:
    """A function of one matrix mapped over a stack `[k, n, n]`, never as a batch, not even under `jax.vmap`.

    On CPUs jaxlib's batched LAPACK kernels wait for tasks on the thread pool that they run on, and may wait forever.
    """
    result: Array = jax.lax.map(jax.custom_batching.sequential_vmap(function), stack)
    return result


def matmul_float32(a: Array, b: Array) -> Array:
    """a @ b in full float32, without TF32."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def map_stack(function: Callable[..., PyTree], stacks: list[Array], mesh: Mesh | None) -> PyTree:
    """`function` of stacks with one leading axis, each device with its part of it."""
    if mesh is None or mesh.size == 1:
        return function(*stacks)
    n_missing = -len(stacks[0]) % mesh.size
    filled = [jnp.concatenate([stack, *[stack[:1]] * n_missing]) for stack in stacks]
    split = PartitionSpec(*mesh.axis_names)
    on_devices = jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split)
    if not is_explicit(mesh):
        return on_devices(*filled)
    results = on_devices(*(jax.sharding.reshard(stack, NamedSharding(mesh, split)) for stack in filled))
    return jax.sharding.reshard(results, NamedSharding(mesh, PartitionSpec()))
