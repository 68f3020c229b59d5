"""Examples per second of processor time of the input pipelines, and of the usual ways to make the same batches."""

import dataclasses
import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jraph
import numpy as np

from benchmarks.timing import markdown
from workloads.graphs.pipeline import EDGES_PER_GRAPH, NODES_PER_GRAPH, BatchShape, TrainingBatches
from workloads.graphs.store import PackedGraphs
from workloads.graphs.synthetic import synthetic_molecules
from workloads.images.streaming import StreamedImages, prepare_jpeg

_N_TASKS, _GRAPHS_PER_BATCH = 128, 512
_HEIGHT, _WIDTH, _OUT, _IMAGES_PER_BATCH = 400, 500, 224, 64
_N_JPEGS = 64
# As many as ImageNet has. Grain's shuffle draws from at least 2**16 numbers until one is a valid index, which takes
# 0.45 ms per example for 64 examples, and 9 us for this number.
_N_EXAMPLES = 1_281_167

Pipeline = tuple[Iterator[Any], Callable[[Any], int]]  # batches; number of examples of a batch


def graphs_table(n_graphs: int, *, n_rounds: int, seed: int) -> str:
    """Batches of 512 random molecules with 128 labels, from the packed store and by jraph.dynamically_batch."""
    graphs = synthetic_molecules(n_graphs, n_tasks=_N_TASKS, node_feature_dim=9, bond_feature_dim=3, seed=seed)
    shape = BatchShape.of(global_batch_size=_GRAPHS_PER_BATCH, sub_batches=8)
    packed = TrainingBatches(graphs, graphs.indices("train"), shape, seed=(seed,))
    single = [_as_jraph(graphs, index) for index in range(min(n_graphs, 20_000))]
    dynamic = jraph.dynamically_batch(
        iter(single * 100),
        NODES_PER_GRAPH * _GRAPHS_PER_BATCH + 1,
        EDGES_PER_GRAPH * _GRAPHS_PER_BATCH,
        _GRAPHS_PER_BATCH + 1,
    )
    ways: dict[str, Pipeline] = {
        "packed store": (packed, lambda batch: int((batch["weights"].max(1) > 0).sum())),
        "jraph.dynamically_batch, graphs in memory": (
            dynamic,
            lambda batch: int(jraph.get_graph_padding_mask(batch).sum()),
        ),
    }
    n_bytes = sum(value.nbytes for value in vars(graphs).values())
    rows = [[name, round(rate)] for name, rate in _rates(ways, n_rounds).items()]
    megabytes = n_bytes / 1e6
    size = f"{n_graphs:,} molecules take {megabytes:.0f} MB in the store, molpcba's 437,929 would take "
    size += f"{437_929 / n_graphs * megabytes:.0f} MB."
    return "\n".join([markdown(["way", "graphs a CPU-second"], rows), "", size])


def images_table(*, n_rounds: int, seed: int) -> str:
    """JPEGs of 500 x 400 to random crops of 224 x 224, flipped; tf.data only where TensorFlow is installed."""
    jpegs = _jpegs(_N_JPEGS, seed)
    images = StreamedImages(jpegs, np.arange(_N_EXAMPLES) % _N_JPEGS, 1000, _crop_and_flip)
    whole = dataclasses.replace(images, prepare=partial(prepare_jpeg, size=_OUT), mixup_alpha=0.2)
    ways: dict[str, Pipeline] = {
        name: (split.training_batches(batch_size=_IMAGES_PER_BATCH, seed=seed), lambda batch: len(batch["targets"]))
        for name, split in {
            "this pipeline": images,
            "this pipeline, RandAugment and mixup too": whole,
        }.items()
    }
    try:
        ways["tf.data"] = (_tf_data([jpeg["image"] for jpeg in jpegs], seed), len)
    except ImportError:
        pass
    rates = _rates(ways, n_rounds)
    rows = [[name, round(rate)] for name, rate in rates.items()]
    return markdown(["way", "images a CPU-second"], rows)


def _rates(ways: Mapping[str, Pipeline], n_rounds: int) -> dict[str, float]:
    """The median over `n_rounds` rounds, in which the pipelines alternate."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(n_rounds):
        for name, way in ways.items():
            _wait_for_idle_threads()
            rates[name].append(_rate(*way))
    return {name: statistics.median(rounds) for name, rounds in rates.items()}


def _rate(batches: Iterator[Any], count: Callable[[Any], int], seconds: float = 4.0) -> float:
    """Examples per second of this process's processor time, over all threads."""
    for _ in range(12):  # more batches than are prepared in advance
        next(batches)
    started, spent, n_examples = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < seconds:
        n_examples += count(next(batches))
    return n_examples / (time.process_time() - spent)


def _wait_for_idle_threads(at_most_s: float = 30.0) -> None:
    """Waits until the previous pipeline has prepared its batches, whose time would count as the next one's."""
    started = time.perf_counter()
    while time.perf_counter() - started < at_most_s:
        spent = time.process_time()
        time.sleep(0.25)
        if time.process_time() - spent < 0.01:
            return


def _crop_and_flip(encoded: bytes, rng: np.random.Generator | None) -> np.ndarray:
    from workloads.images import augment, decode

    if rng is None:
        raise ValueError("random crops are for training batches, which come with a generator")
    header = decode.read_header(encoded)
    box = augment.random_box(header.height, header.width, rng) or augment.central_box(header.height, header.width)
    return augment.random_flip(decode.crop(encoded, header, box, _OUT), rng)


def _jpegs(n: int, seed: int) -> list[dict[str, Any]]:
    """Smooth random pictures with some noise, whose files are about as large as ImageNet's."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    jpegs = []
    for index in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (25, 32, 3), np.uint8)).resize((_WIDTH, _HEIGHT))
        pixels = np.asarray(coarse, np.int16) + generator.integers(-20, 21, (_HEIGHT, _WIDTH, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        jpegs.append({"image": file.getvalue(), "label": index})
    return jpegs


def _tf_data(jpegs: list[bytes], seed: int) -> Iterator[np.ndarray]:
    """The same crops, by the operations of AlgoPerf's pipeline."""
    import tensorflow as tf

    def load(encoded: Any) -> Any:
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.zeros((1, 0, 4)),
            seed=seed,
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.image.decode_and_crop_jpeg(encoded, tf.concat([begin[:2], size[:2]], 0), channels=3)
        image = tf.image.resize([image], [_OUT, _OUT], method="bicubic")[0]
        image = tf.image.random_flip_left_right(image)
        return tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices(jpegs).repeat()
    data = data.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(_IMAGES_PER_BATCH).prefetch(10)
    return iter(data.as_numpy_iterator())


def _as_jraph(graphs: PackedGraphs, index: int) -> jraph.GraphsTuple:
    nodes = slice(*graphs.node_offsets[index : index + 2])
    bonds = slice(*graphs.bond_offsets[index : index + 2])
    ends, features = graphs.bond_ends[bonds].astype(np.int32), graphs.bond_features[bonds].astype(np.float32)
    return jraph.GraphsTuple(
        nodes=graphs.node_features[nodes].astype(np.float32),
        edges=np.concatenate([features, features]),
        senders=np.concatenate([ends[:, 0], ends[:, 1]]),
        receivers=np.concatenate([ends[:, 1], ends[:, 0]]),
        globals=graphs.labels[index : index + 1].astype(np.float32),
        n_node=np.array([nodes.stop - nodes.start]),
        n_edge=np.array([2 * len(ends)]),
    )
