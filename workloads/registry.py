"""Workloads by name. A workload's module is imported when it is asked for, not before."""

from collections.abc import Callable

from workloads.spec import Workload


def _b3db() -> Workload:
    from workloads.graphs.b3db import B3dbWorkload

    return B3dbWorkload()


def _mnist_vit() -> Workload:
    from workloads.images.mnist_vit import MnistVitWorkload

    return MnistVitWorkload()


_LOADERS: dict[str, Callable[[], Workload]] = {"b3db": _b3db, "mnist_vit": _mnist_vit}


def names() -> list[str]:
    return sorted(_LOADERS)


def load(name: str) -> Workload:
    """A new instance of the workload called `name`.

    Raises:
        ValueError: no workload has this name; the message lists those there are.
    """
    if name not in _LOADERS:
        raise ValueError(f"unknown workload {name!r}; known workloads: {', '.join(names())}")
    return _LOADERS[name]()
