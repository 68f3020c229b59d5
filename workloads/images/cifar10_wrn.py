"""`cifar10_wrn`: Wide ResNet 16-4 on CIFAR-10. The K-FAC-expand and -reduce paper times this model's update step.

Data: TFDS `cifar10` 3.0.2. Every tenth training image is for validation. The targets are not set yet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workloads import tfds_data
from workloads.images import augment
from workloads.images.streaming import StreamedImages
from workloads.images.wide_resnet import WideResNet
from workloads.images.workload import ImageWorkload
from workloads.spec import Budget, SplitSizes, Target

DATASET = tfds_data.Dataset("cifar10", "3.0.2")
_VALIDATION_PERIOD = 10  # every tenth training image is a validation image: a choice


class Cifar10WrnWorkload(ImageWorkload):
    model = WideResNet(num_classes=10)
    image_shape = (32, 32, 3)
    training_batch_size = 128
    # Of the 50,000 training images, with pixels in [0, 1].
    pixel_mean, pixel_stddev = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    validation_target = Target("accuracy", float("inf"))
    test_target = Target("accuracy", float("inf"))
    # 100 epochs of 352 batches. The limits are choices: no reference run set them.
    budget = Budget(step_hint=35_200, max_allowed_runtime_s=14_400, eval_period_s=300)
    eval_batch_size = 1000
    split_sizes = SplitSizes(train=45_000, eval_train=5_000, validation=5_000, test=10_000)
    prepared_data = (tfds_data.PreparedData(DATASET, {"train": 50_000, "test": 10_000}, ("cifar-10-binary.tar.gz",)),)

    def _load_splits(self, data_dir: str | None) -> dict[str, StreamedImages]:
        """All images decoded into memory; raises as `tfds_data.read`."""
        train, test = (_decoded(tfds_data.read(DATASET, split, data_dir)) for split in ("train", "test"))
        is_validation = np.arange(len(train)) % _VALIDATION_PERIOD == 0
        parts = {
            "train": (train, np.flatnonzero(~is_validation)),
            "validation": (train, np.flatnonzero(is_validation)),
            "test": (test, np.arange(len(test))),
        }
        classes = self.model.num_classes
        return {name: StreamedImages(images, ids, classes, pad_crop_flip) for name, (images, ids) in parts.items()}


def pad_crop_flip(image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """CIFAR-10's usual augmentation of training images; without a generator, the image itself."""
    return image if rng is None else augment.random_flip(augment.pad_and_crop(image, rng), rng)


def _decoded(examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{"image": example["image"], "label": example["label"]} for example in examples]
