"""Videos of episodes: H.264 in MP4, all views side by side, as browsers play it."""

from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import UInt8

from policy.errors import MissingExtraError

ENCODER: Final = "libx264"
# One thread: each process also has a simulator.
OPTIONS: Final = {"crf": "23", "preset": "veryfast", "threads": "1"}


def require_encoder() -> None:
    """Find out before hours of episodes whether videos can be made.

    Raises:
        MissingExtraError: PyAV is not installed, or its build cannot encode H.264.
    """
    try:
        import av  # noqa: PLC0415 - optional

        av.Codec(ENCODER, "w")
    except (ImportError, ValueError) as error:
        raise MissingExtraError(
            f"videos need PyAV with {ENCODER}: run `pip install av`, or use --videos none"
        ) from error


class VideoFile:
    """A video that is being written; it appears under its name when it is complete."""

    def __init__(self, path: Path, frames_per_s: float):
        """Begin an MP4, whose folder is made, at a playback rate."""
        import av  # noqa: PLC0415 - optional

        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._container: Any = av.open(
            str(self._partial), "w", format="mp4", options={"movflags": "+faststart"}
        )
        rate = Fraction(frames_per_s).limit_denominator(1_000)
        self._stream: Any = self._container.add_stream(ENCODER, rate=rate, options=OPTIONS)
        self._stream.pix_fmt = "yuv420p"
        self._is_sized = False

    def add(self, pictures: UInt8[np.ndarray, "v h w 3"]) -> None:
        """Add a moment: every view, RGB, from left to right."""
        import av  # noqa: PLC0415 - optional

        wide = np.concatenate(list(pictures), axis=1)
        height, width = wide.shape[0] // 2 * 2, wide.shape[1] // 2 * 2  # 4:2:0 needs even sizes
        if not self._is_sized:
            self._stream.height, self._stream.width = height, width
            self._is_sized = True
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wide[:height, :width]), "rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self, *, keep: bool) -> None:
        """Finish the video, and keep or delete it."""
        self._container.mux(self._stream.encode())
        self._container.close()
        if keep:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()
