import numpy as np
import pytest

from workloads.images import augment

GRADIENT = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def _rng(seed=0):
    return np.random.default_rng(seed)


class _Always(np.random.Generator):
    """A generator whose sign is always the first one, +1."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def random(self, *_):
        return 0.0


def test_random_boxes_lie_inside_and_keep_area_and_aspect():
    rng, areas, aspects = _rng(), [], []
    for _ in range(2000):
        box = augment.random_box(300, 400, rng)
        assert box is not None
        top, left, height, width = box
        assert 0 <= top <= 300 - height and 0 <= left <= 400 - width
        areas.append(height * width / (300 * 400))
        aspects.append(width / height)
    assert 0.1 <= min(areas) < 0.11 and 0.9 < max(areas) <= 1
    # Rounding to whole pixels moves the ratio of the smallest boxes, about 90 pixels high, by at most 1 in 90.
    assert min(aspects) >= 0.75 - 0.01 and max(aspects) <= 4 / 3 + 0.02


def test_no_box_fits_a_sliver():
    assert augment.random_box(1000, 2, _rng()) is None


def test_central_box_takes_seven_eighths_of_the_shorter_side():
    assert augment.central_box(256, 512) == (16, 144, 224, 224)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_half_the_images_are_mirrored(n_channels):
    image, rng = GRADIENT[..., :n_channels], _rng()
    flipped = [augment.random_flip(image, rng) for _ in range(200)]
    n_mirrored = sum(np.array_equal(other, image[:, ::-1]) for other in flipped)
    assert 70 < n_mirrored < 130 and n_mirrored + sum(np.array_equal(other, image) for other in flipped) == 200


def test_pad_and_crop_shifts_and_fills_with_zeros():
    image = np.full((8, 8, 3), 7, np.uint8)
    seen = {tuple(np.argwhere(augment.pad_and_crop(image, _rng(seed))[..., 0] == 7)[0]) for seed in range(200)}
    assert {(0, 0), (4, 4)} <= seen and max(max(corner) for corner in seen) == 4


def test_mixup_by_hand():
    images = np.array([[[[0]]], [[[100]]], [[[200]]]], np.uint8)
    mixed, targets = augment.mixup(images, np.eye(3, dtype=np.float32), _rng(3), 0.2)
    weight = np.float32(_rng(3).beta(0.2, 0.2))
    expected = np.rint(weight * np.array([0, 100, 200]) + (1 - weight) * np.array([200, 0, 100]))
    np.testing.assert_array_equal(mixed.ravel(), expected)
    np.testing.assert_allclose(targets[0], [weight, 0, 1 - weight], rtol=1e-6)
    assert mixed.dtype == np.uint8 and np.allclose(targets.sum(1), 1)


@pytest.mark.parametrize("change", augment.OPERATIONS, ids=lambda change: change.__name__)
def test_every_change_keeps_form_and_input(change):
    image = _rng(1).integers(20, 200, (32, 40, 3)).astype(np.uint8)
    before = image.copy()
    changed = change(image, _rng())
    assert changed.shape == image.shape and changed.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    assert (changed != image).any()


def test_changes_by_hand():
    pixel = np.array([[[10, 100, 200]]], np.uint8)
    assert augment.invert(pixel, _rng()).ravel().tolist() == [245, 155, 55]
    assert augment.solarize(pixel, _rng()).ravel().tolist() == [245, 155, 55]  # all are above a threshold of 0
    assert augment.posterize(pixel, _rng()).ravel().tolist() == [0, 96, 192]
    assert augment.brightness(pixel, _rng()).ravel().tolist() == [19, 190, 255]
    assert augment.solarize_add(pixel, _rng()).ravel().tolist() == [120, 210, 200]
    # Grey is 84; 84 + 1.9 (p - 84), cut to bytes.
    assert augment.color(pixel, _rng()).ravel().tolist() == [0, 114, 255]
    ramp = np.array([[[50], [100], [150]]], np.uint8).repeat(3, axis=2)
    assert augment.autocontrast(ramp, _rng())[0, :, 0].tolist() == [0, 127, 255]
    flat = np.full((2, 2, 3), 9, np.uint8)
    np.testing.assert_array_equal(augment.autocontrast(flat, _rng()), flat)


def test_movements_by_hand():
    """AlgoPerf's transforms map an output pixel to where it comes from; grey comes from outside."""
    image = np.zeros((210, 210, 3), np.uint8)
    image[5, 150] = 255
    moved = augment.translate_x(image, _Always())
    assert moved[5, 50, 0] == 255 and (moved[:, 110:] == 128).all()
    moved = augment.translate_y(image.transpose(1, 0, 2), _Always())
    assert moved[50, 5, 0] == 255 and (moved[110:] == 128).all()
    # Row 100 of a shear by 0.3 comes from 30 columns further right.
    image[100, 150] = 255
    assert augment.shear_x(image, _Always())[100, 120, 0] == 255
    square = np.zeros((201, 201, 3), np.uint8)
    square[100, 190] = 255
    turned = augment.rotate(square, _Always())
    x, y = 90 * np.cos(np.pi / 6), 90 * np.sin(np.pi / 6)
    around = turned[round(100 - y) - 1 : round(100 - y) + 2, round(100 + x) - 1 : round(100 + x) + 2, 0]
    assert 255 in around  # counter-clockwise: to the right becomes to the right and above


def test_cutout_is_a_grey_square_within_the_image():
    image = np.zeros((224, 224, 3), np.uint8)
    grey = np.argwhere(augment.cutout(image, _rng())[..., 0] == 128)
    height, width = np.ptp(grey, axis=0) + 1
    assert len(grey) == height * width and 40 <= height <= 80 and 40 <= width <= 80


def test_equalize_flattens_the_histogram_as_pillow_does():
    from PIL import Image, ImageOps

    image = (_rng(2).normal(100, 10, (64, 64, 3)).clip(0, 255)).astype(np.uint8)
    expected = np.asarray(ImageOps.equalize(Image.fromarray(image)))
    np.testing.assert_array_equal(augment.equalize(image, _rng()), expected)
