"""State, action and time of every control step: as arrays, or passing by in pieces.

Knows episodes of numbers; no frames and no zarr. What a store is made from may be larger than the
memory that whoever makes it should need: 18.9 million steps of DROID are 1.3 GB.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int64

from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.features.store.units import cut

STEP_ARRAYS: Final = {
    "state": ("step", "state"),
    "action": ("step", "action"),
    "timestamp": ("step",),
    "episode_ends": ("episode",),
}
"""The arrays beside the features, and what their axes are."""
PIECE_ROWS: Final = 65_536  # control steps; about 1 MB of a 4-wide state


@runtime_checkable  # the test run checks argument types
class Steps(Protocol):
    """Everything of a dataset but its frames, all episodes one after the other."""

    @property
    def episode_ends(self) -> Int64[np.ndarray, " e"]:
        """Row after each episode's last step."""

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """Give one of `STEP_ARRAYS` in pieces of `PIECE_ROWS` rows; the last one may be short.

        Raises:
            DatasetError: some numbers cannot be used as they are.
        """


@dataclass(frozen=True)
class StepArrays:
    """All steps in memory."""

    state: Float32[np.ndarray, "n s"]
    """Robot state of every step, in the manifest's units."""
    action: Float32[np.ndarray, "n a"]
    """Action of every step, in the manifest's units."""
    timestamp: Float64[np.ndarray, " n"]
    """Seconds since the episode's first step."""
    episode_ends: Int64[np.ndarray, " e"]
    """Row after each episode's last step."""

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """Cut one of the arrays; see `Steps.pieces`."""
        array: np.ndarray = getattr(self, name)
        return (array[rows] for rows in cut(0, len(array), PIECE_ROWS))


class RecordedSteps:
    """The steps of a dataset, read whenever they are asked for."""

    def __init__(self, reader: ManifestReader):
        """Learn where the episodes end; no numbers are read yet."""
        lengths = map(reader.episode_length, range(reader.num_episodes))
        self.episode_ends: Int64[np.ndarray, " e"] = np.cumsum([*lengths], dtype=np.int64)
        self._reader = reader

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """Read an array; see `Steps.pieces`."""
        if name == "episode_ends":
            return _recut([self.episode_ends])
        read = {
            "state": self._reader.state,
            "action": self._reader.action,
            "timestamp": self._reader.timestamp,
        }[name]
        return _recut(map(read, range(self._reader.num_episodes)))


def _recut(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    held: list[np.ndarray] = []
    num_held = 0
    for part in parts:
        held.append(part)
        num_held += len(part)
        if num_held >= PIECE_ROWS:
            joined, whole = np.concatenate(held), num_held - num_held % PIECE_ROWS
            yield from (joined[rows] for rows in cut(0, whole, PIECE_ROWS))
            held, num_held = [joined[whole:]], num_held - whole
    if num_held:
        yield np.concatenate(held)
