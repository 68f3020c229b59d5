"""Decodes images by OpenCV; JPEGs at a lower resolution where the crop needs no more."""

import functools
import io
import struct
from typing import Any, NamedTuple

import numpy as np

_JPEG_START = b"\xff\xd8"
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # markers of baseline, extended and progressive frames: ITU-T T.81, table B.1


class Header(NamedTuple):
    """An encoded image's size in pixels, and Pillow's name of its colour space."""

    height: int
    width: int
    mode: str


def header(encoded: bytes) -> Header:
    """Reads the header alone, without decoding the pixels.

    Raises:
        ValueError: the image cannot be read.
    """
    return _jpeg_header(encoded) or _pillow_header(encoded)


def decode(encoded: bytes) -> np.ndarray:
    """RGB uint8 [height, width, 3] from any colour space.

    Raises:
        ValueError: the image cannot be read.
    """
    return _decode(encoded, header(encoded), 1)


def crop(encoded: bytes, known: Header, box: tuple[int, int, int, int], out: int, *, exact: bool = False) -> np.ndarray:
    """The box (top, left, height, width) as RGB uint8 [out, out, 3], by bicubic interpolation.

    `known` is the image's header, which the caller has read to choose the box. If the box is at least twice as large as
    `out`, the image is decoded at half the resolution (or a quarter, an eighth), unless `exact`.

    Raises:
        ValueError: the image cannot be read.
    """
    top, left, height, width = box
    reduction = 1
    while not exact and reduction < 8 and min(height, width) >= 2 * reduction * out:
        reduction *= 2
    pixels = _decode(encoded, known, reduction)
    first_row, first_column = round(top / reduction), round(left / reduction)
    rows, columns = max(1, round(height / reduction)), max(1, round(width / reduction))
    part = pixels[first_row : first_row + rows, first_column : first_column + columns]
    return _cv2().resize(part, (out, out), interpolation=_cv2().INTER_CUBIC)


@functools.cache
def _cv2() -> Any:
    import cv2

    cv2.setNumThreads(0)  # images are prepared side by side, and its own threads only wait for each other
    return cv2


def _decode(encoded: bytes, known: Header, reduction: int) -> np.ndarray:
    """RGB at 1 / `reduction` of the size (1, 2, 4 or 8), rounded up."""
    cv2 = _cv2()
    if known.mode in ("CMYK", "YCCK"):  # OpenCV takes Adobe's inverted inks for plain ones
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        size = -(-known.width // reduction), -(-known.height // reduction)
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


def _jpeg_header(encoded: bytes) -> Header | None:
    """The header of a common JPEG, grey or of three colours, in 1.4 us where Pillow takes 22; None for other images."""
    place = len(_JPEG_START) if encoded.startswith(_JPEG_START) else len(encoded)
    while place + 10 <= len(encoded) and encoded[place] == 0xFF != encoded[place + 1]:
        marker, length = struct.unpack_from(">BH", encoded, place + 1)
        if marker in _JPEG_FRAMES:
            height, width, n_components = struct.unpack_from(">HHB", encoded, place + 5)
            mode = {1: "L", 3: "RGB"}.get(n_components)
            return Header(height, width, mode) if mode and height and width else None
        place += 2 + length
    return None


def _pillow_header(encoded: bytes) -> Header:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return Header(image.height, image.width, image.mode)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError("an image's data is damaged, or of a format that Pillow does not know") from error
