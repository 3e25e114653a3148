"""From a dataset's files to frames that the encoder takes: decoded, resized, augmented, hashed."""

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from tqdm import tqdm

from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import DatasetError, FrameReadError
from pipeline.features.encode.stages import ahead
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import EpisodeSlice, episode_slices
from policy.images import augment_images, draw_augmentation, resize_images

PIECE_STEPS: Final = 32  # control steps read at once; 19 MB of three views
PIECES_AHEAD: Final = 3


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one unit."""

    unit: int
    start: int
    stop: int


@dataclass(frozen=True)
class PieceFrames:
    """The frames of a piece, in the size that the encoder takes."""

    frames: UInt8[np.ndarray, "n s 256 256 3"]
    hashes: UInt64[np.ndarray, "n s"]
    seconds: float
    """Time that reading them took."""


class FrameSource:
    """Reads the frames of rows, hashed, in the size that the encoder takes."""

    def __init__(
        self, reader: ManifestReader, episode_ends: Int64[np.ndarray, " e"], num_variants: int
    ):
        """Prepare; nothing is read yet.

        Args:
            reader: of a dataset.
            episode_ends: its row after each episode's last.
            num_variants: augmented variants of every frame.
        """
        self._reader = reader
        self._episode_ends = episode_ends
        self._num_variants = num_variants

    def read(self, piece: Piece) -> PieceFrames:
        """Return a piece's frames and their hashes.

        Raises:
            FrameReadError, DatasetError: a frame does not read.
        """
        started = time.perf_counter()
        frames = np.concatenate(
            [
                read_slots(self._reader, part, num_variants=self._num_variants)
                for part in episode_slices(self._episode_ends, piece.start, piece.stop)
            ]
        )
        hashes = hash_frames(frames)
        return PieceFrames(frames, hashes, time.perf_counter() - started)

    def changed_units(self, store: FeatureStore, units: Iterable[int]) -> set[int]:
        """Read the frames of committed units again; return the units that hold other pixels.

        A unit whose frames do not read counts as changed: encoding it says why.
        """
        held: tuple[int, np.ndarray] = (-1, np.zeros(0))
        rows = {unit: store.unit_rows(unit) for unit in units}
        total = sum(stop - start for start, stop in rows.values())
        pieces = (piece for unit in rows for piece in cut_pieces(unit, *rows[unit]))
        changed = set()
        with tqdm(total=total, desc="compare", unit="step", disable=None) as progress:
            for piece, frames in ahead(self.read, pieces, PIECES_AHEAD):
                progress.update(piece.stop - piece.start)
                first = rows[piece.unit][0]
                if held[0] != piece.unit:
                    held = piece.unit, store.read_unit_hashes(piece.unit)
                expected = held[1][piece.start - first : piece.stop - first]
                try:
                    is_same = np.array_equal(frames.result().hashes, expected)
                except (FrameReadError, DatasetError):
                    is_same = False
                if not is_same:
                    changed.add(piece.unit)
        return changed


def read_slots(
    reader: ManifestReader, part: EpisodeSlice, *, num_variants: int
) -> UInt8[np.ndarray, "n s 256 256 3"]:
    """Read steps of an episode, every view as recorded and then every view of each variant.

    Frames have the size that the encoder takes. A variant is one crop and color change for a view
    of an episode; it depends on the numbers of source, episode, view and variant alone, so that a
    dataset that grows keeps its variants.

    Raises:
        FrameReadError, DatasetError: a frame does not read.
    """
    names = reader.source_of[part.episode], reader.episode_number(part.episode)
    views = reader.frames(part.episode, part.start, part.stop)
    plain = [resize_images(view, reader.fit) for view in views]
    variants = [
        augment_images(frames, draw_augmentation(*names, view, variant))
        for variant in range(1, num_variants + 1)
        for view, frames in enumerate(plain)
    ]
    return np.stack([*plain, *variants], axis=1)


def hash_frames(frames: UInt8[np.ndarray, "n v h w 3"]) -> UInt64[np.ndarray, "n s"]:
    """Return a 64-bit BLAKE2b of every frame's pixels."""
    hashes = [
        hashlib.blake2b(np.ascontiguousarray(frame).data, digest_size=8).digest()
        for step in frames
        for frame in step
    ]
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(frames.shape[:2])


def cut_pieces(unit: int, first: int, last: int) -> Iterator[Piece]:
    """Cut the rows [first, last) of a unit into pieces."""
    for start in range(first, last, PIECE_STEPS):
        yield Piece(unit, start, min(start + PIECE_STEPS, last))
