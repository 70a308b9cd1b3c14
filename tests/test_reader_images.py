"""The conversion of one image: every mode against values worked out by hand, and damage."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from hyperdp.errors import DataError
from hyperdp.private.readers.images import FORMATS, MAX_PIXELS, from_array, to_pixels

GREY = (1, 4, 4)
RGB = (3, 4, 4)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def solid(mode, color, size=(4, 4)):
    return Image.new(mode, size, color)


def level(value):
    """What 0 … 255 becomes."""
    return value / 127.5 - 1


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (solid("1", 1), "PNG", (255, 255, 255)),
        (solid("L", 100), "PNG", (100, 100, 100)),
        (solid("LA", (200, 0)), "PNG", (0, 0, 0)),
        (solid("LA", (200, 255)), "PNG", (200, 200, 200)),
        (solid("RGB", (10, 20, 30)), "PNG", (10, 20, 30)),
        (solid("RGBA", (255, 100, 0, 51)), "PNG", (51, 20, 0)),
        (solid("CMYK", (255, 0, 0, 0)), "TIFF", (0, 255, 255)),
        (solid("I;16", 257 * 9), "PNG", (9, 9, 9)),
        (solid("I;16B", 257 * 9), "TIFF", (9, 9, 9)),
        (solid("I", 65535), "TIFF", (255, 255, 255)),
        (solid("F", 0.2), "TIFF", (51, 51, 51)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_mode_becomes_the_levels_worked_out_by_hand(image, kind, expected):
    pixels = to_pixels(encoded(image, kind), RGB, "it")
    assert pixels.dtype == np.float32
    assert pixels.shape == RGB
    np.testing.assert_allclose(pixels[:, 0, 0], level(np.array(expected)), atol=1e-6)
    luma = round(0.299 * expected[0] + 0.587 * expected[1] + 0.114 * expected[2])
    grey = to_pixels(encoded(image, kind), GREY, "it")
    np.testing.assert_allclose(grey, np.full(GREY, level(luma)), atol=1.01 / 127.5)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (solid("1", 1), "PNG", (0, 0, 0)),
        (solid("L", 100), "PNG", (155, 155, 155)),
        (solid("LA", (200, 0)), "PNG", (0, 0, 0)),  # the ground stays black
        (solid("RGB", (10, 20, 30)), "PNG", (245, 235, 225)),
        (solid("RGBA", (0, 155, 255, 51)), "PNG", (51, 20, 0)),
        (solid("CMYK", (255, 0, 0, 0)), "TIFF", (255, 0, 0)),
        (solid("I;16", 257 * 9), "PNG", (246, 246, 246)),
        (solid("I", 65535), "TIFF", (0, 0, 0)),
        (solid("F", 0.2), "TIFF", (204, 204, 204)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_mode_is_inverted_where_it_is_asked_for(image, kind, expected):
    pixels = to_pixels(encoded(image, kind), RGB, "it", invert=True)
    np.testing.assert_allclose(pixels[:, 0, 0], level(np.array(expected)), atol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, bool])
def test_arrays_are_inverted_and_padded_with_black(kind):
    """A wide page: what is padded is no ink."""
    top = {np.uint8: 255, np.uint16: 65535}.get(kind, 1)
    page = np.full((2, 4), top, kind)
    page[0, 0] = 0
    kept = page.copy()
    pixels = from_array(page, GREY, "it", invert=True)[0]
    expected = np.full((4, 4), -1.0)
    expected[1, 0] = 1
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    np.testing.assert_array_equal(page, kept)  # the caller's array stays as it is
    layered = np.stack([page, np.full_like(page, top)], axis=2)
    layered[1, 3] = 0  # transparent
    np.testing.assert_allclose(from_array(layered, GREY, "it", invert=True)[0], expected, atol=1e-6)


@given(hnp.arrays(np.uint8, (5, 7)))
def test_to_invert_is_to_read_the_negative(page):
    for shape in (GREY, RGB, (1, 5, 7)):
        negative = from_array(255 - page, shape, "it")
        np.testing.assert_array_equal(from_array(page, shape, "it", invert=True), negative)


def test_a_palette_is_looked_up_and_its_transparent_entry_is_black():
    image = solid("P", 0)
    image.putpalette([250, 0, 0, 0, 0, 250])
    image.putpixel((3, 3), 1)
    plain = to_pixels(encoded(image), RGB, "it")
    np.testing.assert_allclose(plain[:, 0, 0], level(np.array([250, 0, 0])), atol=1e-6)
    keyed = to_pixels(encoded(image, transparency=0), RGB, "it")
    np.testing.assert_allclose(keyed[:, 0, 0], [-1, -1, -1])
    np.testing.assert_allclose(keyed[:, 3, 3], level(np.array([0, 0, 250])), atol=1e-6)


def test_the_orientation_that_the_camera_noted_is_applied():
    image = solid("L", 0)
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90° clockwise: the first pixel goes to the top right
    pixels = to_pixels(encoded(image, exif=exif), GREY, "it")
    assert np.argwhere(pixels[0] > 0).tolist() == [[0, 3]]


def test_of_an_animation_the_first_frame_counts():
    data = encoded(solid("L", 255), "GIF", save_all=True, append_images=[solid("L", 0)])
    np.testing.assert_allclose(to_pixels(data, GREY, "it"), np.ones(GREY))


def test_the_right_size_is_left_alone_and_any_other_keeps_its_proportions():
    ramp = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    exact = to_pixels(encoded(Image.fromarray(ramp)), GREY, "it")
    np.testing.assert_array_equal(np.round((exact[0] + 1) * 127.5), ramp)
    wide = to_pixels(encoded(solid("L", 255, (40, 20))), GREY, "it")
    np.testing.assert_allclose(wide[0], [[-1] * 4, [1] * 4, [1] * 4, [-1] * 4])
    tall = to_pixels(encoded(solid("L", 255, (1, 900))), GREY, "it")
    assert (tall[0].max(axis=0) == 1).sum() == 1


def test_shrinking_is_antialiased():
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = to_pixels(encoded(Image.fromarray(checkers)), GREY, "it")
    np.testing.assert_allclose(pixels, np.zeros(GREY), atol=0.1)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((4, 4), True), 255),
        (np.full((4, 4), 100, np.uint8), 100),
        (np.full((4, 4), 257 * 100, np.uint16), 100),
        (np.full((4, 4), 257 * 100, ">u2"), 100),
        (np.full((4, 4), 100, np.int64), 100),
        (np.full((4, 4), 0.5, np.float16), 127.5),
        (np.full((4, 4), 0.5, np.float64), 127.5),
        (np.full((4, 4, 1), 100, np.uint8), 100),
        (np.full((1, 5, 5), 100, np.int32), 100),
        (np.full((3, 5, 5), 100, np.uint8), 100),
        (np.full((3, 5, 5), 0.4), 102),
        (np.full((8, 8, 4), (200, 200, 200, 0)), 0),
        (np.full((8, 8, 2), (0.8, 0.5)), 102),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else None,
)
def test_every_array_type_and_layout(array, expected):
    for shape in (GREY, RGB):
        pixels = from_array(array, shape, "it")
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels, np.full(shape, level(expected)), atol=1e-4)


def test_luma_of_float_planes_is_itu_601():
    array = np.zeros((4, 4, 3))
    array[..., 1] = 1.0
    np.testing.assert_allclose(
        from_array(array, GREY, "it"), np.full(GREY, level(0.587 * 255)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.full((4, 4), np.nan), "NaN or infinity"),
        (np.full((4, 4), np.inf, np.float32), "NaN or infinity"),
        (np.full((4, 4), 1.5), "a value outside"),
        (np.full((4, 4), -1.0), "a value outside"),
        (np.full((4, 4), 256), "a value outside"),
        (np.full((4, 4), -1, np.int8), "a value outside"),
        (np.full((4, 4), "a"), "type <U1"),
        (np.full((4, 4), 1j), "type complex128"),
        (np.zeros((16,)), "shape [16]"),
        (np.zeros((5, 5, 5)), "shape [5, 5, 5]"),
        (np.zeros((0, 5)), "an image of width or height 0"),
        (np.broadcast_to(np.uint8(0), (30_000, 20_000)), "a header that declares more"),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else None,
)
def test_arrays_that_have_no_conversion(array, found):
    with pytest.raises(DataError) as caught:
        from_array(array, GREY, "images[3]")
    assert caught.value.found == found
    assert "images[3]" in caught.value.expected
    assert caught.value.todo


def test_integers_of_32_bits_beyond_16_are_refused_in_a_file():
    with pytest.raises(DataError, match="65535"):
        to_pixels(encoded(solid("I", 70_000), "TIFF"), GREY, "it")


def test_a_mode_without_a_fixed_conversion_is_named():
    with pytest.raises(DataError) as caught:
        to_pixels(encoded(solid("LAB", (50, 0, 0)), "TIFF"), GREY, "it")
    assert caught.value.found == "mode LAB"


def huge_png(width, height):
    """A well-formed header that declares a size, and no pixels to speak of."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 20_000), (MAX_PIXELS + 1, 1)])
