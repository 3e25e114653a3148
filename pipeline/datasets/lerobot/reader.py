"""Episodes of a LeRobot dataset, once it is known which rows and which stretch of video are theirs.

The versions differ in how they say that; the rest is the same and stands here.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/dataset_reader.py (facts only).
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt8

from pipeline.datasets.base import (
    DatasetFacts,
    DatasetPlace,
    EpisodeLabel,
    FormatSurvey,
    require_steps,
)
from pipeline.datasets.causes import one_line, why_unreadable
from pipeline.datasets.compressed import decode_image, image_size
from pipeline.datasets.lerobot.clock import step_seconds
from pipeline.datasets.lerobot.episodes import (
    EpisodeFiles,
    HeaderChecks,
    LocatedEpisodes,
    view_kinds,
)
from pipeline.datasets.lerobot.info import (
    INFO_PATH,
    LeRobotInfo,
    has_version,
    read_info,
    read_split,
    require_feature,
    survey_info,
)
from pipeline.datasets.lerobot.table import ParquetTable, StoredImage
from pipeline.datasets.manifest.paths import read_small_file
from pipeline.datasets.video import VideoDecoder, match_frames
from pipeline.errors import DatasetError, FrameReadError

SUCCESS_KEY: Final = "next.success"
DECODER_THREADS: Final = 2  # of all cameras together; each takes one, a single camera both


class LeRobotReader:
    """A LeRobot dataset whose episodes have been located; implements `FormatReader`."""

    reads_objects = False
    versions: ClassVar[tuple[str, ...]]
    """Versions of the layout that a subclass reads."""

    def __init__(self, place: DatasetPlace, info: LeRobotInfo, located: LocatedEpisodes) -> None:
        """Check every file of the wanted episodes by its header; no frame is decoded.

        Args:
            place: what to open.
            info: its `meta/info.json`.
            located: where each episode lies.

        Raises:
            DatasetError: a key is no such feature, or a file is missing, damaged or too short.
        """
        self._place, self._info, self._episodes = place, info, located.wanted
        self._num_indexed = located.num_indexed
        self._root = place.local_root
        self.fps: float | None = info.fps
        is_named = isinstance(info.robot_type, str) and info.robot_type not in ("", "unknown")
        robot = (f"robot: {one_line(info.robot_type)}",) if is_named else ()
        self.facts = DatasetFacts(remarks=robot)
        self._fps = info.fps
        self.num_episodes: int = len(located.wanted)
        self._kinds = view_kinds(place, info)
        self._videos = [key for key, kind in self._kinds.items() if kind == "video"]
        self._video_sizes = HeaderChecks(place, info, located).run()
        self._image_sizes: dict[str, tuple[int, int]] = {}
        self._table: ParquetTable | None = None
        self._decoders: dict[str, VideoDecoder] = {}
        self._positions: dict[str, tuple[int, Int64[np.ndarray, " t"]]] = {}  # key: episode, frames

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Tell by `meta/info.json` whether this is a LeRobot dataset of these versions."""
        return has_version(root, cls.versions)

    @classmethod
    def survey(cls, root: Path) -> FormatSurvey:
        """List the features of `meta/info.json`.

        Raises:
            DatasetError: it does not read.
        """
        return survey_info(root, read_info(root, cls.versions))

    def episode_number(self, episode: int) -> int:
        """Return the number that the files give the episode at this position."""
        return self._at(episode).number

    def episode_name(self, episode: int) -> str:
        """Name an episode for messages: the path of its rows' file, and its number."""
        files = self._at(episode)
        return f"{files.table}: episode {files.number}"

    def episode_length(self, episode: int) -> int:
        """Return the number of control steps of an episode, at least 1."""
        return self._at(episode).length

    def label(self, episode: int) -> EpisodeLabel:
        """Return the task that the index names, and whether any step is marked as success.

        Raises:
            DatasetError: the column `next.success` does not read.
        """
        files = self._at(episode)
        success = None
        if SUCCESS_KEY in self._info.features:
            marks = self._open_table(files).values_or_nan(SUCCESS_KEY)[self._rows(files)]
            success = None if np.isnan(marks).all() else bool(np.nansum(marks) > 0)
        return EpisodeLabel(success=success, task=files.task)

    def frame_size(self, episode: int, view_key: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels, from the header of its file.

        Raises:
            DatasetError: the first picture of an image column does not read.
        """
        files = self._at(episode)
        if self._kinds[view_key] == "video":
            return self._video_sizes[view_key][files.clips[view_key].path]
        if view_key not in self._image_sizes:
            where = f"{self.episode_name(0)}: {view_key}: frame 0"
            try:
                (image,) = self._images(0, view_key, 0, 1)
                size = image_size(self._image_bytes(image, where), where)
            except FrameReadError as error:
                raise DatasetError(str(error)) from error
            self._image_sizes[view_key] = size
        return self._image_sizes[view_key]

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read frames [start, stop) of one episode, one array a view key, as RGB.

        Reading in order decodes each frame of a video once, across episodes.

        Raises:
            FrameReadError: a step is out of range, or has no frame of its own, or it does not
                decode; never fewer rows than asked.
        """
        require_steps(start, stop, self.episode_length(episode), self.episode_name(episode))
        try:
            videos = self._video_frames(episode, start, stop)
            return tuple(
                videos[key] if key in videos else self._image_frames(episode, key, start, stop)
                for key in self._place.view_keys
            )
        except DatasetError as error:
            raise FrameReadError(str(error)) from error

    def numbers(self, episode: int, number_key: str) -> Float[np.ndarray, "t d"]:
        """Read one feature of every step, flattened; float32 stays so, integers become float64.

        Raises:
            DatasetError: the column does not read, or is not as wide as `meta/info.json` says.
        """
        files = self._at(episode)
        feature = require_feature(self._root, self._info, number_key, ("numbers",))
        values = self._open_table(files).numbers(number_key)[self._rows(files)]
        if values.shape[1] != feature.width:
            raise DatasetError(
                f"{self.episode_name(episode)}: {number_key}: expected width {feature.width} as "
                f"{INFO_PATH} says, found {values.shape[1]}; correct one of them"
            )
        return values

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"] | None:
        """Return seconds since the episode's first step.

        Raises:
            DatasetError: the rows do not read, or a time is not finite.
        """
        seconds = self._seconds(self._at(episode))
        return np.asarray(seconds - seconds[0])

    def frame_drift(self, episode: int, view_key: str) -> float:
        """Return the largest distance in seconds between a step and its frame; decodes nothing.

        Image columns have no times of their own, and no drift.

        Raises:
            FrameReadError: a step has no frame.
            DatasetError: the rows do not read.
        """
        files = self._at(episode)
        if self._kinds[view_key] != "video":
            return 0.0
        positions = self._frame_positions(episode, view_key)
        shown_s = self._decoder(episode, view_key).shown_s(self._view_name(episode, view_key))
        wanted_s = files.clips[view_key].start_s + self._seconds(files)
        return float(np.abs(shown_s[positions] - wanted_s).max())

    def subset(self, name: str) -> tuple[int, ...]:
        """Return the episode numbers of a split of `meta/info.json`, unwanted ones too.

        Raises:
            DatasetError: there is no such split; says which there are.
        """
        return read_split(self._root, self._info, name, self._num_indexed)

    def close(self) -> None:
        """Close every open file; reading again opens them again."""
        for decoder in self._decoders.values():
            decoder.close()
        self._decoders.clear()
        self._positions.clear()
        if self._table is not None:
            self._table.close()
            self._table = None

    def _at(self, episode: int) -> EpisodeFiles:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"episode {episode}, want 0..{self.num_episodes - 1}")
        return self._episodes[episode]

    def _view_name(self, episode: int, key: str) -> str:
        files = self._at(episode)
        return f"{files.clips[key].path}: episode {files.number}: {key}"

    def _open_table(self, files: EpisodeFiles) -> ParquetTable:
        if self._table is None or self._table.path != files.table:
            if self._table is not None:
                self._table.close()
                self._table = None
            self._table = ParquetTable(files.table)
        return self._table

    def _rows(self, files: EpisodeFiles) -> slice:
        """Find an episode's rows, and hold them against what its index says."""
        table = self._open_table(files)
        first, wanted = 0, np.arange(files.length)
        if files.first_index is not None:
            wanted += files.first_index
            first = int(np.searchsorted(table.integers("index"), files.first_index))
        rows = slice(first, first + files.length)
        if files.first_index is not None:
            found = table.integers("index")[rows]
            if not np.array_equal(found, wanted):
                raise DatasetError(
                    f"{files.table}: episode {files.number}: expected rows with index "
                    f"{wanted[0]} to {wanted[-1]} one after the other, found others or none; "
                    "download the files of this dataset again"
                )
        owners = table.integers("episode_index")[rows]
        if len(owners) != files.length or (owners != files.number).any():
            raise DatasetError(
                f"{files.table}: episode {files.number}: expected {files.length} rows with its "
                f"number in episode_index, found {(owners == files.number).sum()} of "
                f"{len(owners)}; download the files of this dataset again"
            )
        return rows

    def _seconds(self, files: EpisodeFiles) -> Float64[np.ndarray, " t"]:
        """Return the time of every step on the episode's own clock, which videos follow."""
        where = f"{files.table}: episode {files.number}"
        return step_seconds(self._open_table(files), self._rows(files), self._fps, where)

    def _decoder(self, episode: int, key: str) -> VideoDecoder:
        """Return the camera's one open file, another than before only for another path."""
        path = self._at(episode).clips[key].path
        decoder = self._decoders.get(key)
        if decoder is None or decoder.path != path:
            if decoder is not None:
                decoder.close()
            num_threads = DECODER_THREADS if len(self._videos) == 1 else 1
            decoder = VideoDecoder(path, self._video_sizes[key][path], num_threads)
            self._decoders[key] = decoder
        return decoder

    def _frame_positions(self, episode: int, key: str) -> Int64[np.ndarray, " t"]:
        """Match the whole episode at once, so that no request sees a part of the defects."""
        cached = self._positions.get(key)
        if cached is None or cached[0] != episode:
            files, where = self._at(episode), self._view_name(episode, key)
            shown_s, clip = self._decoder(episode, key).shown_s(where), files.clips[key]
            # Half a step of drift is usual in indices of many episodes.
            bounds = np.array([clip.start_s, clip.end_s]) - 0.5 / self._fps
            first, last = np.searchsorted(shown_s, bounds)
            wanted_s = clip.start_s + self._seconds(files)
            found = match_frames(shown_s[first:last], wanted_s, self._fps, where)
            cached = episode, found + first
            self._positions[key] = cached
        return cached[1]

    def _video_frames(
        self, episode: int, start: int, stop: int
    ) -> dict[str, UInt8[np.ndarray, "t h w 3"]]:
        """Decode all cameras side by side: more of a speed-up than threads within one video."""
        positions = {key: self._frame_positions(episode, key)[start:stop] for key in self._videos}
        decoders = {key: self._decoder(episode, key) for key in self._videos}

        def decode(key: str) -> UInt8[np.ndarray, "t h w 3"]:
            return decoders[key].frames(positions[key], self._view_name(episode, key), start)

        if len(positions) < 2:
            return {key: decode(key) for key in positions}
        with ThreadPoolExecutor(DECODER_THREADS) as threads:
            return dict(zip(positions, threads.map(decode, positions), strict=True))

    def _image_frames(
        self, episode: int, key: str, start: int, stop: int
    ) -> UInt8[np.ndarray, "t h w 3"]:
        size = self.frame_size(episode, key)
        frames = np.empty((stop - start, *size, 3), np.uint8)
        for row, image in enumerate(self._images(episode, key, start, stop)):
            where = f"{self.episode_name(episode)}: {key}: frame {start + row}"
            pixels = decode_image(self._image_bytes(image, where), where)
            if pixels.shape[:2] != size:
                raise FrameReadError(
                    f"{where}: expected {size[0]}x{size[1]} pixels as in "
                    f"{self.episode_name(0)}, found {pixels.shape[0]}x{pixels.shape[1]}; keep "
                    "one size to a camera"
                )
            frames[row] = pixels
        return frames

    def _images(self, episode: int, key: str, start: int, stop: int) -> list[StoredImage]:
        files = self._at(episode)
        first = self._rows(files).start
        return self._open_table(files).images(key, first + start, first + stop)

    def _image_bytes(self, image: StoredImage, where: str) -> bytes:
        if image.data is not None:
            return image.data
        assert image.path is not None
        outside = self._place.allow_outside
        try:
            return read_small_file(self._root, image.path, allow_outside=outside)
        except OSError as error:
            raise FrameReadError(
                f"{where}: expected an image file {image.path}, "
                + why_unreadable(self._root / image.path, error, "download it again")
            ) from error
