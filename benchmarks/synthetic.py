"""Random images of any shape, for the benchmarks' own models."""

from workloads.images.memory import LabelledImages
from workloads.images.workload import ImageWorkload


class SyntheticImages(ImageWorkload):
    """A subclass adds `model` and `image_shape`. Its batches come from `synthetic_queue`, as there is no data set."""

    pixel_mean, pixel_stddev = 0.5, 0.25
    eval_batch_size = 1

    def _load_splits(self, data_dir: str | None) -> dict[str, LabelledImages]:
        raise FileNotFoundError("synthetic images have no data set: use synthetic_queue")