def test_a_600_megapixel_image_is_refused_by_its_header(size):
    with pytest.raises(DataError) as caught:
        to_pixels(huge_png(*size), GREY, "it")
    assert caught.value.found == "a header that declares more"


def test_pillow_with_its_own_check_off_still_refuses(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DataError, match="declares more"):
        to_pixels(huge_png(30_000, 20_000), GREY, "it")


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_opens_and_each_truncated_one_is_refused(kind):
    texture = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    data = encoded(Image.fromarray(texture), kind)
    assert to_pixels(data, GREY, "it").shape == GREY
    with pytest.raises(DataError):
        to_pixels(data[: len(data) // 3], GREY, "it")


def _damaged_tiff() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (28, 28), dtype=np.uint8)
    data = bytearray(encoded(Image.fromarray(noise), "TIFF", compression="tiff_lzw"))
    data[8:200] = np.random.default_rng(1).bytes(192)
    return bytes(data)


def test_a_library_in_c_tells_a_log_nothing_of_a_damaged_image(capfd):
    """libtiff writes to the descriptor itself: whoever reads a job's log could count the lines."""
    with (
        pytest.raises(Exception, match=r".*"),
        Image.open(io.BytesIO(_damaged_tiff())) as image,
    ):
        image.load()
    assert capfd.readouterr().err  # otherwise this test would say nothing
    with pytest.raises(DataError):
        to_pixels(_damaged_tiff(), GREY, "it")
    os.write(2, b"heard again")
    assert capfd.readouterr() == ("", "heard again")


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(DataError, match="cannot be decoded"):
        to_pixels(data, GREY, "it")


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.bool_, np.float32, np.int64]),
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=6),
        elements={"min_value": 0, "max_value": 1},
    )
)
def test_any_array_in_range_converts_or_is_refused_by_its_shape(array):
    try:
        pixels = from_array(array, RGB, "it")
    except DataError as error:
        assert error.found.startswith("shape")
        assert array.ndim == 3
        assert not {array.shape[0], array.shape[2]} & {1, 2, 3, 4}
    else:
        assert pixels.shape == RGB
        assert pixels.dtype == np.float32
        assert np.abs(pixels).max() <= 1


@given(
    kind=st.sampled_from(FORMATS),
    cuts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
)
def test_flipped_bytes_convert_or_are_refused_and_nothing_else(kind, cuts):
    texture = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    data = bytearray(encoded(Image.fromarray(texture), kind))
    for place, value in cuts:
        data[place % len(data)] = value
    try:
        pixels = to_pixels(bytes(data), GREY, "it")
    except DataError:
        return
    assert pixels.shape == GREY
    assert np.isfinite(pixels).all()
