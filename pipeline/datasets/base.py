"""The interface of a file format: `FormatReader`.

`ManifestReader` (manifest/reader.py) turns one or several of them into the episodes that
embedding, checking and training use.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float64, Shaped, UInt8

from pipeline.errors import DatasetError, FrameReadError
from pipeline.storage.location import Location, on_disk


def every_episode(number: int) -> bool:
    """Keep an episode, whatever its number."""
    return True


@dataclass(frozen=True)
class DatasetConfig:
    """What a `FormatReader` opens."""

    root: Location
    """The data: an absolute path of a folder or a file, or an address."""
    view_keys: tuple[str, ...]
    """The format's key of each camera's frames, in view order."""
    number_keys: tuple[str, ...]
    """The format's keys of the arrays that make up state and action; may repeat."""
    allow_outside: bool = False
    """Whether files may be stored outside `root` (symbolic links, `..`)."""
    keeps: Callable[[int], bool] = every_episode
    """Whether the episode with this number is used; others need not exist or be readable."""

    @property
    def local_root(self) -> Path:
        """The path of the data, for formats that are read from disks only."""
        root = on_disk(self.root)
        assert root is not None, "`open_format` refuses addresses for these formats"
        return root


@dataclass(frozen=True)
class DatasetFacts:
    """Metadata of a whole dataset."""

    gripper: str | None = None
    """Meaning of the action's gripper values, where the format defines it."""
    action_shift: int = 0
    """`action_shift` that files of this format need."""
    remarks: tuple[str, ...] = ()
    """What reading leaves out or changes, a sentence each."""


@dataclass(frozen=True)
class EpisodeLabel:
    """Metadata of one episode."""

    success: bool | None = None
    """Whether it solved its task; None if unknown."""
    task: str | None = None
    """Its task in words, or the name of its environment."""
    instruction: str | None = None
    """The instruction in words; None if the files contain none."""


@dataclass(frozen=True)
class FormatSurvey:
    """Keys and metadata of a dataset, to draft a manifest from."""

    fps: float | None
    """Control steps per second; None if unknown."""
    views: dict[str, tuple[int, int] | None]
    """(height, width) per camera key; None if the headers do not contain it."""
    numbers: dict[str, tuple[str, ...]]
    """Column names per key of a number array; `0`, `1`, ... for columns without names."""
    notes: dict[str, str] = field(default_factory=dict)
    """Values of manifest keys that the files contain: `source`, `license`, ..."""


@dataclass(frozen=True)
class Episode:
    """One episode; formats add what they need to read it."""

    number: int
    """Its number in the files, which may have gaps."""
    path: Location
    """The file of its numbers; a replay buffer's folder."""
    name: str
    """Names it in messages: the path of its file, and its key or number."""
    length: int
    """Number of control steps, at least 1."""


def as_floating(values: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return real numbers of any type as float32 if that is exact, else as float64."""
    is_small = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    return values.astype(np.float32 if is_small else np.float64)


class FormatReader(ABC):
    """One dataset of one file format; constructed from a `DatasetConfig`.

    The constructor checks the headers of every file of the kept episodes (present, readable, equal
    length, one width over all episodes), decodes no frame, and raises DatasetError; also if no
    episode is kept.
    """

    reads_objects: ClassVar[bool] = False
    """Whether the format is read from object storage too."""
    fps: float | None = None
    """Control steps per second; None if the files do not contain it."""
    facts = DatasetFacts()
    _episodes: Sequence[Episode]
    """The kept episodes, ordered by their number; set by the constructor."""

    @abstractmethod
    def __init__(self, config: DatasetConfig) -> None: ...

    @classmethod
    @abstractmethod
    def recognizes(cls, root: Any) -> bool:
        """Whether `root` (a Path; a Location if `reads_objects`) is of this format, by headers."""

    @classmethod
    @abstractmethod
    def survey(cls, root: Any) -> FormatSurvey:
        """List the keys and metadata of a dataset, for a draft (DatasetError: it does not read)."""

    @property
    def num_episodes(self) -> int:
        """Number of kept episodes, at least 1."""
        return len(self._episodes)

    def episode_number(self, episode: int) -> int:
        """Return the number in the files of the episode at this position."""
        return self._at(episode).number

    def episode_name(self, episode: int) -> str:
        """Name an episode for messages: the path of its file, and its key or number."""
        return self._at(episode).name

    def episode_length(self, episode: int) -> int:
        """Return the number of control steps of an episode, at least 1."""
        return self._at(episode).length

    def label(self, episode: int) -> EpisodeLabel:
        """Return the metadata of an episode (DatasetError: it does not read)."""
        return EpisodeLabel()

    def instruction(self, episode: int) -> str | None:
        """Return an episode's instruction in words; None if the files contain none."""
        return self.label(episode).instruction

    @abstractmethod
    def frame_size(self, episode: int, view_key: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels, decoding one frame at most."""

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read frames [start, stop) of one episode, one array per view key, upright, as RGB.

        Raises:
            FrameReadError: a step is out of range, or a frame is missing or does not decode;
                never fewer rows than requested.
        """
        of = self._at(episode)
        if not 0 <= start <= stop <= of.length:
            raise FrameReadError(
                f"{of.name}: expected steps within 0..{of.length}, found [{start}, {stop}); "
                "request steps of the episode"
            )
        try:
            return self._frames(episode, start, stop)
        except DatasetError as error:
            raise FrameReadError(str(error)) from error

    @abstractmethod
    def _frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read steps of the episode, as `frames` describes; may raise DatasetError too."""

    @abstractmethod
    def numbers(self, episode: int, number_key: str) -> Float[np.ndarray, "t d"]:
        """Read one array of every step as float32 or float64; one-axis arrays have d = 1.

        DatasetError: the array does not read.
        """

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"] | None:
        """Return seconds since the episode's first step; None if the files contain no times.

        DatasetError: the times do not read.
        """
        return None

    def frame_drift(self, episode: int, view_key: str) -> float:
        """Return the largest distance in seconds between a step and its frame; 0 without times."""
        return 0.0

    def subset(self, name: str) -> tuple[int, ...]:
        """Return the episode numbers of a subset of the files (DatasetError: there is none)."""
        raise DatasetError(
            f"{self.episode_name(0)}: expected a subset {name!r}, found a format without subsets; "
            "list episode numbers in the manifest"
        )

    @abstractmethod
    def close(self) -> None:
        """Close every open file; reading again opens them again."""

    def _at(self, episode: int) -> Episode:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"episode: expected 0 to {self.num_episodes - 1}, found {episode}")
        return self._episodes[episode]
