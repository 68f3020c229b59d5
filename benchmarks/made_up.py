"""What the benchmarks' own models train on: made-up images of any form."""

from workloads.images.memory import LabelledImages
from workloads.images.workload import ImageWorkload


class MadeUpImages(ImageWorkload):
    """A subclass brings `model` and `image_shape`; batches come from `synthetic_queue` alone."""

    pixel_mean, pixel_stddev = 0.5, 0.25
    eval_batch_size = 1

    def _load_splits(self, data_dir: str | None) -> dict[str, LabelledImages]:
        raise FileNotFoundError("made-up images have no data set: use synthetic_queue")
