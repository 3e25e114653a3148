"""Episodes of a LeRobot dataset, once their rows and clips are located; common to all versions.

Source: huggingface/lerobot@7427f318:src/lerobot/datasets/dataset_reader.py (facts only).
"""

import re
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt8
from pydantic import ValidationError

from pipeline.datasets.base import DatasetConfig, EpisodeLabel, FormatReader, FormatSurvey
from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.compressed import decode_images, image_size
from pipeline.datasets.lerobot.episodes import (
    EpisodeFiles,
    FindFile,
    check_headers,
    file_finder,
    split_rows,
)
from pipeline.datasets.lerobot.info import (
    INFO_PATH,
    LeRobotInfo,
    read_info,
    require_feature,
    stated_version,
)
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.manifest.paths import read_file
from pipeline.datasets.manifest.selection import LEAVE_OUT
from pipeline.datasets.video import VideoDecoder, match_frames
from pipeline.errors import DatasetError
from policy.errors import invalid_field, one_line

_BOOK_KEYS: Final = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_LICENSE: Final = re.compile(r"\A---\s*$.*?^license:[ \t]*([\w.-]+)[ \t]*$.*?^---\s*$", re.M | re.S)
SUCCESS_KEY: Final = "next.success"
DECODER_THREADS: Final = 2  # of all cameras together; each takes one, a single camera both


