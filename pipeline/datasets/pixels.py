"""Raw frames as arrays hold them, turned into RGB of 8 bits.

Arrays differ in where the channels are (last or first), in how many there are (RGB or RGBA, of
which alpha is dropped), and in what their numbers mean: bytes, or floating point of [0, 255] or
[0, 1]. The scale of floating point belongs to a whole camera: a frame alone may be black in both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Shaped, UInt8

from pipeline.errors import FrameReadError

LOOKS: Final = 16  # episodes that are looked at to decide a scale
Scale = Literal["levels", "unit"]
"""Of floating point: whole numbers in [0, 255], or [0, 1]."""
_TOP: Final[dict[Scale, int]] = {"levels": 255, "unit": 1}


@dataclass(frozen=True)
class PixelLayout:
    """How an array holds one frame."""

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
            scale: of floating point; `decide_scale` tells it.
            where: names the camera in messages.
            start: step of the first frame, for messages.

        Raises:
            FrameReadError: a floating-point value is none of its scale.
        """
        if self.channels_first:
            frames = np.moveaxis(frames, 1, -1)
        frames = frames[..., :3]
        if self.is_floating:
            frames = _as_bytes(frames, scale, where, start)
        return np.ascontiguousarray(frames)


def pixel_layout(shape: tuple[int, ...], dtype: Any) -> PixelLayout | None:
    """Tell by an array's header how it holds frames; None where it holds none.

    Args:
        shape: of the array: steps, then the axes of a frame.
        dtype: of its numbers.
    """
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


def kind_of_array(shape: tuple[int, ...], dtype: Any) -> str:
    """Name an array that holds no color frames, for messages."""
    is_single = len(shape) == 3 or (len(shape) == 4 and 1 in (shape[1], shape[3]))
    if is_single and (dtype.kind == "f" or (dtype.kind in "iu" and dtype.itemsize == 2)):
        bits = 8 * dtype.itemsize
        return f"{bits}-bit depth, {dtype} {shape}"
    return f"{dtype} {shape}"


def decide_scale(looks: Iterable[Shaped[np.ndarray, "t _ _ _"]]) -> Scale:
    """Tell the scale of a camera's floating-point frames from some of them.

    Args:
        looks: frames, read one after the other until they tell; all of 0 and 1, as black ones
            are, do not.
    """
    for frames in looks:
        if not np.isfinite(frames).all() or (frames > 1).any():
            return "levels"
        if (frames != np.floor(frames)).any():
            return "unit"
    return "levels"


def alpha_remarks(layouts: Mapping[str, PixelLayout | None]) -> tuple[str, ...]:
    """Say once of each camera with an alpha channel that it is dropped."""
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
