import io

import numpy as np
import pytest
from PIL import Image

from workloads.images import decode


def _smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], axis=-1).astype(np.uint8)


def _encoded(pixels, form="JPEG", mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


def _decoded(encoded):
    """The whole image, without scaling."""
    return decode._decode(encoded, decode.read_header(encoded), 1)


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "RGBA")])
def test_colours_come_out_whatever_the_encoding(form, mode):
    pixels = _smooth(60, 90)
    encoded = _encoded(pixels, form, mode, **({"quality": 98} if form == "JPEG" else {}))
    assert decode.read_header(encoded)[:2] == (60, 90)
    decoded = _decoded(encoded)
    assert decoded.shape == (60, 90, 3) and np.abs(decoded.astype(int) - pixels).max() <= 8


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"comment": b"\xff\xc0 is no frame here", "icc_profile": bytes(70_000)}]
)
def test_a_header_is_read_past_other_segments(mode, options):
    assert decode.read_header(_encoded(_smooth(50, 70), mode=mode, **options)) == (50, 70, mode)


def test_grey_images_have_three_equal_channels():
    decoded = _decoded(_encoded(_smooth(20, 30), mode="L"))
    assert decoded.shape == (20, 30, 3) and (decoded[..., :1] == decoded).all()


def test_a_crop_decoded_at_a_reduced_scale_is_the_same_picture():
    pixels = _smooth(1200, 1600)
    encoded = _encoded(pixels, quality=95)
    box = (100, 200, 900, 1000)
    header = decode.read_header(encoded)
    quick, exact = (decode.crop(encoded, header, box, 224, exact=exact).astype(int) for exact in (False, True))
    assert quick.shape == (224, 224, 3) and np.abs(quick - exact).max() <= 4


def test_orientation_marks_are_ignored_as_by_tensorflow():
    image = Image.fromarray(_smooth(40, 80))
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, quality=95)
    assert _decoded(file.getvalue()).shape == (40, 80, 3)


_WITHOUT_QUANTIZATION = _encoded(_smooth(64, 64)).replace(b"\xff\xdb", b"\xff\xef")  # its header can be read


@pytest.mark.parametrize(
    "data", [b"", b"no image", *(_encoded(_smooth(64, 64))[:n] for n in (2, 40)), _WITHOUT_QUANTIZATION]
)
def test_damaged_data_is_an_error(data):
    with pytest.raises(ValueError, match="damaged"):
        _decoded(data)
