"""MP4 files decoded forward: frames by their presentation times, each exactly or not at all.

A pass over the packets, which decodes nothing, first lists every frame's time; each step is matched
to a frame, and decoding returns that frame or fails. Decoding continues where it stopped, so that
reading in order decodes each frame once; it seeks from a key frame to go back or far ahead. Damage
that the decoder notices is an error; videos have no checksums, so some is not noticed. Colors: RGB
of 8 bits by the file's matrix and range; BT.601, FFmpeg's default, if the file states no matrix.
Source: LeRobot's data, huggingface/lerobot@7427f318:src/lerobot/datasets/video_utils.py (facts
only); presentation and decoding times, ISO/IEC 14496-12, section 8.6.1.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import av
import av.container
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float64, Int64, UInt8

from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.errors import DatasetError, FrameReadError
from policy.errors import one_line

_SEEK_GAIN: Final = 16  # frames; seeking a key frame costs about as much as decoding these
_ROUNDING_S: Final = 1e-6  # seconds; half a frame is compared after sums of float64
_MICROSECONDS: Final = 1_000_000  # a second in the unit of a container's duration


class VideoHeader(NamedTuple):
    """The header of a file."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    num_frames: int | None
    """Number of frames; None if unknown."""
    end_s: float | None
    """Seconds at which the last frame's time on screen ends; None if unknown."""


@dataclass(frozen=True)
class VideoClock:
    """Presentation times of a file's frames, in ticks of the file's own clock."""

    pts: Int64[np.ndarray, " n"]
    """Ascending presentation times of the shown frames."""
    key_pts: Int64[np.ndarray, " k"]
    """Ascending presentation times of the key frames, from which decoding can start."""
    key_dts: Int64[np.ndarray, " k"]
    """Decoding times of the key frames, for seeking."""
    seconds: Float64[np.ndarray, " n"]
    """`pts` in seconds."""


def read_header(path: Path) -> VideoHeader:
    """Read the header of an MP4 file (DatasetError: it is no video, or cut off)."""
    with _reading(path), _open(path) as container:
        stream = _video_stream(container)
        entries, duration = stream.index_entries, container.duration
        end = entries[-1].pos + entries[-1].size if len(entries) else 0
        if end > path.stat().st_size:
            raise _DamageError(f"that it is cut off before byte {end}")
        start = container.start_time or 0
        end_s = None if duration is None else (start + duration) / _MICROSECONDS
        return VideoHeader((stream.height, stream.width), stream.frames or None, end_s)


def read_clock(path: Path) -> VideoClock:
    """Read the times of all frames, in a pass over the packets that decodes nothing.

    DatasetError: the file does not read to its end.
    """
    shown: list[int] = []
    keys: list[tuple[int, int]] = []
    with _reading(path), _open(path) as container:
        stream = _video_stream(container)
        time_base = stream.time_base
        for packet in container.demux(stream):
            if packet.size == 0:  # the end of the stream
                continue
            if packet.pts is None or packet.dts is None or packet.is_corrupt:
                raise _DamageError(f"a packet cut off or without time after {len(shown)} frames")
            if packet.is_keyframe:
                keys.append((packet.pts, packet.dts))
            if not packet.is_discard:  # an edit list hides it
                shown.append(packet.pts)
        pts = np.unique(np.array(shown, np.int64))
        if len(pts) != len(shown):
            raise _DamageError(f"{len(shown) - len(pts)} frames at the same time as another")
        assert time_base is not None, "an MP4 has a clock"
    key_pts, key_dts = np.array(sorted(keys), np.int64).reshape(-1, 2).T
    seconds = pts.astype(np.float64) * time_base.numerator / time_base.denominator
    return VideoClock(pts=pts, key_pts=key_pts, key_dts=key_dts, seconds=seconds)


def match_frames(
    shown_s: Float64[np.ndarray, " n"], wanted_s: Float64[np.ndarray, " t"], fps: float, where: str
) -> Int64[np.ndarray, " t"]:
    """Find the frame of every step: the nearest one, no farther than half a step.

    Args:
        shown_s: ascending seconds at which the frames of a file are shown.
        wanted_s: seconds at which the steps were taken, on the same clock.
        fps: steps per second.
        where: names file, episode and view in messages.

    Returns:
        Positions in `shown_s`, strictly ascending: no frame serves two steps.

    Raises:
        FrameReadError: a step has no frame of its own.
    """
    if not len(shown_s):
        raise FrameReadError(f"{where}: expected frames, found none; download it again")
    middles = (shown_s[:-1] + shown_s[1:]) / 2
    found = np.searchsorted(middles, wanted_s).astype(np.int64)
    distance = np.abs(shown_s[found] - wanted_s)
    # `not <=` so that NaN counts as too far
    unmatched = np.flatnonzero(~(distance <= 0.5 / fps + _ROUNDING_S))
    if len(unmatched):
        step = int(unmatched[0])
        raise FrameReadError(
            f"{where}: frame {step}: expected a frame within {0.5 / fps:.4g} s of "
            f"{wanted_s[step]:.4f} s, found the nearest of {len(shown_s)} at "
            f"{shown_s[found[step]]:.4f} s ({len(unmatched)} of {len(wanted_s)} steps have none); "
            "compare the video's rate with `fps` and the column `timestamp`, download it again, "
            f"or {LEAVE_OUT}"
        )
    shared = np.flatnonzero(np.diff(found) < 1)
    if len(shared):
        step = int(shared[0]) + 1
        raise FrameReadError(
            f"{where}: frame {step}: expected a frame later than that of step {step - 1}, found "
            f"the one at {shown_s[found[step]]:.4f} s for both; download it again, or {LEAVE_OUT}"
        )
    return found


