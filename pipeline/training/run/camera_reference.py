"""What the cameras showed in training: features of episode starts and of steps all over it.

Knows the cached features of the training split; nothing about live frames, which
`pipeline/rollout/gate/camera_check.py` compares with these. All of it is copied, nothing computed,
so that the same stores give the same bytes on every machine.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float16, Int64
from torch import Tensor

from pipeline.training.data.windows import WindowData

MAX_STARTS: Final = 200  # episodes; 0.9 MB of three views
MAX_ROWS: Final = 2_000  # control steps; 9 MB of three views


@dataclass(frozen=True)
class CameraReference:
    """Cached features of the training split, of the frames as they were recorded."""

    starts: Float16[np.ndarray, "n v 768"]
    """First steps of training episodes, evenly spread over them, each of another episode."""
    rows: Float16[np.ndarray, "m v 768"]
    """Steps evenly spread over all training episodes."""
    row_episodes: Int64[np.ndarray, " m"]
    """Which episode each of `rows` belongs to."""

    def digest(self) -> str:
        """Return the sha256 of everything the reference says."""
        digest = hashlib.sha256(f"{self.starts.shape} {self.rows.shape}".encode())
        for array in (self.starts, self.rows, self.row_episodes):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def take_reference(data: WindowData) -> CameraReference:
    """Copy the reference out of a training's data; held-out episodes give nothing."""
    starts, rows = reference_rows(data)
    return CameraReference(
        starts=data.cached_features(starts),
        rows=data.cached_features(rows),
        row_episodes=data.episode_of[rows].numpy(),
    )


def reference_rows(data: WindowData) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " m"]]:
    """Return the rows that the reference is copied from: `starts` and `rows`."""
    episodes = data.episode_of[data.train_rows]
    is_first = torch.ones_like(episodes, dtype=torch.bool)
    is_first[1:] = episodes[1:] != episodes[:-1]
    starts = _evenly(data.train_rows[is_first], MAX_STARTS)
    return starts, _evenly(data.train_rows, MAX_ROWS)


def _evenly(rows: Int64[Tensor, " n"], at_most: int) -> Int64[Tensor, " m"]:
    """Return up to `at_most` of the rows, evenly spread, the first and the last among them."""
    count = min(len(rows), at_most)
    return rows[torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).round().long()]
