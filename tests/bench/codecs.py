"""What does it cost to compress features, and what does it save?

    python -m tests.bench.codecs STORE

Writes the features of a store again, once with each codec, in the store's own chunks, and reads
them back: size against raw, MB/s of raw numbers each way (best of three; files in the page cache,
nothing forced onto the disk). Every variant ends in crc32c and must read back to the same bits.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import feature_codecs
from pipeline.features.store.units import CHUNK_ROWS

REPEATS = 3
CODECS: dict[str, list[Any]] = {
    "none (default)": feature_codecs("none"),
    "blosc (the option)": feature_codecs("blosc"),
    "blosc zstd-3 bitshuffle": [
        BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2),
        Crc32cCodec(),
    ],
    "blosc zstd-5 bitshuffle": [
        BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2),
        Crc32cCodec(),
    ],
    "zstd-3": [ZstdCodec(level=3), Crc32cCodec()],
}


def best_s(call: Callable[[], object]) -> float:
    """Return the shortest of a few runs in seconds."""
    spent = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return min(spent)


def write(path: Path, features: np.ndarray, codecs: list[Any]) -> None:
    """Write the features into a new array, over any that is there."""
    array = zarr.create_array(
        path,
        shape=features.shape,
        chunks=(CHUNK_ROWS, *features.shape[1:]),
        dtype=features.dtype,
        fill_value=float("nan"),
        compressors=codecs,
        overwrite=True,
    )
    array[:] = features


def compare(features: np.ndarray) -> None:
    """Print one line a codec."""
    whole = len(features) // CHUNK_ROWS * CHUNK_ROWS  # the last chunk is padded: no size to compare
    features = features[:whole]
    megabytes = features.nbytes / 1e6
    print(f"{features.shape} {features.dtype}, {megabytes:.1f} MB raw")
    for name, codecs in CODECS.items():
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "features"
            writing = best_s(lambda target=target, codecs=codecs: write(target, features, codecs))
            array = zarr.open_array(target, mode="r")
            reading = best_s(lambda array=array: array[:])
            assert np.array_equal(np.asarray(array[:]), features)
            chunks = (target / "c").rglob("*")
            size = sum(file.stat().st_size for file in chunks if file.is_file()) / 1e6
        print(
            f"{name:26} {size:7.2f} MB  {100 * size / megabytes:5.1f} %   "
            f"write {megabytes / writing:6.0f} MB/s   read {megabytes / reading:6.0f} MB/s"
        )


if __name__ == "__main__":
    opened = FeatureStore.open(Path(sys.argv[1]))
    for feature in opened.encoder.feature_names:
        compare(opened.read_features(feature))
