"""How much a file of a dataset may claim, before memory is taken for it.

Datasets are downloaded, and their headers are not trusted: a few kilobytes can name any size. The
limits lie far above what recordings of robots need.
"""

from typing import Final

MAX_PIXELS: Final = 64_000_000  # of a frame; twice those of an 8K camera, 192 MB as RGB
MAX_COLUMNS: Final = 4096  # of an array of state or action; the largest known have some hundreds
MAX_NUMBERS: Final = 125_000_000  # of one array; 14 columns of 49 hours at 50 Hz; 1 GB as float64
MAX_METADATA_BYTES: Final = 2**28  # of a header or an index; one of a million episodes has 200 MB
MAX_CHUNK_BYTES: Final = 2**28  # of one unpacked HDF5 chunk of frames; 291 frames of 480x640
