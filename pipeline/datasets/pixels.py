"""Raw frames of arrays, turned into RGB of 8 bits.

Channels are last or first, RGB or RGBA (alpha is dropped), of uint8 or of floating point in
[0, 255] or [0, 1]. This scale is decided per camera: a single frame may be black in both.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Shaped, UInt8

from pipeline.errors import DatasetError, FrameReadError

MAX_PIXELS: Final = 64_000_000  # per frame; twice those of an 8K camera, 192 MB as RGB
_MAX_LOOKS: Final = 16  # episodes of which a frame is read to decide a scale
Scale = Literal["levels", "unit"]
"""Of floating point: whole numbers in [0, 255], or [0, 1]."""
_TOP: Final[dict[Scale, int]] = {"levels": 255, "unit": 1}


@dataclass(frozen=True)
class PixelLayout:
    """The layout of one frame in an array."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    channels_first: bool
    has_alpha: bool
    is_floating: bool

    def to_rgb(
        self, frames: Shaped[np.ndarray, "t _ _ _"], scale: Scale, where: str, start: int
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """Return frames as RGB of 8 bits.

        Args:
            frames: of this layout.
            scale: of floating point; from `decide_scale`.
            where: names the camera in messages.
            start: step of the first frame, for messages.

        Raises:
            FrameReadError: a floating-point value is not of this scale.
        """
        if self.channels_first:
            frames = np.moveaxis(frames, 1, -1)
        frames = frames[..., :3]
        if self.is_floating:
            frames = _as_bytes(frames, scale, where, start)
        return np.ascontiguousarray(frames)


def pixel_layout(shape: tuple[int, ...], dtype: Any) -> PixelLayout | None:
    """Return the layout of an array of frames (first axis: steps); None for other arrays."""
    if len(shape) != 4 or not (dtype == np.uint8 or dtype.kind == "f"):
        return None
    for axis in (3, 1):
        if shape[axis] in (3, 4):
            height, width = (int(shape[at]) for at in (1, 2, 3) if at != axis)
            return PixelLayout(
                size=(height, width),
                channels_first=axis == 1,
                has_alpha=shape[axis] == 4,
                is_floating=dtype.kind == "f",
            )
    return None


def require_layout(shape: tuple[int, ...], dtype: Any, where: str, others: str) -> PixelLayout:
    """Return the layout of an array of frames, whose first axis are steps.

    `others` is what else the format accepts, for messages.

    Raises:
        DatasetError: the array contains no color frames, or they are too large.
    """
    layout = pixel_layout(shape, dtype)
    if layout is None:
        is_single = len(shape) == 3 or (len(shape) == 4 and 1 in (shape[1], shape[3]))
        is_depth = is_single and (dtype.kind == "f" or dtype in (np.uint16, np.int16))
        raise DatasetError(
            f"{where}: expected RGB frames (steps, height, width, 3) of uint8 or floating point"
            f"{others}, found {'depth, ' if is_depth else ''}{dtype} {shape}; use a color camera"
        )
    require_pixels(*layout.size, where)
    return layout


def require_pixels(height: int, width: int, where: str) -> None:
    """Refuse frames of no pixels or of more than `MAX_PIXELS`.

    Raises:
        DatasetError: the size is out of range.
    """
    if not 1 <= height * width <= MAX_PIXELS:
        raise DatasetError(
            f"{where}: expected frames of 1 to {MAX_PIXELS} pixels, found {height}x{width}; name "
            "another camera, or write the frames again"
        )


def decide_scale(
    read_frame: Callable[[int], Shaped[np.ndarray, "1 _ _ _"]], num_episodes: int
) -> Scale:
    """Decide the scale of a camera's floating-point frames from a frame of some episodes.

    Args:
        read_frame: reads a frame of an episode; frames of only 0 and 1 decide nothing.
        num_episodes: number of episodes.
    """
    for episode in range(min(_MAX_LOOKS, num_episodes)):
        with contextlib.suppress(DatasetError, FrameReadError):
            frame = read_frame(episode)
            if not np.isfinite(frame).all() or (frame > 1).any():
                return "levels"
            if (frame != np.floor(frame)).any():
                return "unit"
    return "levels"


def alpha_remarks(layouts: Mapping[str, PixelLayout | None]) -> tuple[str, ...]:
    """Return a remark per camera whose alpha channel is dropped."""
    return tuple(
        f"alpha of {key} is dropped"
        for key, layout in layouts.items()
        if layout and layout.has_alpha
    )


def _as_bytes(
    frames: Shaped[np.ndarray, "t h w 3"], scale: Scale, where: str, start: int
) -> UInt8[np.ndarray, "t h w 3"]:
    is_right = (frames >= 0) & (frames <= _TOP[scale])
    if scale == "levels":
        is_right &= frames == np.floor(frames)
    if not is_right.all():
        row, y, x, channel = np.argwhere(~is_right)[0]
        wanted = "whole numbers 0 to 255" if scale == "levels" else "numbers in [0, 1]"
        raise FrameReadError(
            f"{where}: expected {wanted} in frames, found {frames[row, y, x, channel]} at step "
            f"{start + row}; store the frames as uint8"
        )
    if scale == "unit":
        frames = np.rint(frames * np.float32(255))
    return frames.astype(np.uint8)