class VideoDecoder:
    """One MP4 file, decoded forward; opened at the first read."""

    def __init__(self, path: Path, size: tuple[int, int], num_threads: int) -> None:
        """Store the path, and the (height, width) in pixels of its frames; nothing is opened.

        The number of threads that decode changes no pixel.
        """
        self.path = path
        self._size, self._num_threads = size, num_threads
        self._to_rgb = VideoReformatter()  # one for all frames: creating it is slow
        self._read_clock: VideoClock | None = None
        self._container: av.container.InputContainer | None = None
        self._coming: Iterator[av.VideoFrame] = iter(())
        self._last_pts: int | None = None  # of the frame decoded last; None at a fresh start

    @property
    def clock(self) -> VideoClock:
        """The times of all frames (DatasetError: the file does not read to its end)."""
        if self._read_clock is None:
            self._read_clock = read_clock(self.path)
        return self._read_clock

    def frames(
        self, positions: Int64[np.ndarray, " t"], where: str, first_step: int
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """Decode frames by position in the order of presentation, as RGB, values in [0, 255].

        Args:
            positions: strictly ascending positions in `clock.seconds`.
            where: names file, episode and view in messages.
            first_step: the step of the first position, for messages.

        Raises:
            FrameReadError: a frame does not decode, or is of another size than in the header.
            DatasetError: as `clock`.
        """
        pts = self.clock.pts[positions]
        frames = np.empty((len(pts), *self._size, 3), np.uint8)
        for row in range(len(pts)):
            step = f"{where}: frame {first_step + row}"
            frame = self._frame_at(int(pts[row]), step)
            size = (frame.height, frame.width)
            if size != self._size or frame.rotation % 360:
                raise FrameReadError(
                    f"{step}: expected an upright frame of {self._size[0]}x{self._size[1]} pixels "
                    f"as in the file's header, found {size[0]}x{size[1]}, which players rotate by "
                    f"{frame.rotation} degrees; encode the video again"
                )
            rgb = self._to_rgb.reformat(frame, format="rgb24", threads=1)
            frames[row] = rgb.to_ndarray()
        return frames

    def close(self) -> None:
        """Close the file; reading opens it again."""
        self._coming = iter(())
        self._last_pts = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def _frame_at(self, pts: int, where: str) -> av.VideoFrame:
        """Decode up to the frame shown at `pts`; from the file's start if seeking fails."""
        cause: Exception | None = None
        try:
            target = self._seek_target(pts)
            if target is not None:
                # Frames around a key frame may depend on those before it.
                with suppress(av.FFmpegError):
                    self._begin(target)
                    if frame := self._advance(pts):
                        return frame
                self.close()
            if self._container is None:
                self._begin()
            if frame := self._advance(pts):
                return frame
        except (av.FFmpegError, OSError) as error:
            cause = error
        self.close()
        raise FrameReadError(
            f"{where}: expected a readable frame, found "
            f"{one_line(cause or 'that the decoder skipped it or marked it as damaged')}; download "
            f"the video again, or {LEAVE_OUT}"
        ) from cause

    def _seek_target(self, pts: int) -> int | None:
        """Return the decoding time of the key frame to seek; None to continue."""
        clock = self.clock
        key = int(np.searchsorted(clock.key_pts, pts, side="right")) - 1
        last = -1 if self._last_pts is None else self._last_pts
        is_behind = self._last_pts is not None and pts <= self._last_pts
        if key < 0:
            if is_behind:
                self.close()
            return None
        here, there = np.searchsorted(clock.pts, [last, clock.key_pts[key]])
        return int(clock.key_dts[key]) if is_behind or there - here > _SEEK_GAIN else None

    def _begin(self, dts: int | None = None) -> None:
        """Continue decoding at the key frame with this decoding time, or at the file's start."""
        if self._container is None:
            self._container = _open(self.path)
            stream = _video_stream(self._container)
            stream.thread_count, stream.thread_type = self._num_threads, "AUTO"
            # Otherwise a damaged frame is silently patched from its neighbors.
            stream.codec_context.options = {"err_detect": "explode"}
        stream = self._container.streams.video[0]
        if dts is not None:
            self._container.seek(dts, stream=stream)
        self._coming, self._last_pts = self._container.decode(stream), None

    def _advance(self, pts: int) -> av.VideoFrame | None:
        """Decode forward to the frame shown at `pts`; None if it is missing or damaged."""
        for frame in self._coming:
            if frame.pts is None:
                continue
            self._last_pts = frame.pts
            if frame.pts >= pts:
                return frame if frame.pts == pts and not frame.is_corrupt else None
        return None


class _DamageError(Exception):
    """A defect of a file that FFmpeg does not report."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError, _DamageError) as error:
        otherwise = "download or copy the file again"
        raise DatasetError(
            f"{path}: expected a complete MP4 video, {why_unreadable(path, error, otherwise)}"
        ) from error


def _open(path: Path) -> av.container.InputContainer:
    return av.open(str(path), format="mp4")


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise _DamageError("a file without a video stream")
    return container.streams.video[0]
