"""How large a compressed Zarr chunk becomes, looked at before anything is unpacked into memory.

Codecs unpack whatever a chunk holds, however small its file is, and Blosc reads on in foreign
memory where its file was cut off. Knows bytes and the ids of codecs; knows no arrays and no zarr.
Source: Blosc/c-blosc, README_CHUNK_FORMAT.rst (`nbytes` at 4 and `cbytes` at 12, 32 bits,
little-endian); Zstandard, RFC 8878, section 3.1.1.1 (frame header); numcodecs puts the size before
LZ4 data as 32 bits, little-endian.
"""

import bz2
import lzma
import zlib
from typing import Any, Final

HEADER_BYTES: Final = 32  # of a chunk's beginning, in which Blosc, Zstandard and LZ4 say the size
STREAMS: Final = frozenset({"zlib", "gzip", "bz2", "lzma"})
"""Codecs that say no size: the whole chunk is needed to tell."""
COMPRESSORS: Final = STREAMS | {"blosc", "zstd", "lz4"}
_PACKAGES: Final = {  # ids that datasets use, and what brings them; a file must not name packages
    f"imagecodecs_{name}": "imagecodecs imagecodecs-numcodecs"
    for name in ("avif", "jpeg", "jpeg2k", "jpegls", "jpegxl", "png", "webp")
}
_ZSTD_START: Final = b"\x28\xb5\x2f\xfd"
_PIECE: Final = 2**20  # bytes that are unpacked at once to count them


def package_of(codec_id: str) -> str | None:
    """Return what to pass to `pip install` for a codec, or None for a codec nobody knows."""
    return _PACKAGES.get(codec_id)


def require_fitting(codec: Any, content: bytes, size: int, limit: int) -> None:
    """Refuse a chunk that unpacks to more than it may, or was cut off where nobody would notice.

    Args:
        codec: of numcodecs, which made the chunk; None where nothing did.
        content: the chunk's file, of which `HEADER_BYTES` do unless the codec is one of `STREAMS`.
        size: bytes of the chunk's file.
        limit: bytes that the chunk may unpack to.

    Raises:
        ValueError: it does not fit, or is no chunk of this codec.
    """
    name = getattr(codec, "codec_id", None)
    if name not in COMPRESSORS:
        return
    if name == "blosc":
        stated = int.from_bytes(content[12:16], "little")
        if len(content) < 16 or stated != size:
            found = f"a header of {stated} bytes" if len(content) >= 16 else "no header"
            raise ValueError(f"{size} bytes of Blosc with {found}")
        unpacked = int.from_bytes(content[4:8], "little")
    elif name == "zstd":
        unpacked = _zstd_size(content)
    elif name == "lz4":
        unpacked = int.from_bytes(content[:4], "little")
    else:
        unpacked = _unpacked_size(codec, content, limit)
    if unpacked > limit:
        raise ValueError(f"a chunk that unpacks to more than its {limit} bytes")


def _zstd_size(content: bytes) -> int:
    if not content.startswith(_ZSTD_START) or len(content) < 5:
        raise ValueError("no Zstandard frame")
    flags = content[4]
    is_single = bool(flags & 0x20)
    start = 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]  # after window and dictionary
    width = (int(is_single), 2, 4, 8)[flags >> 6]
    if not width or len(content) < start + width:
        raise ValueError("a Zstandard frame that does not say its size")
    return int.from_bytes(content[start : start + width], "little") + (256 if width == 2 else 0)


def _unpacked_size(codec: Any, content: bytes, limit: int) -> int:
    """Unpack piece by piece, and stop where there is more than there may be."""
    count = 0
    if codec.codec_id in ("zlib", "gzip"):
        inflate = zlib.decompressobj(31 if codec.codec_id == "gzip" else 15)
        while content and not inflate.eof and count <= limit:
            count += len(inflate.decompress(content, _PIECE))
            content = inflate.unconsumed_tail
        rest = inflate.unused_data
    else:
        stream: Any = bz2.BZ2Decompressor()
        if codec.codec_id == "lzma":
            stream = lzma.LZMADecompressor(codec.format, filters=codec.filters)
        piece = stream.decompress(content, _PIECE)
        while piece and count <= limit:
            count += len(piece)
            piece = b"" if stream.eof else stream.decompress(b"", _PIECE)
        rest = stream.unused_data if stream.eof else b""
    if rest:  # of which the codec may make another chunk, to any length
        raise ValueError(f"{len(rest)} bytes after the end of the chunk")
    return count
