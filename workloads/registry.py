"""Workloads by name. A workload's module is imported only when the workload is loaded."""

import importlib

from workloads import budgets
from workloads.spec import Workload

_GRAPHS, _IMAGES = "workloads.graphs", "workloads.images"
_CLASSES = {
    "b3db": (f"{_GRAPHS}.b3db", "B3dbWorkload"),
    "ogbg": (f"{_GRAPHS}.ogbg", "OgbgWorkload"),
    "ogbg_gelu": (f"{_GRAPHS}.ogbg", "OgbgGeluWorkload"),
    "ogbg_silu": (f"{_GRAPHS}.ogbg", "OgbgSiluWorkload"),
    "ogbg_model_size": (f"{_GRAPHS}.ogbg", "OgbgModelSizeWorkload"),
    "mnist_vit": (f"{_IMAGES}.mnist_vit", "MnistVitWorkload"),
    "pydoc_lm": ("workloads.text.pydoc_lm", "PydocLmWorkload"),
    "cifar10_wrn": (f"{_IMAGES}.cifar10_wrn", "Cifar10WrnWorkload"),
    "imagenet_vit": (f"{_IMAGES}.imagenet_vit", "ImagenetVitWorkload"),
    "imagenet_vit_glu": (f"{_IMAGES}.imagenet_vit", "ImagenetVitGluWorkload"),
    "imagenet_vit_post_ln": (f"{_IMAGES}.imagenet_vit", "ImagenetVitPostLnWorkload"),
    "imagenet_vit_map": (f"{_IMAGES}.imagenet_vit", "ImagenetVitMapWorkload"),
}


def names() -> list[str]:
    return sorted(_CLASSES)


def load(name: str, hardware_profile: str | None = None) -> Workload:
    """A new instance of the workload called `name`.

    Args:
        hardware_profile: a profile of `budgets`, whose budget replaces the workload's own.

    Raises:
        ValueError: no workload has this name, or the profile has no budget for it. The message lists the known ones.
    """
    if name not in _CLASSES:
        raise ValueError(f"unknown workload {name!r}; known workloads: {', '.join(names())}")
    module, kind = _CLASSES[name]
    workload = getattr(importlib.import_module(module), kind)()
    if hardware_profile is not None:
        official = budgets.budget(name, hardware_profile)
        if official is None:
            known = ", ".join(budgets.BUDGETS[hardware_profile])
            problem = f"hardware profile {hardware_profile} has no budget for {name!r}, only for {known}"
            raise ValueError(f"{problem}; leave out --hardware_profile")
        workload.hardware_profile, workload.budget = hardware_profile, official
    return workload
