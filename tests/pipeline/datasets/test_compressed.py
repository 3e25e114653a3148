"""Still images written by Pillow, and what can happen to their bytes."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.compressed import decode_image, image_size
from pipeline.errors import FrameReadError

RAMP = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)
PICTURE = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=-1)


def encode(pixels: np.ndarray, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **settings)
    return buffer.getvalue()


def test_png_is_bit_equal_and_jpeg_close_and_both_are_rgb():
    np.testing.assert_array_equal(decode_image(encode(PICTURE, "PNG"), "x"), PICTURE)
    decoded = decode_image(encode(PICTURE, "JPEG", quality=95), "x")
    assert decoded.dtype == np.uint8
    # Levels: JPEG at quality 95 of a smooth picture; swapped colors would be off by 80.
    assert np.abs(decoded.astype(int) - PICTURE).mean() < 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("num_zeros", [0, 5000])
def test_padding_with_zeros_is_ignored(kind, num_zeros):
    content = encode(PICTURE, kind)
    padded = np.frombuffer(content + bytes(num_zeros), np.uint8)
    np.testing.assert_array_equal(decode_image(padded, "x"), decode_image(content, "x"))
    assert image_size(padded, "x") == (60, 80)


def test_a_jpeg_that_its_exif_turns_is_refused_as_a_turned_video_is():
    """OpenCV obeys this tag and Pillow does not: one of them shows the picture lying."""
    exif, plain = Image.Exif(), encode(PICTURE, "JPEG")
    exif[0x112] = 1
    upright = encode(PICTURE, "JPEG", exif=exif)
    np.testing.assert_array_equal(decode_image(upright, "x"), decode_image(plain, "x"))
    exif[0x112] = 6
    for read in (decode_image, image_size):
        with pytest.raises(FrameReadError, match=r"upright image, found .*orientation 6"):
            read(encode(PICTURE, "JPEG", exif=exif), "x")


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_bytes_after_the_end_of_a_jpeg_are_ignored(settings):
    """As cameras append their own notes, or a buffer keeps the end of a longer picture."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = encode(noise, "JPEG", quality=95, **settings)
    older = encode(np.tile(noise, (2, 2, 1)), "JPEG", quality=95)
    for extra in (b"notes", older[len(content) :], b"\0\0x"):
        got = decode_image(content + extra, "x")
        np.testing.assert_array_equal(got, decode_image(content, "x"))


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture():
    content = encode(PICTURE, "JPEG", quality=95)
    thumbnail = encode(PICTURE[::4, ::4], "JPEG")
    notes = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2) + thumbnail
    whole = content[:2] + notes + content[2:]
    np.testing.assert_array_equal(decode_image(whole, "x"), decode_image(content, "x"))
    for length in (len(notes) + 2, len(whole) // 2, len(whole) - 1):
        with pytest.raises(FrameReadError, match="expected a complete"):
            decode_image(whole[:length], "x")


def test_a_progressive_jpeg_and_a_grey_image_decode():
    decode_image(encode(PICTURE, "JPEG", progressive=True), "x")
    for channel in np.moveaxis(decode_image(encode(RAMP, "PNG"), "x"), -1, 0):
        np.testing.assert_array_equal(channel, RAMP)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("num_zeros", [0, 5000])
@pytest.mark.parametrize("share", [0.02, 0.9, 0.995])
def test_an_image_that_is_cut_off_is_never_partly_grey(kind, num_zeros, share):
    """Pillow itself fills a padded, cut-off JPEG and a zeroed PNG, without a word."""
    content = encode(PICTURE, kind, **({"quality": 95} if kind == "JPEG" else {}))
    cut = content[: int(share * len(content))] + bytes(num_zeros)
    with pytest.raises(FrameReadError, match=r"^episode 3, step 7: expected a complete") as caught:
        decode_image(cut, "episode 3, step 7")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_png_with_a_changed_byte_is_refused(place):
    content = bytearray(
        encode(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8), "PNG")
    )
    content[int(place * len(content))] ^= 0x40
    with pytest.raises(FrameReadError):
        decode_image(bytes(content), "x")


@pytest.mark.parametrize(
    ("pixels", "found"), [(RAMP.astype(np.uint16) * 200, "depth of 16 bits"), (RAMP > 60, "1")]
)
def test_depth_and_masks_are_no_color_frames(pixels, found):
    with pytest.raises(FrameReadError, match=f"found {found}.*color camera"):
        decode_image(encode(pixels, "PNG"), "x")


def test_alpha_is_dropped_and_not_blended():
    with_alpha = np.dstack([PICTURE, RAMP])
    np.testing.assert_array_equal(decode_image(encode(with_alpha, "PNG"), "x"), PICTURE)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\xff\xd8\xff\xd9"])
def test_other_bytes_are_refused(content):
    for read in (decode_image, image_size):
        with pytest.raises(FrameReadError, match="expected a complete JPEG or PNG") as caught:
            read(content, "x")
        assert str(caught.value).count("expected a complete") == 1


def test_other_formats_of_pillow_are_not_tried():
    with pytest.raises(FrameReadError, match="something else"):
        decode_image(encode(PICTURE, "BMP"), "x")


def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken():
    content = bytearray(encode(PICTURE, "PNG"))
    content[16:24] = (60_000).to_bytes(4) * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    for read in (decode_image, image_size):
        with pytest.raises(FrameReadError, match="expected a complete"):
            read(bytes(content), "x")
