"""Frames and numbers of formats that store them in arrays, whose first axis are the steps.

Channels of frames are last or first, RGB or RGBA (alpha is dropped), of uint8 or of floating point
in [0, 255] or [0, 1]. This scale is decided per camera: a single frame may be black in both.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from pipeline.datasets.base import DatasetConfig, FormatReader, as_floating
from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.compressed import decode_images, image_size
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError, FrameReadError

_MAX_LOOKS: Final = 16  # episodes of which a frame is read to decide a scale


@dataclass(frozen=True)
class PixelLayout:
    """The layout of one frame in an array."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    channels_first: bool
    has_alpha: bool
    is_floating: bool

    def to_rgb(
        self, frames: Shaped[np.ndarray, "t _ _ _"], top: int, where: str, start: int
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """Return frames as RGB of 8 bits.

        Args:
            frames: of this layout.
            top: of floating point, the value of full brightness: 255 (whole numbers) or 1.
            where: names the camera in messages.
            start: step of the first frame, for messages.

        Raises:
            FrameReadError: a floating-point value is not of this scale.
        """
        if self.channels_first:
            frames = np.moveaxis(frames, 1, -1)
        frames = frames[..., :3]
        if self.is_floating:
            is_right = (frames >= 0) & (frames <= top)
            if top == 255:
                is_right &= frames == np.floor(frames)
            if not is_right.all():
                step, *pixel = np.argwhere(~is_right)[0]
                wanted = "whole numbers 0 to 255" if top == 255 else "numbers in [0, 1]"
                raise FrameReadError(
                    f"{where}: expected {wanted} in frames, found {frames[step, *pixel]} at step "
                    f"{start + step}; store the frames as uint8"
                )
            frames = (frames if top == 255 else np.rint(frames * np.float32(255))).astype(np.uint8)
        return np.ascontiguousarray(frames)


def pixel_layout(array: Any) -> PixelLayout | None:
    """Return the layout of an array of color frames (h5py's or zarr's); None for other arrays."""
    shape, dtype = array.shape, array.dtype
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


def require_layout(array: Any, where: str) -> PixelLayout:
    """Return the layout of an array (DatasetError: it does not contain color frames)."""
    layout, shape, dtype = pixel_layout(array), array.shape, array.dtype
    if layout is None:
        is_single = len(shape) == 3 or (len(shape) == 4 and 1 in (shape[1], shape[3]))
        is_depth = is_single and (dtype.kind == "f" or dtype in (np.uint16, np.int16))
        raise DatasetError(
            f"{where}: expected RGB frames (steps, height, width, 3) of uint8 or floating point, "
            f"found {'depth, ' if is_depth else ''}{dtype} {shape}; use a color camera"
        )
    return layout


def number_width(array: Any) -> int:
    """Return the width of an array of numbers, (steps, width) or (steps,); 0 for other arrays."""
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiub":
        return 0
    return int(array.shape[1]) if array.ndim == 2 else 1


def require_numbers(array: Any, where: str) -> int:
    """Return the width of an array (DatasetError: it does not contain numbers)."""
    width = number_width(array)
    if not width:
        raise DatasetError(
            f"{where}: expected numbers of shape (steps, width) or (steps,), found {array.dtype} "
            f"{array.shape}; correct `key` in the manifest"
        )
    return width


def number_columns(arrays: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the columns `0`, `1`, ... of those arrays that contain numbers."""
    return {
        key: tuple(map(str, range(width)))
        for key, array in arrays.items()
        if (width := number_width(array))
    }


def alpha_remarks(layouts: Mapping[str, PixelLayout | None]) -> tuple[str, ...]:
    """Return a remark per camera whose alpha channel is dropped."""
    return tuple(
        f"alpha of {key} is dropped"
        for key, layout in layouts.items()
        if layout and layout.has_alpha
    )


class ArrayReader(FormatReader):
    """A dataset of arrays; subclasses open them."""

    damage: ClassVar[tuple[type[Exception], ...]]
    """What the format's library raises for damaged files."""

    def __init__(self, config: DatasetConfig) -> None:
        self._view_keys = config.view_keys
        self._tops: dict[str, int] = {}  # of floating-point cameras
        self._sizes: dict[tuple[int, str], tuple[int, int]] = {}  # of compressed frames

    @abstractmethod
    def _layout(self, episode: int, view_key: str) -> PixelLayout | None:
        """Return the layout of a view's frames; None for JPEG or PNG files."""

    @abstractmethod
    def _read(self, episode: int, key: str, start: int, stop: int) -> Shaped[np.ndarray, "t ..."]:
        """Read steps [start, stop) of an array; raises what is in `damage`."""

    def frame_size(self, episode: int, view_key: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels; if compressed, of the first one."""
        layout, at = self._layout(episode, view_key), (episode, view_key)
        if layout is not None:
            return layout.size
        if at not in self._sizes:
            data = self._rows(episode, view_key, 0, 1)[0]
            where = f"{self.episode_name(episode)}: {view_key}: frame 0"
            self._sizes[at] = image_size(bytes(data), where)
        return self._sizes[at]

    def numbers(self, episode: int, number_key: str) -> Float[np.ndarray, "t d"]:
        """Read one array of every step, as `FormatReader.numbers` does."""
        length = self.episode_length(episode)
        return as_floating(self._rows(episode, number_key, 0, length)).reshape(length, -1)

    def _frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        views = []
        for key in self._view_keys:
            rows, layout = self._rows(episode, key, start, stop), self._layout(episode, key)
            where = f"{self.episode_name(episode)}: {key}"
            if layout is None:
                names = (f"{where}: frame {step}" for step in range(start, stop))
                views.append(decode_images(map(bytes, rows), names, self.frame_size(episode, key)))
            else:
                if layout.is_floating and key not in self._tops:
                    self._tops[key] = self._decide_top(key)
                views.append(layout.to_rgb(rows, self._tops.get(key, 255), where, start))
        return tuple(views)

    def _decide_top(self, key: str) -> int:
        """Decide the scale of a camera; frames of only 0 and 1 decide nothing."""
        for episode in range(min(_MAX_LOOKS, self.num_episodes)):
            middle = self.episode_length(episode) // 2
            with contextlib.suppress(DatasetError):
                frame = self._rows(episode, key, middle, middle + 1)
                if not np.isfinite(frame).all() or (frame > 1).any():
                    return 255
                if (frame != np.floor(frame)).any():
                    return 1
        return 255

    def _rows(self, episode: int, key: str, start: int, stop: int) -> Shaped[np.ndarray, "t ..."]:
        of = self._at(episode)
        try:
            return self._read(episode, key, start, stop)
        except DatasetError:
            raise
        except self.damage as error:
            if stop - start > 1:  # find the step that is damaged
                for step in range(start, stop):
                    self._rows(episode, key, step, step + 1)
            why = why_unreadable(of.path, error, f"copy it again, or {LEAVE_OUT}")
            raise DatasetError(
                f"{of.name}: {key}: step {start}: expected readable values, {why}"
            ) from error
