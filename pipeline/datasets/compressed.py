"""Compressed still images, JPEG and PNG, as datasets keep them: decoded whole or refused.

Knows bytes and pixels; knows no dataset. Pillow decodes; what it lets pass is checked here first:
it does not compare the checksums of PNG, and it fills what a padded JPEG lacks with flat colour.
Damage inside a JPEG that ends properly cannot be told, because JPEG keeps no checksum.
Source: JPEG, ITU-T T.81, annex B (markers); PNG, W3C PNG 2nd edition, section 5 (chunks).
"""

import io
import re
import struct
import zlib
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from pipeline.datasets.causes import one_line
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import FrameReadError

MAX_PIXELS: Final = 64_000_000  # pixels of an image; twice those of an 8K camera, 192 MB as RGB
_JPEG_START: Final = b"\xff\xd8\xff"
_JPEG_END: Final = 0xD9
# What ends a stretch of entropy-coded data: no stuffed zero, no restart and no fill byte.
_JPEG_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_JPEG_SCAN: Final = 0xDA
_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_BROKEN: Final = (  # what Pillow raises for damaged files
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
)


def decode_image(data: bytes | UInt8[np.ndarray, " n"], where: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decode one JPEG or PNG image of 8 bits a channel to RGB, values in [0, 255].

    Args:
        data: the file's bytes; what follows its end is ignored, as the zeros with which arrays of
            JPEGs are padded.
        where: names the image in messages.

    Returns:
        The pixels; of a grey image the same value in all three channels.

    Raises:
        FrameReadError: the image is cut off, damaged, of another format, neither RGB nor grey, or
            larger than `MAX_PIXELS`.
    """
    content = _whole_file(bytes(data), where)
    with _opened(content, where) as image:
        try:
            return np.array(image.convert("RGB"))
        except _BROKEN as error:
            raise _unreadable(where, str(error)) from error


def image_size(data: bytes | UInt8[np.ndarray, " n"], where: str) -> tuple[int, int]:
    """Return (height, width) in pixels from the header of a JPEG or PNG image.

    Raises:
        FrameReadError: as of `decode_image`, as far as the header tells.
    """
    with _opened(bytes(data), where) as image:
        return image.height, image.width


def _opened(content: bytes, where: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
    except UnidentifiedImageError as error:
        raise _unreadable(where, f"{len(content)} bytes of something else") from error
    except _BROKEN as error:
        raise _unreadable(where, str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise _unreadable(where, f"a header of {image.height}x{image.width} pixels")
    if image.mode not in ("RGB", "L"):
        raise FrameReadError(
            f"{where}: expected an RGB or grey image of 8 bits a channel, found Pillow's mode "
            f"{image.mode}; name a colour camera, or convert its images"
        )
    return image


def _whole_file(content: bytes, where: str) -> bytes:
    """Return the bytes up to the file's own end, or raise where that is not there."""
    if content.startswith(_PNG_START):
        return content[: _end_of_png(content, where)]
    if content.startswith(_JPEG_START):
        return content[: _end_of_jpeg(content, where)]
    return content.rstrip(b"\0")


def _end_of_jpeg(content: bytes, where: str) -> int:
    """Walk the segments and scans up to the end's marker; a thumbnail's end lies in a segment."""
    start = len(_JPEG_START) - 1
    while start + 2 <= len(content) and content[start] == 0xFF:
        marker = content[start + 1]
        if marker == _JPEG_END:
            return start + 2
        if marker == 0xFF:  # a fill byte
            start += 1
            continue
        start += 2 + int.from_bytes(content[start + 2 : start + 4])
        if marker == _JPEG_SCAN:
            following = _JPEG_MARKER.search(content, start)
            start = following.start() if following else len(content)
    found = len(content.rstrip(b"\0"))
    raise _unreadable(where, f"a JPEG that is cut off, or damaged, of {found} bytes")


def _end_of_png(content: bytes, where: str) -> int:
    """Walk the chunks up to IEND, each with its length, type, data and checksum."""
    start = len(_PNG_START)
    while start + 12 <= len(content):
        stop = start + 12 + int.from_bytes(content[start : start + 4])
        if stop > len(content):
            break
        if zlib.crc32(content[start + 4 : stop - 4]) != int.from_bytes(content[stop - 4 : stop]):
            raise _unreadable(where, "a PNG whose checksum does not fit: it is damaged")
        if content[start + 4 : start + 8] == b"IEND":
            return stop
        start = stop
    raise _unreadable(where, f"a PNG that is cut off after {len(content)} bytes")


def _unreadable(where: str, found: str) -> FrameReadError:
    return FrameReadError(
        f"{where}: expected a whole JPEG or PNG image, found {one_line(found)}; copy "
        f"or record this episode again, or {LEAVE_OUT}"
    )