class LeRobotReader(FormatReader):
    """A LeRobot dataset; subclasses locate the episodes of their versions."""

    versions: ClassVar[tuple[str, ...]]
    index: ClassVar[str]
    """The file or folder that lists the episodes."""
    shares_files: ClassVar[bool] = False
    """Whether a file contains several episodes."""
    _episodes: Sequence[EpisodeFiles]

    def __init__(self, config: DatasetConfig) -> None:
        """Read the index and check every file of the kept episodes by its header."""
        self._config, self._root = config, config.local_root
        info = read_info(self._root, self.versions, allow_outside=config.allow_outside)
        self._info, self.fps = info, info.fps
        self._videos = _video_keys(config, info)
        self._episodes, excluded = self._locate_all(config, info)
        for key in config.number_keys:
            require_feature(self._root, info, key, ("numbers",))
        self._video_sizes = check_headers(config, info.fps, self._episodes, excluded, self._videos)
        self._image_sizes: dict[str, tuple[int, int]] = {}
        # A process among several that read leaves the other cores to them.
        self._num_threads = DECODER_THREADS if parent_process() is None else 1
        self._table: ParquetTable | None = None
        self._decoders: dict[str, VideoDecoder] = {}
        self._positions: dict[str, tuple[int, Int64[np.ndarray, " t"]]] = {}  # key: episode, frames

    @classmethod
    @abstractmethod
    def read_index(cls, config: DatasetConfig, video_keys: Sequence[str]) -> list[dict[str, Any]]:
        """Read the rows of the index, one per episode (DatasetError: it does not read)."""

    @classmethod
    @abstractmethod
    def locate(
        cls, row: dict[str, Any], info: LeRobotInfo, find: FindFile, video_keys: Sequence[str]
    ) -> EpisodeFiles:
        """Return the files of a row of the index (ValidationError: it contradicts itself)."""

    @classmethod
    def _locate_all(
        cls, config: DatasetConfig, info: LeRobotInfo
    ) -> tuple[list[EpisodeFiles], list[EpisodeFiles]]:
        """Locate the kept episodes, and the excluded ones that share files with them."""
        videos, find = _video_keys(config, info), file_finder(config)
        index = config.local_root / cls.index

        def located(row: dict[str, Any]) -> EpisodeFiles:
            try:
                return cls.locate(row, info, find, videos)
            except ValidationError as error:
                raise DatasetError(
                    f"{index}: episode {row.get('episode_index')}: "
                    f"{one_line(invalid_field(error))}; download `meta` again, or {LEAVE_OUT}"
                ) from error

        kept, others = split_rows(config, info, index, cls.read_index(config, videos))
        excluded = []
        for row in others if cls.shares_files else ():
            with suppress(DatasetError):  # nothing can be checked against a damaged row
                excluded.append(located(row))
        return list(map(located, kept)), excluded

    @classmethod
    def files(cls, config: DatasetConfig) -> set[str]:
        """List the files of the kept episodes, relative to the root; they need not exist."""
        info, root = read_info(config.local_root, cls.versions), config.local_root.resolve()
        found = {
            path
            for episode in cls._locate_all(config, info)[0]
            for path in (episode.path, *(clip.path for clip in episode.clips.values()))
        }
        return {path.relative_to(root).as_posix() for path in found}

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether `meta/info.json` states these versions, or older or newer ones to refuse."""
        version = stated_version(root)
        return version is not None and (version < "v3") == (cls.versions < ("v3",))

    @classmethod
    def survey(cls, root: Path) -> FormatSurvey:
        """List a dataset's color cameras and numbers, and its dataset card's license."""
        info, notes = read_info(root, cls.versions), {}
        with suppress(OSError, DatasetError):
            card = read_file(root, "README.md", allow_outside=False).decode(errors="replace")
            if found := _LICENSE.search(card):
                notes["license"] = found[1]
        views, numbers = {}, {}
        for key, feature in info.features.items():
            if feature.kind in ("video", "image"):
                views[key] = feature.frame_size
            elif feature.kind == "numbers" and key not in _BOOK_KEYS:
                numbers[key] = feature.column_names
        return FormatSurvey(info.fps, views, numbers, notes)

    def label(self, episode: int) -> EpisodeLabel:
        """Return the task of the index, and whether any step is marked as success."""
        files = self._episodes[episode]
        success = None
        feature = self._info.features.get(SUCCESS_KEY)
        if feature is not None and feature.kind == "numbers":
            marks = self._open_table(files).flags(SUCCESS_KEY)[self._rows(files)]
            success = None if np.isnan(marks).all() else bool(np.nansum(marks) > 0)
        return EpisodeLabel(success=success, task=files.task, instruction=files.task)

    def instruction(self, episode: int) -> str | None:
        return self._episodes[episode].task

    def frame_size(self, episode: int, view_key: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels, from the header of its file."""
        if view_key in self._videos:
            return self._video_sizes[view_key][self._episodes[episode].clips[view_key].path]
        if view_key not in self._image_sizes:
            (data,), (name,) = self._images(0, view_key, 0, 1)
            self._image_sizes[view_key] = image_size(data, name)
        return self._image_sizes[view_key]

    def _frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read steps of an episode; in order, each frame of a video is decoded once."""
        videos = self._video_frames(episode, start, stop)
        return tuple(
            videos[key]
            if key in videos
            else decode_images(
                *self._images(episode, key, start, stop), self.frame_size(episode, key)
            )
            for key in self._config.view_keys
        )

    def numbers(self, episode: int, number_key: str) -> Float[np.ndarray, "t d"]:
        """Read one feature of every step, flattened."""
        files, width = self._episodes[episode], self._info.features[number_key].width
        values = self._open_table(files).numbers(number_key)[self._rows(files)]
        if values.shape[1] != width:
            raise DatasetError(
                f"{files.name}: {number_key}: expected width {width} as in {INFO_PATH}, found "
                f"{values.shape[1]}; correct one of them"
            )
        return values

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"] | None:
        seconds = self._seconds(self._episodes[episode])
        return np.asarray(seconds - seconds[0])

    def frame_drift(self, episode: int, view_key: str) -> float:
        """Return the largest drift in seconds, 0 for images (FrameReadError: a frame is absent)."""
        if view_key not in self._videos:
            return 0.0
        files, positions = self._episodes[episode], self._frame_positions(episode, view_key)
        shown_s = self._decoder(episode, view_key).clock.seconds[positions]
        wanted_s = files.clips[view_key].start_s + self._seconds(files)
        return float(np.abs(shown_s - wanted_s).max())

    def subset(self, name: str) -> tuple[int, ...]:
        """Return the episode numbers of a split of `meta/info.json`, also of episodes not kept."""
        splits = self._info.splits if isinstance(self._info.splits, dict) else {}
        bounds = re.fullmatch(r"(\d+):(\d+)", str(splits.get(name)).replace(" ", ""))
        num = self._info.total_episodes
        start, stop = map(int, bounds.groups()) if bounds else (1, 0)
        if start > stop or (num is not None and stop > num):
            raise DatasetError(
                f"{self._root / INFO_PATH}: splits: expected {name} as start:stop within 0..{num}, "
                f"found {splits or 'none'}; choose another split, or list episode numbers"
            )
        return tuple(range(start, stop))

    def close(self) -> None:
        for decoder in self._decoders.values():
            decoder.close()
        self._decoders.clear()
        self._positions.clear()
        if self._table is not None:
            self._table.close()
            self._table = None

    def _view_name(self, episode: int, key: str) -> str:
        files = self._episodes[episode]
        return f"{files.clips[key].path}: episode {files.number}: {key}"

    def _open_table(self, files: EpisodeFiles) -> ParquetTable:
        if self._table is None or self._table.path != files.path:
            if self._table is not None:
                self._table.close()
                self._table = None
            self._table = ParquetTable(files.path)
        return self._table

    def _rows(self, files: EpisodeFiles) -> slice:
        """Find an episode's rows, and compare them with its index."""
        table = self._open_table(files)
        owners = table.numbers("episode_index")[:, 0]
        first, wanted = 0, None
        if files.first_index is not None:
            wanted = np.arange(files.first_index, files.first_index + files.length)
            indices = table.numbers("index")[:, 0]
            first = int(np.searchsorted(indices, files.first_index))
        rows = slice(first, first + files.length)
        is_good = len(owners[rows]) == files.length and (owners[rows] == files.number).all()
        if not is_good or (wanted is not None and not np.array_equal(indices[rows], wanted)):
            raise DatasetError(
                f"{files.name}: expected {files.length} rows with its number in episode_index "
                f"and, in files of many episodes, with index counting from {files.first_index}, "
                "found others; download the files of this dataset again"
            )
        return rows

    def _seconds(self, files: EpisodeFiles) -> Float64[np.ndarray, " t"]:
        """Return the time of every step on the episode's own clock, which videos follow."""
        rows = self._rows(files)
        return self._open_table(files).step_seconds(rows, self._info.fps, files.name)

    def _decoder(self, episode: int, key: str) -> VideoDecoder:
        """Return the camera's only open file."""
        path = self._episodes[episode].clips[key].path
        decoder = self._decoders.get(key)
        if decoder is None or decoder.path != path:
            if decoder is not None:
                decoder.close()
            num_threads = self._num_threads if len(self._videos) == 1 else 1
            decoder = VideoDecoder(path, self._video_sizes[key][path], num_threads)
            self._decoders[key] = decoder
        return decoder

    def _frame_positions(self, episode: int, key: str) -> Int64[np.ndarray, " t"]:
        """Match the whole episode at once, so that every request finds every defect."""
        cached = self._positions.get(key)
        if cached is None or cached[0] != episode:
            files, fps = self._episodes[episode], self._info.fps
            shown_s, clip = self._decoder(episode, key).clock.seconds, files.clips[key]
            # Half a step of drift is usual in indices of many episodes.
            bounds = np.array([clip.start_s, clip.end_s]) - 0.5 / fps
            first, last = np.searchsorted(shown_s, bounds)
            wanted_s, where = clip.start_s + self._seconds(files), self._view_name(episode, key)
            found = match_frames(shown_s[first:last], wanted_s, fps, where)
            cached = episode, found + first
            self._positions[key] = cached
        return cached[1]

    def _video_frames(
        self, episode: int, start: int, stop: int
    ) -> dict[str, UInt8[np.ndarray, "t h w 3"]]:
        """Decode all cameras in parallel: faster than threads within one video."""
        positions = {key: self._frame_positions(episode, key)[start:stop] for key in self._videos}
        decoders = {key: self._decoder(episode, key) for key in self._videos}

        def decode(key: str) -> UInt8[np.ndarray, "t h w 3"]:
            return decoders[key].frames(positions[key], self._view_name(episode, key), start)

        with ThreadPoolExecutor(self._num_threads) as threads:
            return dict(zip(positions, threads.map(decode, positions), strict=True))

    def _images(
        self, episode: int, key: str, start: int, stop: int
    ) -> tuple[list[bytes], list[str]]:
        """Return the encoded images of an image column, and their names for messages."""
        files = self._episodes[episode]
        first = self._rows(files).start
        stored, names = [], [f"{files.name}: {key}: frame {step}" for step in range(start, stop)]
        images = self._open_table(files).images(key, first + start, first + stop)
        for name, image in zip(names, images, strict=True):
            content, path = image.get("bytes"), str(image.get("path"))
            try:
                allow_outside = self._config.allow_outside
                stored.append(content or read_file(self._root, path, allow_outside=allow_outside))
            except OSError as error:
                why = why_unreadable(self._root / path, error, "download it again")
                raise DatasetError(f"{name}: expected an image file {path}, {why}") from error
        return stored, names


def _video_keys(config: DatasetConfig, info: LeRobotInfo) -> list[str]:
    """Return the views in videos (DatasetError: a view is not a color camera of the dataset)."""
    kinds, root = ("video", "image"), config.local_root
    return [
        key for key in config.view_keys if require_feature(root, info, key, kinds).kind == "video"
    ]
