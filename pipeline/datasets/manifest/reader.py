"""Episodes as a manifest describes them: what lies between the file layouts and everything else.

Joins state and action from their keys and columns, turns BGR into RGB, shifts actions, leaves
episodes out, and puts several sources one after the other.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from pipeline.datasets.base import DatasetFacts, EpisodeLabel, FormatReader
from pipeline.datasets.manifest.model import LoadedManifest
from pipeline.datasets.manifest.parts import ArraySource, key_path
from pipeline.datasets.manifest.sources import Complain, SourceOpener
from pipeline.errors import DatasetError
from policy.spec import Fit

_MAX_UNREADABLE: Final = 20  # episodes, one after the other; not all of a hundred thousand
_FPS_TOLERANCE: Final = 1e-6  # relative; files keep some rates as float32


class _Columns:
    """Where each column of the state or of the action lies in the files of one source."""

    def __init__(self, role: str, wanted: ArraySource, reader: FormatReader, origin: str):
        self.keys = wanted.key_paths
        self.measured, widths = _first_widths(self.keys, reader)
        joined = [
            (key, dim) for key, width in zip(self.keys, widths, strict=True) for dim in range(width)
        ]
        self.columns = wanted.columns
        if wanted.columns and max(wanted.columns) >= len(joined):
            raise DatasetError(
                f"{origin}: {role}.columns: expected columns below {len(joined)}, the "
                f"width of {' + '.join(self.keys)} in {self.measured}, found "
                f"{max(wanted.columns)}; columns are counted from 0"
            )
        self.num_joined = len(joined)
        self.places = [joined[column] for column in wanted.columns] if wanted.columns else joined


def _first_widths(keys: Sequence[str], reader: FormatReader) -> tuple[str, list[int]]:
    """Return the name of the first episode that reads, and the widths of its arrays."""
    for episode in range(reader.num_episodes):
        try:
            widths = [reader.numbers(episode, key).shape[1] for key in keys]
        except DatasetError:  # told by whoever reads that episode; others may be fine
            if episode == min(reader.num_episodes, _MAX_UNREADABLE) - 1:
                raise
        else:
            return reader.episode_name(episode), widths
    raise AssertionError("a reader has episodes")


class ManifestReader:
    """All episodes that a manifest describes, source after source; implements `EpisodeReader`."""

    def __init__(self, loaded: LoadedManifest, *, complain: Complain | None = None) -> None:
        """Open every source and check its files by their headers; no frame is decoded.

        Args:
            loaded: the manifest, and the places of its data.
            complain: is told of episodes that do not open, which are then passed over, and of
                another rate than the manifest's; None raises.

        Raises:
            DatasetError: a source is absent, damaged, of no known layout, or does not hold what
                the manifest says; sources do not agree with each other; or the filter and the
                split name episodes that are not there or leave none to train on.
        """
        self._loaded, self._origin, manifest = loaded, loaded.origin, loaded.manifest
        self.view_names: tuple[str, ...] = manifest.view_names
        self.fps: float = manifest.fps
        self.fit: Fit = manifest.fit
        self._manifest = manifest
        self._view_keys = {view.name: key_path(view.key) for view in manifest.views}
        self._readers: list[FormatReader] = []
        self._columns: list[tuple[_Columns, _Columns]] = []
        self._episodes: list[tuple[int, int]] = []  # source, position in it
        validation: list[int] = []
        try:
            for source in range(len(manifest.places)):
                validation += self._add_source(source, complain)
        except BaseException:
            self.close()
            raise
        self.num_episodes: int = len(self._episodes)
        self.source_of: tuple[int, ...] = tuple(source for source, _ in self._episodes)
        has_splits = any(place.splits for place in manifest.places)
        self.validation: tuple[int, ...] | None = tuple(validation) if has_splits else None
        if len(validation) == self.num_episodes:
            self.close()
            raise DatasetError(
                f"{self._origin}: splits.validation: expected at least one episode to train on, "
                f"found all {self.num_episodes} held out; name fewer"
            )

    def episode_number(self, episode: int) -> int:
        """Return the number that the files give the episode; sources number each for itself."""
        reader, position, _ = self._at(episode)
        return reader.episode_number(position)

    def episode_name(self, episode: int) -> str:
        """Name an episode for messages: the path of its file, and the place in it."""
        reader, position, _ = self._at(episode)
        return reader.episode_name(position)

    def episode_length(self, episode: int) -> int:
        """Return the number of control steps of an episode, at least 1."""
        reader, position, _ = self._at(episode)
        return reader.episode_length(position)

    def label(self, episode: int) -> EpisodeLabel:
        """Return what the files say of an episode, next to its arrays.

        Raises:
            DatasetError: it does not read.
        """
        reader, position, _ = self._at(episode)
        return reader.label(position)

    @property
    def facts(self) -> tuple[DatasetFacts, ...]:
        """What the files of each source say of the whole of it."""
        return tuple(reader.facts for reader in self._readers)

    def frame_size(self, episode: int, view: str) -> tuple[int, int]:
        """Return (height, width) of a view's frames in pixels, decoding one frame at most."""
        reader, position, _ = self._at(episode)
        return reader.frame_size(position, self._view_keys[view])

    def frames(
        self, episode: int, start: int, stop: int
    ) -> tuple[UInt8[np.ndarray, "t h w 3"], ...]:
        """Read RGB frames [start, stop) of one episode, values in [0, 255], one array a view.

        Raises:
            FrameReadError: a frame is absent or does not decode; never fewer rows than asked.
        """
        reader, position, _ = self._at(episode)
        views = reader.frames(position, start, stop)
        if self._manifest.color_order == "rgb":
            return views
        return tuple(np.ascontiguousarray(view[..., ::-1]) for view in views)

    def frame_drift(self, episode: int, view: str) -> float:
        """Return the largest distance in seconds between a step and its frame; 0 without times."""
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
        """Read the action of every step, in the units of the manifest, shifted as it says.

        Raises:
            DatasetError: a value is NaN or infinite as float32, or does not read.
        """
        _, _, (_, columns) = self._at(episode)
        action = self._numbers(episode, columns)
        rows = np.arange(len(action)) - self._manifest.action_shift
        shifted: np.ndarray = action[rows.clip(0, len(action) - 1)]
        return shifted

    def timestamp(self, episode: int) -> Float64[np.ndarray, " t"]:
        """Return seconds since the episode's first step; from `fps` where the files keep none.

        Raises:
            DatasetError: a time is NaN or infinite, or does not read.
        """
        reader, position, _ = self._at(episode)
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is reported below
            kept = reader.timestamp(position)
        if kept is None:
            return np.arange(reader.episode_length(position), dtype=np.float64) / self.fps
        wrong = np.flatnonzero(~np.isfinite(kept))
        if len(wrong):
            raise DatasetError(
                f"{reader.episode_name(position)}: expected finite times, found "
                f"{kept[wrong[0]]} s at step {wrong[0]} ({len(wrong)} in all); correct this "
                "episode or leave it out"
            )
        return kept

    def close(self) -> None:
        """Close every open file; reading again opens it again."""
        for reader in self._readers:
            reader.close()

    def _at(self, episode: int) -> tuple[FormatReader, int, tuple[_Columns, _Columns]]:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"episode {episode}, want 0..{self.num_episodes - 1}")
        source, position = self._episodes[episode]
        return self._readers[source], position, self._columns[source]

    def _add_source(self, source: int, complain: Complain | None) -> list[int]:
        """Open a source and return its validation episodes, as this reader numbers them."""
        manifest, place = self._manifest, self._manifest.places[source]
        opener = SourceOpener(self._loaded, source)
        reader = opener.open(complain)
        self._readers.append(reader)
        self._check_fps(reader, complain)
        numbers = [reader.episode_number(position) for position in range(reader.num_episodes)]
        named = place.splits.validation if place.splits is not None else ()
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

    def _check_fps(self, reader: FormatReader, complain: Complain | None) -> None:
        if reader.fps is None or math.isclose(reader.fps, self.fps, rel_tol=_FPS_TOLERANCE):
            return
        error = DatasetError(
            f"{self._origin}: fps: expected {reader.fps:g} as {reader.episode_name(0)} "
            f"says, found {self.fps:g}; correct it"
        )
        if complain is None:
            raise error
        complain("fps", self._origin, error)

    def _check_widths(self, reader: FormatReader, source: int) -> None:
        for role, first, ours in zip(
            ("state", "action"), self._columns[0], self._columns[source], strict=True
        ):
            if len(ours.places) != len(first.places):
                raise DatasetError(
                    f"{self._origin}: sources[{source}]: expected {role} of width "
                    f"{len(first.places)} as in sources[0], found {len(ours.places)} in "
                    f"{reader.episode_name(0)}; put one robot into a manifest"
                )

    def _subset(self, reader: FormatReader, name: str, numbers: list[int], where: str) -> set[int]:
        validation = set(numbers).intersection(reader.subset(name))
        if not validation:
            raise DatasetError(
                f"{self._origin}: {where}splits.validation: expected episodes in the subset "
                f"{name!r}, found none among those used; name another subset, or their numbers"
            )
        return validation

    def _numbers(self, episode: int, columns: _Columns) -> Float32[np.ndarray, "t d"]:
        reader, position, _ = self._at(episode)
        parts = [reader.numbers(position, key) for key in columns.keys]
        raw = np.concatenate(parts, axis=1)
        if raw.shape[1] != columns.num_joined:
            raise DatasetError(
                f"{reader.episode_name(position)}: {' + '.join(columns.keys)}: expected width "
                f"{columns.num_joined} as in {columns.measured}, found {raw.shape[1]}; keep "
                "one robot to a dataset"
            )
        if columns.columns is not None:
            raw = raw[:, columns.columns]
        with np.errstate(over="ignore"):  # an overflow becomes infinite and is reported below
            values = np.asarray(raw, dtype=np.float32)
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            step, column = (int(index) for index in wrong[0])
            key, dim = columns.places[column]
            raise DatasetError(
                f"{reader.episode_name(position)}: {key}: expected finite float32 numbers, found "
                f"{raw[step, column]} at step {step}, dim {dim} ({len(wrong)} in all); correct "
                "this episode or leave it out"
            )
        return values
