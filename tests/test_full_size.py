"""The full-size workloads end to end: archives, the real TFDS builders, three steps at full model size, evaluation."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import molecules
from tests.workloads import archives
from workloads import preparation, registry, tfds_data
from workloads.graphs import molpcba
from workloads.images import imagenet_vit
from workloads.images.mnist_vit import MnistVitWorkload

pytestmark = pytest.mark.slow
pytest.importorskip("tensorflow", reason="the real builders need TensorFlow: pip install -e '.[prepare]'")

ROOT = Path(__file__).parents[1]
N_TRAIN, N_VALIDATION, N_TEST = 24, 12, 10
N_CIFAR, N_GRAPHS = 20, 400


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """All four data sets, prepared by the script from small archives."""
    from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

    folder = tmp_path_factory.mktemp("data")
    manual = folder / "downloads" / "manual"
    manual.mkdir(parents=True)
    digits = MnistVitWorkload()._load_splits(None)["train"]
    wnids = Path(imagenet_common.label_names_file()).read_text().split()[:3]
    archives.imagenet(manual, digits, wnids, N_TRAIN, N_VALIDATION)
    archives.imagenet_v2(manual, digits, N_TEST)
    archives.cifar10(manual, digits, N_CIFAR)
    archives.molpcba(manual, _molecules(), N_GRAPHS)
    done = _script("prepare_data.py", f"--dataset={','.join(preparation.data_sets())}", f"--data_dir={folder}", OTHER)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


OTHER = "--allow_other_archives"


def _molecules():
    return registry.load("b3db")._load(str(molecules.data_dir()))


def _script(name, *flags):
    command = [sys.executable, str(ROOT / "scripts" / name), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_molecules_come_through_the_builder_unchanged(data_dir, tmp_path):
    source = _molecules()
    labels = archives.molpcba(tmp_path, source, N_GRAPHS)
    packed = molpcba.load_molpcba(str(data_dir))
    assert len(packed.labels) == N_GRAPHS and molpcba.store_path(str(data_dir)).is_file()
    # TFDS shuffles the examples of a split: they are told apart by their labels.
    found = {row.tobytes(): i for i, row in enumerate(packed.labels)}
    for index in (0, 8, 9, N_GRAPHS - 1):
        row = np.where(np.isnan(labels[index]), -1, labels[index]).astype(np.int8)
        there = found[row.tobytes()]
        nodes = slice(*packed.node_offsets[there : there + 2])
        expected = source.node_features[slice(*source.node_offsets[index : index + 2])]
        np.testing.assert_array_equal(packed.node_features[nodes], expected)
        assert packed.split_codes[there] == {8: 1, 9: 2}.get(index % 10, 0)


def test_images_come_through_the_builder_with_their_labels(data_dir):
    train = tfds_data.read(imagenet_vit.TRAINING, "train", str(data_dir), skip_decoding=["image"])
    assert len(train) == N_TRAIN and sorted({int(example["label"]) for example in train}) == [0, 1, 2]
    assert all(example["image"].startswith(b"\xff\xd8") for example in train)
    batch = next(iter(registry.load("cifar10_wrn")._build_input_queue(0, "test", str(data_dir), 8)))
    digits = MnistVitWorkload()._load_splits(None)["train"]
    pairs = zip(digits.pixels, digits.labels, strict=True)
    known = {np.pad(image[..., 0], 2).tobytes(): label for image, label in pairs}
    for image, target in zip(batch["inputs"], batch["targets"], strict=True):
        assert known[np.ascontiguousarray(image[..., 1]).tobytes()] == target.argmax()


@pytest.mark.parametrize(
    ("workload", "batch_size", "submission"),
    [
        ("ogbg", 64, "nadamw"),
        ("ogbg", 64, "kfac_reduce"),
        ("imagenet_vit", 4, "kfac_reduce"),
        ("cifar10_wrn", 8, "kfac_reduce"),
    ],
)
def test_three_steps_at_full_model_size(data_dir, tmp_path, workload, batch_size, submission):
    done = _script(
        "run_trial.py",
        f"--workload={workload}",
        f"--submission_path=submissions/{submission}",
        f"--experiment_dir={tmp_path}",
        "--experiment_name=e",
        "--max_global_steps=3",
        f"--batch_size={batch_size}",
        "--eval_batch_size=64",
        f"--data_dir={data_dir}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trial = tmp_path / "e" / f"{workload}_jax" / "trial_1"
    outcome = json.loads((trial / "outcome.json").read_text())
    # The molecules' made-up labels are balanced, so that chance is above ogbg's target.
    assert outcome["global_step"] == 3 and outcome["reason"] in ("budget", None)
    with open(trial / "eval_measurements.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    for split in ("train", "validation", "test"):
        assert np.isfinite(float(last[f"{split}/loss"]))
    with open(trial / "measurements.csv", newline="") as file:
        first = next(csv.DictReader(file))
    if workload == "imagenet_vit":  # a zero-initialised head
        assert float(first["loss"]) == pytest.approx(np.log(1000), rel=1e-5)


def test_bad_archives_and_data_sets_are_refused_in_one_line(data_dir, tmp_path):
    folder = f"--data_dir={tmp_path}"
    missing = _script("prepare_data.py", "--dataset=imagenet2012", folder)
    assert missing.returncode == 2 and "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar" in missing.stderr
    wrong = _script("prepare_data.py", "--dataset=cifar10", folder, f"--manual_dir={data_dir}/downloads/manual")
    assert wrong.returncode == 2 and "wrong checksum" in wrong.stderr
    counts = _script("prepare_data.py", "--dataset=cifar10", f"--data_dir={data_dir}")
    assert counts.returncode == 2 and "examples, not" in counts.stderr
    for done in (missing, wrong, counts):
        assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
