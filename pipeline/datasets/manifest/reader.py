"""Episodes as a manifest describes them, whatever their file format.

Joins state and action from their keys and columns, converts BGR to RGB, shifts actions, leaves
episodes out, and concatenates several sources.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from pipeline.datasets.base import DatasetFacts, EpisodeLabel, FormatReader
from pipeline.datasets.manifest.model import LoadedManifest
from pipeline.datasets.manifest.parts import ArraySource, key_path
from pipeline.datasets.manifest.sources import OnProblem, SourceOpener
from pipeline.errors import DatasetError
from policy.spec import Fit

_FPS_TOLERANCE: Final = 1e-6  # relative; some files contain rates as float32


class _Columns:
    """Key and column in the files of each column of the state or the action of one source."""

    def __init__(self, role: str, wanted: ArraySource, reader: FormatReader, origin: str):
        self.keys = wanted.key_paths
        widths = zip(self.keys, _first_widths(self.keys, reader), strict=True)
        joined = [(key, dim) for key, width in widths for dim in range(width)]
        self.columns = list(wanted.columns or range(len(joined)))
        if max(self.columns) >= len(joined):
            raise DatasetError(
                f"{origin}: {role}.columns: expected columns below {len(joined)}, the width of "
                f"{' + '.join(self.keys)}, found {max(self.columns)}; columns are counted from 0"
            )
        self.sources = [joined[column] for column in self.columns]


def _first_widths(keys: Sequence[str], reader: FormatReader) -> list[int]:
    """Return the widths of the arrays, of the first episode that reads."""
    for episode in range(reader.num_episodes):
        try:
            return [reader.numbers(episode, key).shape[1] for key in keys]
        except DatasetError:  # raised again when that episode is read; others may be good
            if episode == reader.num_episodes - 1:
                raise
    raise AssertionError("a reader has episodes")


class ManifestReader:
    """All episodes of a manifest, source after source; methods as those of `FormatReader`.

    Episodes are numbered 0..num_episodes-1 in a fixed order; the frame at step t was seen before
    the action at step t was taken.
    """

    loaded: LoadedManifest
    view_names: tuple[str, ...]
    """Camera names, in the order of every array below."""
    fps: float
    """Control steps per second."""
    fit: Fit
    """How frames that are not square are resized."""
    num_episodes: int
    source_of: tuple[int, ...]
    """Position of the manifest's source of each episode, ascending."""
    validation: tuple[int, ...] | None
    """Episodes that the manifest keeps out of training; None if it has no split."""

    def __init__(self, loaded: LoadedManifest, *, on_problem: OnProblem | None = None) -> None:
        """Open every source and check its files by their headers; no frame is decoded.

        Args:
            loaded: the manifest, and the paths of its data.
            on_problem: is passed the error of each episode that does not open (the others are
                opened), and of a rate other than the manifest's; None raises.

        Raises:
            DatasetError: a source is missing, damaged, of no known format, or not as the manifest
                describes; sources differ in width; or filter and split name episodes that do not
                exist or leave none to train on.
        """
        manifest = self._manifest = loaded.manifest
        self.loaded, self._origin = loaded, loaded.origin
        self.view_names, self.fps, self.fit = manifest.view_names, manifest.fps, manifest.fit
        self._view_keys = {view.name: key_path(view.key) for view in manifest.views}
        self._instructions = [source.instruction for source in manifest.data_sources]
        self._readers: list[FormatReader] = []
        self._columns: list[dict[str, _Columns]] = []  # of each source, by role
        self._episodes: list[tuple[int, int]] = []  # source, position in it
        validation: list[int] = []
        try:
            for source in range(len(manifest.data_sources)):
                validation += self._add_source(source, on_problem)
            if len(validation) == len(self._episodes):
                raise DatasetError(
                    f"{self._origin}: splits.validation: expected at least one episode to train "
                    f"on, found all {len(validation)} in the split; list fewer"
                )
        except BaseException:
            self.close()
            raise
        self.num_episodes = len(self._episodes)
        self.source_of = tuple(source for source, _ in self._episodes)
        has_splits = any(source.splits for source in manifest.data_sources)
        self.validation = tuple(validation) if has_splits else None

    def episode_number(self, episode: int) -> int:
        """Return the number of the episode in its files; each source has its own numbers."""
        reader, position = self._at(episode)
        return reader.episode_number(position)

    def episode_name(self, episode: int) -> str:
        reader, position = self._at(episode)
        return reader.episode_name(position)

    def episode_length(self, episode: int) -> int:
        reader, position = self._at(episode)
        return reader.episode_length(position)

    def label(self, episode: int) -> EpisodeLabel:
        reader, position = self._at(episode)
        label, stated = reader.label(position), self._instructions[self.source_of[episode]]
        return label if stated is None else replace(label, task=stated, instruction=stated)

    def instruction(self, episode: int) -> str:
        """Return the instruction of an episode; empty if there is none."""
        reader, position = self._at(episode)
        stated = self._instructions[self.source_of[episode]]
        return (stated or reader.instruction(position) or "").strip()

    @property
    def facts(self) -> tuple[DatasetFacts, ...]:
        """Metadata of each source."""
        return tuple(reader.facts for reader in self._readers)

    def frame_size(self, episode: int, view: str) -> tuple[int, int]:
        reader, position = self._at(episode)
        return reader.frame_size(position, self._view_keys[view])

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read RGB frames [start, stop) of one episode, values in [0, 255], one array per view.

        Raises:
            FrameReadError: a frame is missing or does not decode; never fewer rows than requested.
        """
        reader, position = self._at(episode)
        views = reader.frames(position, start, stop)
        if self._manifest.color_order == "rgb":
            return views
        return tuple(np.ascontiguousarray(view[..., ::-1]) for view in views)

    def frame_drift(self, episode: int, view: str) -> float:
        reader, position = self._at(episode)
        return reader.frame_drift(position, self._view_keys[view])

    def state(self, episode: int) -> Float32[np.ndarray, "t s"]:
        """Read the robot state of every step, in the units of the manifest.

        Raises:
            DatasetError: a value is NaN or infinite as float32, or does not read.
        """
        return self._numbers(episode, "state")

    def action(self, episode: int) -> Float32[np.ndarray, "t a"]:
        """Read the action of every step, shifted as the manifest states; errors as of `state`."""
        action = self._numbers(episode, "action")
        rows = np.arange(len(action)) - self._manifest.action_shift
        return np.asarray(action[rows.clip(0, len(action) - 1)])

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"]:
        """Return seconds since the episode's first step; from `fps` if the files have no times.

        Raises:
            DatasetError: a time is NaN or infinite, or does not read.
        """
        reader, position = self._at(episode)
        with np.errstate(over="ignore", invalid="ignore"):  # infinite values are reported below
            kept = reader.timestamp(position)
        if kept is None:
            return np.arange(reader.episode_length(position), dtype=np.float64) / self.fps
        wrong = np.flatnonzero(~np.isfinite(kept))
        if len(wrong):
            raise DatasetError(
                f"{reader.episode_name(position)}: expected finite times, found {kept[wrong[0]]} s "
                f"at step {wrong[0]} ({len(wrong)} in all); correct this episode or leave it out"
            )
        return kept

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def _at(self, episode: int) -> tuple[FormatReader, int]:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"episode: expected 0 to {self.num_episodes - 1}, found {episode}")
        source, position = self._episodes[episode]
        return self._readers[source], position

    def _add_source(self, source: int, on_problem: OnProblem | None) -> list[int]:
        """Open a source and return its validation episodes, as this reader numbers them."""
        opener = SourceOpener(self.loaded, source)
        reader = opener.open(on_problem)
        self._readers.append(reader)
        self._check_fps(reader, on_problem)
        wanted = {"state": self._manifest.state, "action": self._manifest.action}
        columns = {role: _Columns(role, wanted[role], reader, self._origin) for role in wanted}
        self._columns.append(columns)
        for role, first in self._columns[0].items():
            width, found = len(first.sources), len(columns[role].sources)
            if found != width:
                raise DatasetError(
                    f"{self._origin}: sources[{source}]: expected {role} of width {width} as in "
                    f"sources[0], found {found}; write one manifest per robot"
                )
        validation, start = opener.validation(reader), len(self._episodes)
        self._episodes += [(source, position) for position in range(reader.num_episodes)]
        return [
            start + position
            for position in range(reader.num_episodes)
            if reader.episode_number(position) in validation
        ]

    def _check_fps(self, reader: FormatReader, on_problem: OnProblem | None) -> None:
        if reader.fps is None or math.isclose(reader.fps, self.fps, rel_tol=_FPS_TOLERANCE):
            return
        error = DatasetError(
            f"{self._origin}: fps: expected {reader.fps:g} as in "
            f"{reader.episode_name(0)}, found {self.fps:g}; correct it"
        )
        if on_problem is None:
            raise error
        on_problem("fps", self._origin, error)

    def _numbers(self, episode: int, role: str) -> Float32[np.ndarray, "t d"]:
        reader, position = self._at(episode)
        columns = self._columns[self.source_of[episode]][role]
        parts = [reader.numbers(position, key) for key in columns.keys]
        raw = np.concatenate(parts, axis=1)[:, columns.columns]
        with np.errstate(over="ignore"):  # an overflow becomes infinite and is reported below
            values = np.asarray(raw, dtype=np.float32)
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            step, column = (int(index) for index in wrong[0])
            key, dim = columns.sources[column]
            raise DatasetError(
                f"{reader.episode_name(position)}: {key}: expected finite float32 numbers, found "
                f"{raw[step, column]} at step {step}, dim {dim} ({len(wrong)} in all); correct "
                "this episode or leave it out"
            )
        return values
