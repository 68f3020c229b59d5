"""Random augmentations of training images: crops, flips, RandAugment, mixup. Random numbers come from NumPy generators.

Source: the AlgoPerf benchmark's ImageNet pipeline, whose settings these are. Cropping follows TensorFlow's
`sample_distorted_bounding_box`: Szegedy et al., 2015. RandAugment: Cubuk et al., 2020. Mixup: Zhang et al., 2018.
Padding and cropping, for small images: He et al., 2015.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

_AREA, _ASPECT, _ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
_COVERED = 0.1  # of the image: TensorFlow's default `min_object_covered`, where the object is the whole image
_EVAL_FRACTION = 224 / 256
_N_LAYERS = 2
_GREY = 128
# At magnitude 10, the largest of AlgoPerf's scale.
_ROTATE_DEGREES, _SHEAR, _TRANSLATE, _CUTOUT_HALF, _ENHANCE = 30, 0.3, 100, 40, 1.9
_POSTERIZE_BITS, _SOLARIZE_ADD = 4, 110

Image = np.ndarray  # uint8 [height, width, 3]


def random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """A box (top, left, height, width) of random area and aspect ratio in an image; None if ten draws do not fit.

    Areas are drawn from 0.08 of the image's area on, but those below 0.1 do not fit, as in TensorFlow.
    """
    min_area, max_area = (fraction * height * width for fraction in _AREA)
    for _ in range(_ATTEMPTS):
        aspect = rng.uniform(*_ASPECT)
        low = round((min_area / aspect) ** 0.5)
        high = min(round((max_area / aspect) ** 0.5), height, int((width + 0.5) / aspect))
        rows = low if low >= high else int(rng.integers(low, high + 1))
        columns = round(rows * aspect)
        fits = 0 < rows <= height and 0 < columns <= width and min_area <= rows * columns <= max_area
        if fits and rows * columns >= _COVERED * height * width:
            return int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns
    return None


def central_box(height: int, width: int) -> tuple[int, int, int, int]:
    """The central square box whose side is 224/256 of the image's shorter side."""
    side = max(1, int(_EVAL_FRACTION * min(height, width)))
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def random_flip(image: Image, rng: np.random.Generator) -> Image:
    import cv2

    # A reversed view would be free here, but slower to copy into a batch than this is.
    return cv2.flip(image, 1).reshape(image.shape) if rng.random() < 0.5 else image


def pad_and_crop(image: Image, rng: np.random.Generator) -> Image:
    """The image shifted at random by up to 4 pixels along each axis. Zeros fill the edges."""
    padded = np.pad(image, [(4, 4), (4, 4), (0, 0)])
    top, left = rng.integers(9, size=2)
    return padded[top : top + image.shape[0], left : left + image.shape[1]]


