"""The two seams of the datasets room: what a format offers, and what everything else reads.

A `FormatReader` knows one file layout and nothing of manifests; `ManifestReader`
(manifest_reader.py) turns one or several of them into the one `EpisodeReader` that embedding,
checking and training see. Neither knows an encoder or a store.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from pipeline.errors import DatasetError, FrameReadError
from pipeline.storage.location import Location, on_disk
from policy.spec import Fit


def every_episode(number: int) -> bool:
    """Want an episode, whatever its number."""
    return True


@dataclass(frozen=True)
class DatasetPlace:
    """What a format's reader is asked to open."""

    root: Location
    """The data: a folder or a file, absolute, or an address."""
    view_keys: tuple[str, ...]
    """Where the format keeps each camera's frames, in view order."""
    number_keys: tuple[str, ...]
    """Where the format keeps the arrays that make up state and action; may repeat."""
    allow_outside: bool = False
    """Whether files may lie outside `root` (symbolic links, `..`)."""
    keeps: Callable[[int], bool] = every_episode
    """Whether an episode with this number is wanted; others need not exist or be readable."""

    @property
    def local_root(self) -> Path:
        """The data, for layouts that are read from disks alone.

        Raises:
            DatasetError: it is an address.
        """
        root = on_disk(self.root)
        if root is None:
            raise DatasetError(
                f"{self.root}: expected a layout that is read from object storage, found one that "
                "is read from disks alone; copy the dataset to a disk, or mount its bucket"
            )
        return root


@dataclass(frozen=True)
class DatasetFacts:
    """What the files say of the whole dataset, next to its arrays."""

    is_simulated: bool | None = None
    """Whether a simulator made it; None where the files do not say."""
    gripper: str | None = None
    """What the numbers of the gripper's action mean, where the layout's writer defines it."""
    action_shift: int = 0
    """`action_shift` that the layout's writer makes necessary."""
    remarks: tuple[str, ...] = ()
    """What reading leaves out or changes, a sentence each."""


@dataclass(frozen=True)
class EpisodeLabel:
    """What the files say of one episode, next to its arrays."""

    success: bool | None = None
    """Whether it solved its task; None where the files do not say."""
    task: str | None = None
    """Its task in words, or the name of its environment."""


@dataclass(frozen=True)
class FormatSurvey:
    """What a look at a dataset finds, to start a manifest from."""

    fps: float | None
    """Control steps a second, where the files say so."""
    views: dict[str, tuple[int, int] | None]
    """Keys of cameras, and (height, width) where the headers tell."""
    numbers: dict[str, tuple[str, ...]]
    """Keys of number arrays, and the name of each column, or `0`, `1`, ... without names."""
    notes: dict[str, str] = field(default_factory=dict)
    """What the files say of themselves, by manifest key: `source`, `license`, ..."""


def require_steps(start: int, stop: int, length: int, episode: str) -> None:
    """Refuse a range of steps that an episode does not have; `episode` names it in messages.

    Raises:
        FrameReadError: [start, stop) is not within [0, length).
    """
    if not 0 <= start <= stop <= length:
        raise FrameReadError(
            f"{episode}: expected steps within 0..{length}, found [{start}, {stop}); ask for "
            "steps that the episode has"
        )


@runtime_checkable  # the test run checks return types
class FormatReader(Protocol):
    """One dataset of one file layout; constructed from a `DatasetPlace`.

    Contains the episodes that `DatasetPlace.keeps` wants and no others. Construction checks every
    file that these need by its headers (present, readable, of equal length, of one width over all
    episodes), decodes no frame, and raises DatasetError; also where no episode is wanted.
    Episodes are ordered by their number in the files; numbers may have gaps where the layout
    allows them.
    """

    num_episodes: int
    """Number of wanted episodes, at least 1."""
    fps: float | None
    """Control steps a second as the files say; None where the layout does not keep it."""
    facts: DatasetFacts
    """What the files say of the whole dataset."""

    def episode_number(self, episode: int) -> int:
        """Return the number that the files give the episode at this position."""

    def episode_name(self, episode: int) -> str:
        """Name an episode for messages: the path of its file, and the place in it."""

    def episode_length(self, episode: int) -> int:
        """Return the number of control steps of an episode, at least 1."""

    def label(self, episode: int) -> EpisodeLabel:
        """Return what the files say of an episode.

        Raises:
            DatasetError: it does not read.
        """

    def frame_size(self, episode: int, view_key: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels, decoding one frame at most."""

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read frames [start, stop) of one episode, one array a view key, upright, as RGB.

        Raises:
            FrameReadError: a frame is absent or does not decode; never fewer rows than asked.
        """

    def numbers(self, episode: int, number_key: str) -> Float[np.ndarray, "t d"]:
        """Read one array of every step as float32 or float64; one-axis arrays have d = 1.

        Raises:
            DatasetError: the array does not read.
        """

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"] | None:
        """Return seconds since the episode's first step; None where the files keep no clock."""

    def frame_drift(self, episode: int, view_key: str) -> float:
        """Return the largest distance in seconds between a step and its frame; 0 without times."""

    def subset(self, name: str) -> tuple[int, ...]:
        """Return the episode numbers of a subset that the files name (`valid`, `train`).

        Raises:
            DatasetError: the files name no such subset; says which they name.
        """

    def close(self) -> None:
        """Close every open file; reading again opens them again."""


@runtime_checkable
class EpisodeReader(Protocol):
    """Recorded episodes as a manifest describes them, whatever their file format.

    Episodes are numbered 0..num_episodes-1 in a fixed order; the frame at step t was seen before
    the action at step t was taken.
    """

    view_names: tuple[str, ...]
    """Camera names, in the order of every array below."""
    fps: float
    """Control steps per second."""
    fit: Fit
    """What becomes of frames that are not square when they are resized."""
    num_episodes: int
    """Number of episodes."""
    source_of: tuple[int, ...]
    """Position of the manifest's source that each episode comes from, ascending."""
    validation: tuple[int, ...] | None
    """Episodes that the manifest keeps out of training; None where it leaves the choice open."""

    def episode_number(self, episode: int) -> int:
        """Return the number that the files give the episode; sources number each for itself."""

    def episode_name(self, episode: int) -> str:
        """Name an episode for messages: the path of its file, and the place in it."""

    def episode_length(self, episode: int) -> int:
        """Return the number of control steps of an episode, at least 1."""

    def frame_size(self, episode: int, view: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels, decoding one frame at most."""

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read RGB frames [start, stop) of one episode, values in [0, 255], one array a view.

        Raises:
            FrameReadError: a frame is absent or does not decode; never fewer rows than asked.
        """

    def frame_drift(self, episode: int, view: str) -> float:
        """Return the largest distance in seconds between a step and its frame; 0 without times."""

    def state(self, episode: int) -> Float32[np.ndarray, "t s"]:
        """Read the robot state of every step, in the units of the manifest.

        Raises:
            DatasetError: a value is NaN or infinite as float32, or does not read.
        """

    def action(self, episode: int) -> Float32[np.ndarray, "t a"]:
        """Read the action of every step, in the units of the manifest.

        Raises:
            DatasetError: a value is NaN or infinite as float32, or does not read.
        """

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"]:
        """Return seconds since the episode's first step.

        Raises:
            DatasetError: a time is NaN or infinite, or does not read.
        """

    def close(self) -> None:
        """Close every open file."""
