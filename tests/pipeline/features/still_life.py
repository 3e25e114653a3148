"""Datasets of few different frames: as many units as a test wants, and seconds to encode them."""

import zlib
from functools import cache
from pathlib import Path

import h5py
import numpy as np

from pipeline.datasets.hdf5.recording import RecordedEpisode, write_episode
from tests.pipeline.tiny import ACTION_DIM, FPS, MANIFEST, STATE_DIM, VIEWS

NUM_PICTURES = 4


@cache
def picture(number: int) -> np.ndarray:
    """One of a few 256x256 frames with structure; uint8 [256, 256, 3]."""
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    return coarse.repeat(32, axis=0).repeat(32, axis=1)


@cache
def packed(number: int) -> bytes:
    """A picture as gzip in HDF5 has it; level 9 is the fastest to read."""
    return zlib.compress(picture(number).tobytes(), 9)


def write_still_episode(
    folder: Path,
    number: int,
    length: int,
    changes: dict[int, int] | None = None,
    views: tuple[str, ...] = VIEWS,
) -> Path:
    """Write one episode whose step t shows picture (number + t + view) % NUM_PICTURES.

    `changes` gives some steps another picture in every view.
    """
    changes, held = changes or {}, [view for view in VIEWS if view in views]
    numbers = np.random.default_rng(number)
    path = folder / f"episode_{number}.hdf5"
    write_episode(
        path,
        RecordedEpisode(
            frames={view: np.zeros((length, 1, 1, 3), np.uint8) for view in held},
            state=numbers.normal(size=(length, STATE_DIM)).astype(np.float32),
            action=numbers.uniform(-1, 1, (length, ACTION_DIM)).astype(np.float32),
            env="still life",
            seed=number,
            fps=FPS,
        ),
    )
    shape = picture(0).shape
    with h5py.File(path, "r+") as file:  # the frames themselves, which are compressed already
        images = file["observations/images"]
        for view in held:
            del images[view]
            frames = images.create_dataset(
                view, (length, *shape), np.uint8, chunks=(1, *shape), compression="gzip"
            )
            for t in range(length):
                shown = changes.get(t, (number + t + VIEWS.index(view)) % NUM_PICTURES)
                frames.id.write_direct_chunk((t, 0, 0, 0), packed(shown))
    return path


def write_still_life(
    folder: Path, lengths: tuple[int, ...], views: tuple[str, ...] = VIEWS
) -> Path:
    """Write a dataset and return its manifest's path."""
    data = folder / "data"
    data.mkdir(parents=True)
    for number, length in enumerate(lengths):
        write_still_episode(data, number, length, views=views)
    manifest = folder / "still.toml"
    manifest.write_text(MANIFEST)
    return manifest


def break_frame(path: Path, view: str, step: int) -> None:
    """Overwrite one compressed frame with bytes that do not decompress."""
    with h5py.File(path, "r+") as file:
        file[f"observations/images/{view}"].id.write_direct_chunk((step, 0, 0, 0), b"not gzip")
