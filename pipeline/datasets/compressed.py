"""JPEG and PNG images of datasets, decoded whole or refused.

Damage inside a JPEG that ends properly is not found, because JPEG has no checksum.
"""

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import FrameReadError
from policy.errors import one_line

_COLOR_MODES: Final = ("RGB", "L", "RGBA")  # of Pillow; alpha is dropped
_ORIENTATION: Final = 0x112  # EXIF tag; 1 is upright. OpenCV obeys it, Pillow does not
_PNG_END: Final = b"IEND\xaeB`\x82"  # the last chunk, which Pillow does not require
_BROKEN: Final = (  # what Pillow raises for damaged files
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


def decode_image(data: bytes | UInt8[np.ndarray, " n"], where: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decode one JPEG or PNG image of 8 bits a channel to RGB, values in [0, 255].

    Bytes after its end, such as padding, are ignored; gray becomes three equal channels; alpha is
    dropped. `where` names the image in messages.

    Raises:
        FrameReadError: the image is cut off, damaged, of another format, or neither color nor gray.
    """
    # Without its padding, an image that was cut off ends too early, which Pillow notices.
    content = bytes(data).rstrip(b"\0")
    with _opened(content, where) as image:
        if image.format == "PNG" and _PNG_END not in content:
            raise ValueError(f"a PNG that is cut off after {len(content)} bytes")
        return np.array(image.convert("RGB"))


def decode_images(
    files: Iterable[bytes], names: Iterable[str], size: tuple[int, int]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Decode images of one size (height, width) to RGB; `names` names each in messages.

    Raises:
        FrameReadError: as `decode_image`, or an image is of another size.
    """
    images = []
    for data, where in zip(files, names, strict=True):
        image = decode_image(data, where)
        if image.shape[:2] != size:
            raise FrameReadError(
                f"{where}: expected {size[0]}x{size[1]} pixels as the first frame, found "
                f"{image.shape[0]}x{image.shape[1]}; {LEAVE_OUT}"
            )
        images.append(image)
    return np.stack(images) if images else np.empty((0, *size, 3), np.uint8)


def image_size(data: bytes | UInt8[np.ndarray, " n"], where: str) -> tuple[int, int]:
    """Return (height, width) in pixels from a header (FrameReadError: as `decode_image`)."""
    with _opened(bytes(data), where) as image:
        return image.height, image.width


@contextmanager
def _opened(content: bytes, where: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            turn = image.getexif().get(_ORIENTATION, 1) if image.format == "JPEG" else 1
            if turn != 1:
                raise FrameReadError(
                    f"{where}: expected an upright image, found one rotated by its EXIF metadata "
                    f"(orientation {turn}); store its pixels upright"
                )
            if image.mode not in _COLOR_MODES:
                found = "depth of 16 bits or more" if image.mode[0] in "IF" else image.mode
                raise FrameReadError(
                    f"{where}: expected an RGB or gray image of 8 bits per channel, found {found}; "
                    "use a color camera, or convert its images"
                )
            yield image
    except FrameReadError:
        raise
    except _BROKEN as error:
        is_other = isinstance(error, UnidentifiedImageError)
        found = f"{len(content)} bytes of something else" if is_other else one_line(error)
        raise FrameReadError(
            f"{where}: expected a complete JPEG or PNG image, found {found}; copy it again, or "
            f"{LEAVE_OUT}"
        ) from error
