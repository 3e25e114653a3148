"""The seam between a dataset on disk and everything else: episodes of frames, state and action.

Knows no file format, no encoder and no store. One file beside this one reads each format.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, UInt8


@runtime_checkable  # the test run checks return types
class EpisodeReader(Protocol):
    """One recorded dataset, whatever its file format.

    Episodes are numbered 0..num_episodes-1 in a fixed order; the frame at step t was seen before
    the action at step t was taken.
    """

    view_names: tuple[str, ...]
    """Camera names, in the order of every array below."""
    fps: float
    """Control steps a second."""
    num_episodes: int
    """Number of episodes."""

    def episode_name(self, episode: int) -> str:
        """Name an episode for messages: the path of its file, and the place in it."""

    def episode_length(self, episode: int) -> int:
        """Return the number of control steps of an episode, at least 1."""

    def frame_size(self, episode: int, view: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels, without decoding one."""

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read RGB frames [start, stop) of one episode, values in [0, 255], one array a view.

        Raises:
            FrameReadError: a frame is absent or does not decode; never fewer rows than asked.
        """

    def state(self, episode: int) -> Float32[np.ndarray, "t s"]:
        """Read the robot state of every step, in the units of the manifest."""

    def action(self, episode: int) -> Float32[np.ndarray, "t a"]:
        """Read the action of every step, in the units of the manifest."""

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"]:
        """Return seconds since the episode's first step."""

    def close(self) -> None:
        """Close every open file."""