def mixup(
    images: np.ndarray, targets: np.ndarray, rng: np.random.Generator, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mixes every image, uint8 [batch, …], with the one before it in the batch, all with the same weight.

    The targets [batch, n] are mixed likewise. Mixed pixels are rounded to whole numbers.
    """
    weight = np.float32(rng.beta(alpha, alpha))
    mixed = weight * images + (1 - weight) * np.roll(images, 1, axis=0)
    return np.rint(mixed).astype(np.uint8), weight * targets + (1 - weight) * np.roll(targets, 1, axis=0)


def rand_augment(image: Image, rng: np.random.Generator) -> Image:
    """Applies two of `OPERATIONS`, drawn at random, at magnitude 10."""
    for index in rng.integers(len(OPERATIONS), size=_N_LAYERS):
        image = OPERATIONS[index](image, rng)
    return image


def autocontrast(image: Image, rng: np.random.Generator) -> Image:
    low, high = image.min((0, 1)).astype(np.float32), image.max((0, 1)).astype(np.float32)
    spread = np.where(high > low, high - low, 255)
    start = np.where(high > low, low, 0)
    return _to_bytes((image - start) * (255 / spread))


def equalize(image: Image, rng: np.random.Generator) -> Image:
    return np.asarray(ImageOps.equalize(Pillow.fromarray(image)))


def invert(image: Image, rng: np.random.Generator) -> Image:
    return 255 - image


def rotate(image: Image, rng: np.random.Generator) -> Image:
    angle = np.deg2rad(_sign(rng) * _ROTATE_DEGREES)
    cos, sin = np.cos(angle), np.sin(angle)
    middle = np.array([image.shape[1] - 1, image.shape[0] - 1]) / 2
    turn = np.array([[cos, -sin], [sin, cos]])
    return _affine(image, np.column_stack([turn, middle - turn @ middle]))


def posterize(image: Image, rng: np.random.Generator) -> Image:
    return image >> (8 - _POSTERIZE_BITS) << (8 - _POSTERIZE_BITS)


def solarize(image: Image, rng: np.random.Generator) -> Image:
    return 255 - image  # AlgoPerf inverts pixels from a threshold on: 256 at magnitude 10, which as a byte is 0


def color(image: Image, rng: np.random.Generator) -> Image:
    return _blend(_grey(image)[..., None], image)


def contrast(image: Image, rng: np.random.Generator) -> Image:
    # AlgoPerf's mean is that of the histogram's bins, which hold numbers of pixels, not of the pixels' values.
    mean = min(image.shape[0] * image.shape[1] / 256, 255)
    return _blend(np.uint8(mean), image)


def brightness(image: Image, rng: np.random.Generator) -> Image:
    return _blend(np.uint8(0), image)


def sharpness(image: Image, rng: np.random.Generator) -> Image:
    import cv2

    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = image.copy()
    smooth[1:-1, 1:-1] = _to_bytes(cv2.filter2D(image.astype(np.float32), -1, kernel))[1:-1, 1:-1]
    return _blend(smooth, image)


def shear_x(image: Image, rng: np.random.Generator) -> Image:
    return _affine(image, np.array([[1, _sign(rng) * _SHEAR, 0], [0, 1, 0]]))


def shear_y(image: Image, rng: np.random.Generator) -> Image:
    return _affine(image, np.array([[1, 0, 0], [_sign(rng) * _SHEAR, 1, 0]]))


def translate_x(image: Image, rng: np.random.Generator) -> Image:
    return _affine(image, np.array([[1, 0, _sign(rng) * _TRANSLATE], [0, 1, 0]]))


def translate_y(image: Image, rng: np.random.Generator) -> Image:
    return _affine(image, np.array([[1, 0, 0], [0, 1, _sign(rng) * _TRANSLATE]]))


def cutout(image: Image, rng: np.random.Generator) -> Image:
    row, column = rng.integers(image.shape[0]), rng.integers(image.shape[1])
    image = image.copy()
    rows = slice(max(0, row - _CUTOUT_HALF), row + _CUTOUT_HALF)
    image[rows, max(0, column - _CUTOUT_HALF) : column + _CUTOUT_HALF] = _GREY
    return image


def solarize_add(image: Image, rng: np.random.Generator) -> Image:
    added = np.minimum(image.astype(np.int16) + _SOLARIZE_ADD, 255).astype(np.uint8)
    return np.where(image < 128, added, image)


OPERATIONS: tuple[Callable[[Image, np.random.Generator], Image], ...] = (
    autocontrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    color,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    cutout,
    solarize_add,
)


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _grey(image: Image) -> np.ndarray:
    return _to_bytes(image @ np.array([0.2989, 0.5870, 0.1140], np.float32))


def _blend(plain: np.ndarray | np.uint8, image: Image) -> Image:
    """Extrapolates from `plain` beyond the image, by the factor `_ENHANCE`, and clips to bytes."""
    start = plain.astype(np.float32)
    return _to_bytes(start + np.float32(_ENHANCE) * (image - start))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def _affine(image: Image, matrix: np.ndarray) -> Image:
    """Pixel (x, y) of the result is the image's pixel nearest to `matrix` (x, y, 1), or grey outside the image."""
    import cv2

    return cv2.warpAffine(
        image,
        matrix.astype(np.float64),
        (image.shape[1], image.shape[0]),
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(_GREY, _GREY, _GREY),
    )
