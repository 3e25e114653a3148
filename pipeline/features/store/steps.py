"""State, action and time of every control step, all episodes one after the other, in memory.

The 18.9 million steps of DROID take 1.3 GB; training holds them in memory too.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, Int64

from pipeline.datasets.manifest.reader import ManifestReader

STEP_ARRAYS: Final = {
    "state": ("step", "state"),
    "action": ("step", "action"),
    "timestamp": ("step",),
    "episode_ends": ("episode",),
}
"""The arrays of a store that hold no features, and the names of their axes."""


@dataclass(frozen=True)
class StepArrays:
    """Everything of a dataset but its frames."""

    state: Float32[np.ndarray, "n s"]
    """Robot state of every step, in the manifest's units."""
    action: Float32[np.ndarray, "n a"]
    """Action of every step, in the manifest's units."""
    timestamp: Float64[np.ndarray, " n"]
    """Seconds since the episode's first step."""
    episode_ends: Int64[np.ndarray, " e"]
    """Row after each episode's last step."""

    @classmethod
    def recorded(cls, reader: ManifestReader) -> "StepArrays":
        """Read the steps of a dataset (DatasetError: some numbers cannot be used as they are)."""
        episodes = range(reader.num_episodes)
        return cls(
            state=np.concatenate([reader.state(episode) for episode in episodes]),
            action=np.concatenate([reader.action(episode) for episode in episodes]),
            timestamp=np.concatenate([reader.timestamp(episode) for episode in episodes]),
            episode_ends=np.cumsum([*map(reader.episode_length, episodes)], dtype=np.int64),
        )
