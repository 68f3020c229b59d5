"""Batch sizes of AlgoPerf's workloads. Its contract asks a submission for the batch size by the workload's name.

AlgoPerf's reference submissions use the same sizes. Source: mlcommons/submissions_algorithms. This project's own
workloads are not listed: each has its batch size as an attribute.
"""

_SIZES = {
    "cifar": 128,
    "criteo1tb": 262_144,
    "fastmri": 32,
    "finewebedu_lm": 64,
    "imagenet_resnet": 1024,
    "imagenet_resnet_gelu": 512,
    "imagenet_resnet_silu": 512,
    "imagenet_vit": 1024,
    "librispeech_conformer": 256,
    "librispeech_deepspeech": 256,
    "mnist": 16,
    "ogbg": 512,
    "wmt": 128,
}
_WITHOUT_VARIANTS = ("cifar", "mnist")  # their names also begin those of other workloads


def batch_size(workload_name: str) -> int:
    """The batch size of a workload.

    A variant that is not listed (`ogbg_gelu`) has the size of the longest listed name that its own name begins with.
    `cifar` and `mnist` have no variants.

    Raises:
        ValueError: unknown workload.
    """
    with_variants = [name for name in _SIZES if name not in _WITHOUT_VARIANTS]
    known = [name for name in with_variants if workload_name.startswith(name + "_")]
    known += [name for name in _SIZES if workload_name == name]
    if not known:
        raise ValueError(f"no batch size for workload {workload_name}; known are {', '.join(_SIZES)}")
    return _SIZES[max(known, key=len)]
