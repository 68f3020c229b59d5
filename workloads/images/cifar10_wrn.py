"""`cifar10_wrn`: Wide ResNet 16-4 on CIFAR-10, the model whose update step the K-FAC-expand and -reduce paper times.

Data: TFDS `cifar10` 3.0.2, of whose training images every tenth is for validation. The targets are set by nobody yet.
"""

from workloads.images.wide_resnet import WideResNet
from workloads.images.workload import ImageWorkload
from workloads.spec import Budget, SplitSizes, Target


class Cifar10WrnWorkload(ImageWorkload):
    model = WideResNet(num_classes=10)
    image_shape = (32, 32, 3)
    # Of the 50,000 training images, pixels in [0, 1].
    pixel_mean, pixel_stddev = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    validation_target = Target("accuracy", float("inf"))
    test_target = Target("accuracy", float("inf"))
    budget = Budget(step_hint=35_200, max_allowed_runtime_s=14_400, eval_period_s=300)
    split_sizes = SplitSizes(train=45_000, eval_train=5_000, validation=5_000, test=10_000)

    def _load_splits(self, data_dir):
        raise FileNotFoundError(data_dir)

    @property
    def eval_batch_size(self) -> int:
        return 1000
