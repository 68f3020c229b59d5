"""`imagenet_vit`: ViT-S/16 on ImageNet (ILSVRC 2012), tested on ImageNet-V2; and AlgoPerf's three variants of it.

Data: TFDS `imagenet2012` 5.1.0 and `imagenet_v2/matched-frequency`. Source of model, sizes, budgets and targets: the
AlgoPerf benchmark, v0.6.
"""

from functools import partial

import numpy as np

from workloads import budgets, tfds_data
from workloads.images.streaming import StreamedImages, prepare_jpeg
from workloads.images.vit import ViT
from workloads.images.workload import ImageWorkload
from workloads.spec import SplitSizes, Target

TRAINING = tfds_data.Dataset("imagenet2012", "5.1.0")
TEST = tfds_data.Dataset("imagenet_v2", "3.0.0", "matched-frequency")
_MIXUP_ALPHA = 0.2


_vit_s16 = partial(ViT, num_classes=1000, patch_size=(16, 16), width=384, depth=12, mlp_dim=1536, num_heads=6)


class ImagenetVitWorkload(ImageWorkload):
    model = _vit_s16()
    image_shape = (224, 224, 3)
    pixel_mean, pixel_stddev = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    validation_target = Target("accuracy", 0.77309)
    test_target = Target("accuracy", 0.6519)
    budget = budgets.BUDGETS[budgets.V100X8]["imagenet_vit"]
    eval_batch_size = 512  # meant for one device of 16 GB, not tried; AlgoPerf has 2,048 on eight devices
    split_sizes = SplitSizes(train=1_281_167, eval_train=50_000, validation=50_000, test=10_000)
    prepared_data = (
        tfds_data.PreparedData(
            TRAINING,
            {"train": 1_281_167, "validation": 50_000},
            ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
            source="https://image-net.org/download-images, after registration",
        ),
        tfds_data.PreparedData(TEST, {"test": 10_000}, ("imagenetv2-matched-frequency.tar.gz",)),
    )

    def _load_splits(self, data_dir: str | None) -> dict[str, StreamedImages]:
        """JPEGs, decoded as they are needed; raises as `tfds_data.read`."""
        sources = {"train": (TRAINING, "train"), "validation": (TRAINING, "validation"), "test": (TEST, "test")}
        return {name: self._images(dataset, split, data_dir) for name, (dataset, split) in sources.items()}

    def _images(self, dataset: tfds_data.Dataset, split: str, data_dir: str | None) -> StreamedImages:
        examples = tfds_data.read(dataset, split, data_dir, skip_decoding=["image"])
        prepare = partial(prepare_jpeg, size=self.image_shape[0])
        return StreamedImages(examples, np.arange(len(examples)), self.model.num_classes, prepare, _MIXUP_ALPHA)


class ImagenetVitGluWorkload(ImagenetVitWorkload):
    model = _vit_s16(is_gated=True)
    validation_target = Target("accuracy", 0.75738)
    test_target = Target("accuracy", 0.6359)


class ImagenetVitPostLnWorkload(ImagenetVitWorkload):
    model = _vit_s16(norm_after=True)
    validation_target = Target("accuracy", 0.75312)
    test_target = Target("accuracy", 0.6286)


class ImagenetVitMapWorkload(ImagenetVitWorkload):
    model = _vit_s16(pools_by_attention=True)
    validation_target = Target("accuracy", 0.77113)
    test_target = Target("accuracy", 0.6523)
