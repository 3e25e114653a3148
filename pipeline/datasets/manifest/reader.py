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
        self.measured, widths = _first_widths(self.keys, reader)
        joined = [
            (key, dim) for key, width in zip(self.keys, widths, strict=True) for dim in range(width)
        ]
        self.columns = list(wanted.columns or range(len(joined)))
        if max(self.columns) >= len(joined):
            raise DatasetError(
                f"{origin}: {role}.columns: expected columns below {len(joined)}, the "
                f"width of {' + '.join(self.keys)} in {self.measured}, found "
                f"{max(self.columns)}; columns are counted from 0"
            )
        self.num_joined = len(joined)
        self.sources = [joined[column] for column in self.columns]


def _first_widths(keys: Sequence[str], reader: FormatReader) -> tuple[str, list[int]]:
    """Return the name of the first episode that reads, and the widths of its arrays."""
    for episode in range(reader.num_episodes):
        try:
            widths = [reader.numbers(episode, key).shape[1] for key in keys]
            return reader.episode_name(episode), widths
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
        self.loaded, self._origin, manifest = loaded, loaded.origin, loaded.manifest
        self.view_names, self.fps, self.fit = manifest.view_names, manifest.fps, manifest.fit
        self._manifest = manifest
        self._view_keys = {view.name: key_path(view.key) for view in manifest.views}
        self._readers: list[FormatReader] = []
        self._columns: list[tuple[_Columns, _Columns]] = []
        self._episodes: list[tuple[int, int]] = []  # source, position in it
        validation: list[int] = []
        try:
            for source in range(len(manifest.data_sources)):
                validation += self._add_source(source, on_problem)
        except BaseException:
            self.close()
            raise
        self.num_episodes = len(self._episodes)
        self.source_of = tuple(source for source, _ in self._episodes)
        has_splits = any(source.splits for source in manifest.data_sources)
        self.validation = tuple(validation) if has_splits else None
        if len(validation) == self.num_episodes:
            self.close()
            raise DatasetError(
                f"{self._origin}: splits.validation: expected at least one episode to train on, "
                f"found all {self.num_episodes} in the split; list fewer"
            )

    def episode_number(self, episode: int) -> int:
        """Return the number of the episode in its files; each source has its own numbers."""
        reader, position, _ = self._at(episode)
        return reader.episode_number(position)

    def episode_name(self, episode: int) -> str:
        reader, position, _ = self._at(episode)
        return reader.episode_name(position)

    def episode_length(self, episode: int) -> int:
        reader, position, _ = self._at(episode)
        return reader.episode_length(position)

    def label(self, episode: int) -> EpisodeLabel:
        reader, position, _ = self._at(episode)
        label, stated = reader.label(position), self._stated_instruction(episode)
        return label if stated is None else replace(label, task=stated, instruction=stated)

    def instruction(self, episode: int) -> str:
        """Return the instruction of an episode; empty if there is none."""
        reader, position, _ = self._at(episode)
        return (self._stated_instruction(episode) or reader.instruction(position) or "").strip()

    def _stated_instruction(self, episode: int) -> str | None:
        return self._manifest.data_sources[self.source_of[episode]].instruction

    @property
    def facts(self) -> tuple[DatasetFacts, ...]:
        """Metadata of each source."""
        return tuple(reader.facts for reader in self._readers)

    def frame_size(self, episode: int, view: str) -> tuple[int, int]:
        reader, position, _ = self._at(episode)
        return reader.frame_size(position, self._view_keys[view])

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read RGB frames [start, stop) of one episode, values in [0, 255], one array per view.

        Raises:
            FrameReadError: a frame is missing or does not decode; never fewer rows than requested.
        """
        reader, position, _ = self._at(episode)
        views = reader.frames(position, start, stop)
        if self._manifest.color_order == "rgb":
            return views
        return tuple(np.ascontiguousarray(view[..., ::-1]) for view in views)

    def frame_drift(self, episode: int, view: str) -> float:
        reader, position, _ = self._at(episode)
        return reader.frame_drift(position, self._view_keys[view])

    def state(self, episode: int) -> Float32[np.ndarray, "t s"]:
        """Read the robot state of every step, in the units of the manifest.

        Raises:
            DatasetError: a value is NaN or infinite as float32, or does not read.
        """
        _, _, (columns, _) = self._at(episode)
        return self._numbers(episode, columns)

    def action(self, episode: int) -> Float32[np.ndarray, "t a"]:
        """Read the action of every step, in the units of the manifest, shifted as it states.

        Raises:
            DatasetError: a value is NaN or infinite as float32, or does not read.
        """
        _, _, (_, columns) = self._at(episode)
        action = self._numbers(episode, columns)
        rows = np.arange(len(action)) - self._manifest.action_shift
        shifted: np.ndarray = action[rows.clip(0, len(action) - 1)]
        return shifted

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"]:
        """Return seconds since the episode's first step; from `fps` if the files have no times.

        Raises:
            DatasetError: a time is NaN or infinite, or does not read.
        """
        reader, position, _ = self._at(episode)
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

    def _at(self, episode: int) -> tuple[FormatReader, int, tuple[_Columns, _Columns]]:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"episode: expected 0 to {self.num_episodes - 1}, found {episode}")
        source, position = self._episodes[episode]
        return self._readers[source], position, self._columns[source]

    def _add_source(self, source: int, on_problem: OnProblem | None) -> list[int]:
        """Open a source and return its validation episodes, as this reader numbers them."""
        manifest, data = self._manifest, self._manifest.data_sources[source]
        opener = SourceOpener(self.loaded, source)
        reader = opener.open(on_problem)
        self._readers.append(reader)
        self._check_fps(reader, on_problem)
        numbers = [reader.episode_number(position) for position in range(reader.num_episodes)]
        named = data.splits.validation if data.splits is not None else ()
        if isinstance(named, str):
            validation = self._subset(reader, named, numbers, opener.where)
        else:
            validation = set(named)
            opener.refuse_unknown(validation, opener.kept, "splits.validation")
        state = _Columns("state", manifest.state, reader, self._origin)
        action = _Columns("action", manifest.action, reader, self._origin)
        self._columns.append((state, action))
        self._check_widths(reader, source)
        first = len(self._episodes)
        self._episodes += [(source, position) for position in range(reader.num_episodes)]
        return [first + position for position, number in enumerate(numbers) if number in validation]

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

    def _check_widths(self, reader: FormatReader, source: int) -> None:
        for role, first, ours in zip(
            ("state", "action"), self._columns[0], self._columns[source], strict=True
        ):
            if len(ours.sources) != len(first.sources):
                raise DatasetError(
                    f"{self._origin}: sources[{source}]: expected {role} of width "
                    f"{len(first.sources)} as in sources[0], found {len(ours.sources)} in "
                    f"{reader.episode_name(0)}; write one manifest per robot"
                )

    def _subset(self, reader: FormatReader, name: str, numbers: list[int], where: str) -> set[int]:
        validation = set(numbers).intersection(reader.subset(name))
        if not validation:
            raise DatasetError(
                f"{self._origin}: {where}splits.validation: expected episodes in the subset "
                f"{name!r}, found none in use; choose another subset, or list episode numbers"
            )
        return validation

    def _numbers(self, episode: int, columns: _Columns) -> Float32[np.ndarray, "t d"]:
        reader, position, _ = self._at(episode)
        parts = [reader.numbers(position, key) for key in columns.keys]
        raw = np.concatenate(parts, axis=1)
        if raw.shape[1] != columns.num_joined:
            raise DatasetError(
                f"{reader.episode_name(position)}: {' + '.join(columns.keys)}: expected width "
                f"{columns.num_joined} as in {columns.measured}, found {raw.shape[1]}; create "
                "one dataset per robot"
            )
        raw = raw[:, columns.columns]
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
