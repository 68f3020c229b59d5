"""Decodes images by OpenCV. JPEGs are decoded at a lower resolution if that suffices for the crop."""

import functools
import io
from typing import Any, NamedTuple

import numpy as np


class Header(NamedTuple):
    """An encoded image's size in pixels, and Pillow's name for its colour space."""

    height: int
    width: int
    mode: str


def read_header(encoded: bytes) -> Header:
    """Reads the header without decoding the pixels.

    Raises:
        ValueError: the image cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return Header(image.height, image.width, image.mode)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError("an image's data is damaged, or of a format that Pillow does not know") from error


def crop(
    encoded: bytes, header: Header, box: tuple[int, int, int, int], out: int, *, exact: bool = False
) -> np.ndarray:
    """The box (top, left, height, width) as RGB uint8 [out, out, 3], by bicubic interpolation.

    OpenCV's kernel overshoots a little more than the one of TensorFlow, which AlgoPerf uses.

    `header` is the image's, which the caller has read to choose the box. If the box is at least twice as large as
    `out`, the image is decoded at half the resolution (or a quarter, an eighth), unless `exact`.

    Raises:
        ValueError: the image cannot be read.
    """
    top, left, height, width = box
    reduction = 1
    while not exact and reduction < 8 and min(height, width) >= 2 * reduction * out:
        reduction *= 2
    pixels = _decode(encoded, header, reduction)
    first_row, first_column = round(top / reduction), round(left / reduction)
    rows, columns = max(1, round(height / reduction)), max(1, round(width / reduction))
    part = pixels[first_row : first_row + rows, first_column : first_column + columns]
    return _cv2().resize(part, (out, out), interpolation=_cv2().INTER_CUBIC)


@functools.cache
def _cv2() -> Any:
    import cv2

    cv2.setNumThreads(0)  # images are prepared in parallel, so that OpenCV's own threads would only compete
    return cv2


def _decode(encoded: bytes, header: Header, reduction: int) -> np.ndarray:
    """RGB at 1 / `reduction` of the size, rounded up; the reduction is 1, 2, 4 or 8."""
    cv2 = _cv2()
    if header.mode in ("CMYK", "YCCK"):  # OpenCV does not invert Adobe's inverted inks
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        size = -(-header.width // reduction), -(-header.height // reduction)
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    scale = {
        1: 0,
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    }[reduction]
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | scale
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if pixels is None:
        raise ValueError("an image's data is damaged")
    return pixels
