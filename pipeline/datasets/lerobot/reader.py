"""Episodes of a LeRobot dataset, once their rows and clips are located; common to all versions.

Source: huggingface/lerobot@7427f318:src/lerobot/datasets/dataset_reader.py (facts only).
"""

from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import parent_process
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt8

from pipeline.datasets.base import (
    DatasetConfig,
    DatasetFacts,
    EpisodeLabel,
    FormatReader,
    FormatSurvey,
    require_steps,
)
from pipeline.datasets.causes import why_unreadable
from pipeline.datasets.compressed import decode_images, image_size
from pipeline.datasets.lerobot.clock import step_seconds
from pipeline.datasets.lerobot.episodes import (
    EpisodeFiles,
    LocatedEpisodes,
    check_headers,
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
from pipeline.datasets.lerobot.table import ParquetTable
from pipeline.datasets.manifest.paths import read_file
from pipeline.datasets.video import VideoDecoder, match_frames
from pipeline.errors import DatasetError, FrameReadError
from policy.errors import one_line

SUCCESS_KEY: Final = "next.success"
DECODER_THREADS: Final = 2  # of all cameras together; each takes one, a single camera both


class LeRobotReader(FormatReader):
    """A LeRobot dataset; subclasses locate the episodes of their versions."""

    versions: ClassVar[tuple[str, ...]]

    def __init__(self, config: DatasetConfig) -> None:
        """Read the index and check every file of the kept episodes by its header."""
        self._config, self._root = config, config.local_root
        info = read_info(self._root, self.versions, allow_outside=config.allow_outside)
        self._info, self._fps = info, info.fps
        self.fps: float | None = info.fps
        is_named = isinstance(info.robot_type, str) and info.robot_type not in ("", "unknown")
        robot = (f"robot: {one_line(info.robot_type)}",) if is_named else ()
        self.facts = DatasetFacts(remarks=robot)
        self._kinds = view_kinds(config, info)
        self._videos = [key for key, kind in self._kinds.items() if kind == "video"]
        located = self.locate(config, info)
        self._episodes, self._num_indexed = located.wanted, located.num_indexed
        self.num_episodes: int = len(self._episodes)
        self._video_sizes = check_headers(config, info, located)
        self._image_sizes: dict[str, tuple[int, int]] = {}
        # A process among several that read leaves the other cores to them.
        self._num_threads = DECODER_THREADS if parent_process() is None else 1
        self._table: ParquetTable | None = None
        self._decoders: dict[str, VideoDecoder] = {}
        self._positions: dict[str, tuple[int, Int64[np.ndarray, " t"]]] = {}  # key: episode, frames

    @staticmethod
    @abstractmethod
    def locate(config: DatasetConfig, info: LeRobotInfo) -> LocatedEpisodes:
        """Read the index, and return the files of its episodes.

        Raises:
            DatasetError: the index does not read, lacks a kept episode, or contradicts itself.
        """

    @classmethod
    def files(cls, config: DatasetConfig) -> set[str]:
        """List the files of the kept episodes, relative to the root; they need not exist.

        Raises:
            DatasetError: as `locate`.
        """
        info, root = read_info(config.local_root, cls.versions), config.local_root.resolve()
        found = {
            path
            for episode in cls.locate(config, info).wanted
            for path in (episode.table, *(clip.path for clip in episode.clips.values()))
        }
        return {path.relative_to(root).as_posix() for path in found}

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether `meta/info.json` is of a LeRobot dataset of these versions."""
        return has_version(root, cls.versions)

    @classmethod
    def survey(cls, root: Path) -> FormatSurvey:
        """List the features of `meta/info.json` (DatasetError: it does not read)."""
        return survey_info(root, read_info(root, cls.versions))

    def episode_number(self, episode: int) -> int:
        return self._at(episode).number

    def episode_name(self, episode: int) -> str:
        files = self._at(episode)
        return f"{files.table}: episode {files.number}"

    def episode_length(self, episode: int) -> int:
        return self._at(episode).length

    def label(self, episode: int) -> EpisodeLabel:
        """Return the task of the index, and whether any step is marked as success."""
        files = self._at(episode)
        success = None
        if SUCCESS_KEY in self._info.features:
            marks = self._open_table(files).flags(SUCCESS_KEY)[self._rows(files)]
            success = None if np.isnan(marks).all() else bool(np.nansum(marks) > 0)
        return EpisodeLabel(success=success, task=files.task, instruction=files.task)

    def instruction(self, episode: int) -> str | None:
        return self._at(episode).task

    def frame_size(self, episode: int, view_key: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels, from the header of its file."""
        files = self._at(episode)
        if self._kinds[view_key] == "video":
            return self._video_sizes[view_key][files.clips[view_key].path]
        if view_key not in self._image_sizes:
            try:
                (data,), (name,) = self._images(0, view_key, 0, 1)
                self._image_sizes[view_key] = image_size(data, name)
            except FrameReadError as error:
                raise DatasetError(str(error)) from error
        return self._image_sizes[view_key]

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read frames [start, stop) of one episode, as `FormatReader.frames` does.

        Reading in order decodes each frame of a video once, across episodes.
        """
        require_steps(start, stop, self.episode_length(episode), self.episode_name(episode))
        try:
            videos = self._video_frames(episode, start, stop)
            return tuple(
                videos[key]
                if key in videos
                else decode_images(
                    *self._images(episode, key, start, stop), self.frame_size(episode, key)
                )
                for key in self._config.view_keys
            )
        except DatasetError as error:
            raise FrameReadError(str(error)) from error

    def numbers(self, episode: int, number_key: str) -> Float[np.ndarray, "t d"]:
        """Read one feature of every step, flattened."""
        files = self._at(episode)
        feature = require_feature(self._root, self._info, number_key, ("numbers",))
        values = self._open_table(files).numbers(number_key)[self._rows(files)]
        if values.shape[1] != feature.width:
            raise DatasetError(
                f"{self.episode_name(episode)}: {number_key}: expected width {feature.width} as "
                f"in {INFO_PATH}, found {values.shape[1]}; correct one of them"
            )
        return values

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"] | None:
        seconds = self._seconds(self._at(episode))
        return np.asarray(seconds - seconds[0])

    def frame_drift(self, episode: int, view_key: str) -> float:
        """Return the largest distance in seconds between a step and its frame; decodes nothing.

        Image columns have no times, and no drift. FrameReadError: a step has no frame.
        """
        files = self._at(episode)
        if self._kinds[view_key] != "video":
            return 0.0
        positions = self._frame_positions(episode, view_key)
        shown_s = self._decoder(episode, view_key).shown_s(self._view_name(episode, view_key))
        wanted_s = files.clips[view_key].start_s + self._seconds(files)
        return float(np.abs(shown_s[positions] - wanted_s).max())

    def subset(self, name: str) -> tuple[int, ...]:
        """Return the episode numbers of a split of `meta/info.json`, also of episodes not kept."""
        return read_split(self._root, self._info, name, self._num_indexed)

    def close(self) -> None:
        for decoder in self._decoders.values():
            decoder.close()
        self._decoders.clear()
        self._positions.clear()
        if self._table is not None:
            self._table.close()
            self._table = None

    def _at(self, episode: int) -> EpisodeFiles:
        return self._episodes[self._require_episode(episode)]

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
        """Find an episode's rows, and compare them with its index."""
        table = self._open_table(files)
        first, owners = 0, table.integers("episode_index")
        if files.first_index is not None:
            indices = table.integers("index")
            first = int(np.searchsorted(indices, files.first_index))
        rows = slice(first, first + files.length)
        is_good = len(owners[rows]) == files.length and (owners[rows] == files.number).all()
        if files.first_index is not None:
            wanted = np.arange(files.first_index, files.first_index + files.length)
            is_good = is_good and np.array_equal(indices[rows], wanted)
        if not is_good:
            raise DatasetError(
                f"{files.table}: episode {files.number}: expected {files.length} rows with its "
                f"number in episode_index and, in files of many episodes, with index counting from "
                f"{files.first_index}, found others; download the files of this dataset again"
            )
        return rows

    def _seconds(self, files: EpisodeFiles) -> Float64[np.ndarray, " t"]:
        """Return the time of every step on the episode's own clock, which videos follow."""
        where = f"{files.table}: episode {files.number}"
        return step_seconds(self._open_table(files), self._rows(files), self._fps, where)

    def _decoder(self, episode: int, key: str) -> VideoDecoder:
        """Return the camera's only open file."""
        path = self._at(episode).clips[key].path
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
        """Decode all cameras in parallel: faster than threads within one video."""
        positions = {key: self._frame_positions(episode, key)[start:stop] for key in self._videos}
        decoders = {key: self._decoder(episode, key) for key in self._videos}

        def decode(key: str) -> UInt8[np.ndarray, "t h w 3"]:
            return decoders[key].frames(positions[key], self._view_name(episode, key), start)

        if min(len(positions), self._num_threads) < 2:
            return {key: decode(key) for key in positions}
        with ThreadPoolExecutor(self._num_threads) as threads:
            return dict(zip(positions, threads.map(decode, positions), strict=True))

    def _images(
        self, episode: int, key: str, start: int, stop: int
    ) -> tuple[list[bytes], list[str]]:
        """Return the encoded images of an image column, and their names for messages."""
        files = self._at(episode)
        first = self._rows(files).start
        stored = self._open_table(files).images(key, first + start, first + stop)
        names = [f"{self.episode_name(episode)}: {key}: frame {n}" for n in range(start, stop)]
        images = zip(stored, names, strict=True)
        return [self._image_bytes(*image, name) for image, name in images], names

    def _image_bytes(self, data: bytes | None, path: str | None, name: str) -> bytes:
        if data:
            return data
        assert path is not None
        try:
            return read_file(self._root, path, allow_outside=self._config.allow_outside)
        except OSError as error:
            raise FrameReadError(
                f"{name}: expected an image file {path}, "
                + why_unreadable(self._root / path, error, "download it again")
            ) from error
