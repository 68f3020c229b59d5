import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from workloads import tfds_data

DATASET = tfds_data.Dataset("tiny_pictures", "1.0.0")


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    SKIP_REGISTERING = True

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for label in range(3):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 80 * label, np.uint8)).save(file, "JPEG")
            file.seek(0)
            yield label, {"image": file, "label": label}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    TinyPictures(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_examples_are_read_at_random_with_their_bytes(prepared):
    examples = tfds_data.read(DATASET, "train", str(prepared), skip_decoding=["image"])
    assert len(examples) == 3
    for example in (examples[2], examples[0]):
        pixels = np.asarray(Image.open(io.BytesIO(example["image"])))
        assert abs(int(pixels[0, 0, 0]) - 80 * int(example["label"])) <= 2
    decoded = tfds_data.read(DATASET, "train", str(prepared))[0]["image"]
    assert decoded.shape == (8, 8, 3) and decoded.dtype == np.uint8


def test_the_numbers_of_examples_are_tfds_own(prepared, tmp_path):
    assert tfds_data.n_examples(DATASET, str(prepared)) == {"train": 3}
    assert tfds_data.n_examples(DATASET, str(tmp_path)) is None


def _error(kind, dataset, split, folder):
    with pytest.raises(kind) as error:
        tfds_data.read(dataset, split, str(folder))
    message = str(error.value)
    assert "\n" not in message and f"prepare_data.py --dataset={dataset.name} --data_dir={folder}" in message
    return message


def test_what_is_wrong_with_a_data_set_is_said_with_the_cure(prepared, tmp_path):
    assert "is not there" in _error(FileNotFoundError, DATASET, "train", tmp_path)
    (tmp_path / "tiny_pictures").mkdir()
    with tfds.core.utils.file_utils.incomplete_dir(tmp_path / DATASET.path) as unfinished:
        assert "only half prepared" in _error(FileNotFoundError, DATASET, "train", tmp_path)
        assert tfds_data.leftovers(tmp_path / "tiny_pictures", "1.0.0") == [Path(unfinished)]
    other = tfds_data.Dataset("tiny_pictures", "2.0.0")
    assert "holds 1.0.0, not 2.0.0" in _error(ValueError, other, "train", prepared)
    assert "no split 'test', only train" in _error(FileNotFoundError, DATASET, "test", prepared)


def test_another_file_format_is_refused(prepared, tmp_path):
    place = tmp_path / DATASET.path
    place.mkdir(parents=True)
    for file in (prepared / DATASET.path).iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    info = json.loads((place / "dataset_info.json").read_text())
    (place / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    assert "holds tfrecord files, not array_record" in _error(ValueError, DATASET, "train", tmp_path)


def test_a_corrupt_record_is_an_error(prepared, tmp_path):
    place = tmp_path / DATASET.path
    place.mkdir(parents=True)
    for file in (prepared / DATASET.path).iterdir():
        content = bytearray(file.read_bytes())
        if ".array_record" in file.name:
            content[40:80] = bytes(40)
        (place / file.name).write_bytes(content)
    with pytest.raises((ValueError, RuntimeError)):
        [tfds_data.read(DATASET, "train", str(tmp_path))[i] for i in range(3)]
