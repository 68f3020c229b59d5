"""Encoded images to bytes of pixels, by OpenCV; only as finely as a crop needs where the JPEG decoder can."""

import functools
import io
from typing import Any

import numpy as np


def size(encoded: bytes) -> tuple[int, int]:
    """(height, width), from the header alone.

    Raises:
        ValueError: this is no image that can be read.
    """
    return _header(encoded)[:2]


def decode(encoded: bytes) -> np.ndarray:
    """RGB uint8 [height, width, 3], whatever the colour space was.

    Raises:
        ValueError: this is no image that can be read.
    """
    return _swapped(_decode_bgr(encoded, 1))


def crop(encoded: bytes, box: tuple[int, int, int, int], out: int, *, exact: bool = False) -> np.ndarray:
    """The box (top, left, height, width) as RGB uint8 [out, out, 3], by bicubic interpolation.

    A box at least twice as large as `out` is decoded at half the scale (or a quarter, an eighth), unless `exact`.

    Raises:
        ValueError: this is no image that can be read.
    """
    top, left, height, width = box
    reduction = 1
    while not exact and reduction < 8 and min(height, width) >= 2 * reduction * out:
        reduction *= 2
    pixels = _decode_bgr(encoded, reduction)
    first_row, first_column = round(top / reduction), round(left / reduction)
    rows, columns = max(1, round(height / reduction)), max(1, round(width / reduction))
    part = pixels[first_row : first_row + rows, first_column : first_column + columns]
    return _swapped(_cv2().resize(part, (out, out), interpolation=_cv2().INTER_CUBIC))


@functools.cache
def _cv2() -> Any:
    import cv2

    cv2.setNumThreads(0)  # images are prepared side by side, and its own threads only wait for each other
    return cv2


def _swapped(pixels: np.ndarray) -> np.ndarray:
    """BGR to RGB."""
    return _cv2().cvtColor(pixels, _cv2().COLOR_BGR2RGB)


def _decode_bgr(encoded: bytes, reduction: int) -> np.ndarray:
    """BGR at 1 / `reduction` of the size (1, 2, 4 or 8), rounded up."""
    cv2 = _cv2()
    height, width, mode = _header(encoded)
    if mode in ("CMYK", "YCCK"):  # OpenCV takes Adobe's inverted inks for plain ones
        from PIL import Image

        pixels = _swapped(np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))
        return cv2.resize(pixels, (-(-width // reduction), -(-height // reduction)), interpolation=cv2.INTER_AREA)
    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }[reduction]
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError("an image's data is damaged")
    return pixels


def _header(encoded: bytes) -> tuple[int, int, str]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.height, image.width, image.mode
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError("an image's data is damaged, or of a format that Pillow does not know") from error
