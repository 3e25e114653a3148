"""Small, blurred copies of the pictures that episodes begin with, to recognize the cameras by.

A copy keeps what a mistake of the cameras changes (which way is up, which color is red, which view
it is) and little of what differs between episodes. It depends on pixels alone, on no encoder.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int64, UInt8

from policy.spec import FRAME_SIZE

MAX_STARTS: Final = 64  # episodes per store; 0.6 MB of three views
SIZE: Final = 32  # pixels, both sides


@dataclass(frozen=True)
class StartFrames:
    """Small copies of the first frames of some episodes."""

    frames: UInt8[np.ndarray, "k v 32 32 3"]
    """Every view, RGB in [0, 255]; see `shrink_frames`."""
    episodes: Int64[np.ndarray, " k"]

    def digest(self) -> str:
        """Return the sha256 of frames and episodes."""
        digest = hashlib.sha256(f"{self.frames.shape}".encode())
        digest.update(np.ascontiguousarray(self.frames).tobytes())
        digest.update(np.ascontiguousarray(self.episodes).tobytes())
        return digest.hexdigest()


def spread_evenly(total: int, at_most: int) -> Int64[np.ndarray, " k"]:
    """Return up to `at_most` of the numbers from 0 to `total - 1`, first and last included."""
    return np.linspace(0, total - 1, min(total, at_most)).round().astype(np.int64)


def shrink_frames(frames: UInt8[np.ndarray, "*n 256 256 3"]) -> UInt8[np.ndarray, "*n 32 32 3"]:
    """Average blocks of 8x8 pixels, rounded half up: the same bits on every machine."""
    height, width = (side // SIZE for side in FRAME_SIZE)
    blocks = frames.reshape(*frames.shape[:-3], SIZE, height, SIZE, width, 3)
    pixels = height * width
    sums = blocks.sum(axis=(-4, -2), dtype=np.uint32)
    return np.asarray((sums + pixels // 2) // pixels, np.uint8)
