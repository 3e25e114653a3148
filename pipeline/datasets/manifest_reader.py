"""Episodes as a manifest describes them: what lies between the file layouts and everything else.

Joins state and action from their keys and columns, turns BGR into RGB, shifts actions, leaves
episodes out, and puts several sources one after the other. Knows no file layout and no store.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from pipeline.datasets.base import DatasetPlace, FormatReader
from pipeline.datasets.manifest import Manifest
from pipeline.datasets.manifest_parts import ArraySource, DataSource, key_path
from pipeline.datasets.registry import open_format
from pipeline.errors import DatasetError

_FPS_TOLERANCE: Final = 1e-6  # relative; files keep some rates as float32


class _Columns:
    """Where each column of the state or of the action lies in the files of one source."""

    def __init__(self, role: str, wanted: ArraySource, reader: FormatReader, manifest: Manifest):
        self.keys = wanted.key_paths
        widths = [reader.numbers(0, key).shape[1] for key in self.keys]
        joined = [
            (key, dim) for key, width in zip(self.keys, widths, strict=True) for dim in range(width)
        ]
        self.columns = wanted.columns
        if wanted.columns and max(wanted.columns) >= len(joined):
            raise DatasetError(
                f"{manifest.origin}: {role}.columns: expected columns below {len(joined)}, the "
                f"width of {' + '.join(self.keys)} in {reader.episode_name(0)}, found "
                f"{max(wanted.columns)}; columns are counted from 0"
            )
        self.num_joined = len(joined)
        self.places = [joined[column] for column in wanted.columns] if wanted.columns else joined


class ManifestReader:
    """All episodes that a manifest describes, source after source; implements `EpisodeReader`."""

    def __init__(self, manifest: Manifest) -> None:
        """Open every source and check its files by their headers; no frame is decoded.

        Raises:
            DatasetError: a source is absent, damaged, of no known layout, or does not hold what
                the manifest says; sources do not agree with each other; or the filter and the
                split name episodes that are not there or leave none to train on.
        """
        self.view_names: tuple[str, ...] = manifest.view_names
        self.fps: float = manifest.fps
        self._manifest = manifest
        self._view_keys = {view.name: key_path(view.key) for view in manifest.views}
        self._readers: list[FormatReader] = []
        self._columns: list[tuple[_Columns, _Columns]] = []
        self._episodes: list[tuple[int, int]] = []  # source, position in it
        heldout: list[int] = []
        try:
            for source in range(len(manifest.places)):
                heldout += self._add_source(source)
        except BaseException:
            self.close()
            raise
        self.num_episodes: int = len(self._episodes)
        self.source_of: tuple[int, ...] = tuple(source for source, _ in self._episodes)
        has_splits = any(place.splits for place in manifest.places)
        self.heldout: tuple[int, ...] | None = tuple(heldout) if has_splits else None
        if len(heldout) == self.num_episodes:
            self.close()
            raise DatasetError(
                f"{manifest.origin}: splits.heldout: expected at least one episode to train on, "
                f"found all {self.num_episodes} held out; name fewer"
            )

    def episode_name(self, episode: int) -> str:
        """Name an episode for messages: the path of its file, and the place in it."""
        reader, position, _ = self._at(episode)
        return reader.episode_name(position)

    def episode_length(self, episode: int) -> int:
        """Return the number of control steps of an episode, at least 1."""
        reader, position, _ = self._at(episode)
        return reader.episode_length(position)

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
        if self._manifest.colour_order == "rgb":
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
        """Return seconds since the episode's first step; from `fps` where the files keep none."""
        reader, position, _ = self._at(episode)
        kept = reader.timestamp(position)
        if kept is not None:
            return kept
        return np.arange(reader.episode_length(position), dtype=np.float64) / self.fps

    def close(self) -> None:
        """Close every open file; reading again opens it again."""
        for reader in self._readers:
            reader.close()

    def _at(self, episode: int) -> tuple[FormatReader, int, tuple[_Columns, _Columns]]:
        if not 0 <= episode < self.num_episodes:
            raise IndexError(f"episode {episode}, want 0..{self.num_episodes - 1}")
        source, position = self._episodes[episode]
        return self._readers[source], position, self._columns[source]

    def _add_source(self, source: int) -> list[int]:
        """Open a source and return its held-out episodes, as this reader numbers them."""
        manifest, place = self._manifest, self._manifest.places[source]
        reader = open_format(
            place.format,
            DatasetPlace(
                root=manifest.roots[source],
                view_keys=tuple(self._view_keys.values()),
                number_keys=tuple(
                    dict.fromkeys((*manifest.state.key_paths, *manifest.action.key_paths))
                ),
                allow_outside=place.allow_outside,
            ),
        )
        self._readers.append(reader)
        where = f"sources[{source}]." if manifest.sources else ""
        self._check_fps(reader)
        numbers = [reader.episode_number(position) for position in range(reader.num_episodes)]
        kept = self._kept_numbers(place, numbers, where)
        heldout = self._heldout_numbers(place, reader, kept, where)
        state = _Columns("state", manifest.state, reader, manifest)
        action = _Columns("action", manifest.action, reader, manifest)
        self._columns.append((state, action))
        self._check_widths(reader, source)
        first = len(self._episodes)
        self._episodes += [
            (source, position) for position, number in enumerate(numbers) if number in kept
        ]
        added = [number for number in numbers if number in kept]
        return [first + index for index, number in enumerate(added) if number in heldout]

    def _check_fps(self, reader: FormatReader) -> None:
        if reader.fps is None or math.isclose(reader.fps, self.fps, rel_tol=_FPS_TOLERANCE):
            return
        raise DatasetError(
            f"{self._manifest.origin}: fps: expected {reader.fps:g} as {reader.episode_name(0)} "
            f"says, found {self.fps:g}; correct it"
        )

    def _check_widths(self, reader: FormatReader, source: int) -> None:
        for role, first, ours in zip(
            ("state", "action"), self._columns[0], self._columns[source], strict=True
        ):
            if len(ours.places) != len(first.places):
                raise DatasetError(
                    f"{self._manifest.origin}: sources[{source}]: expected {role} of width "
                    f"{len(first.places)} as in sources[0], found {len(ours.places)} in "
                    f"{reader.episode_name(0)}; put one robot into a manifest"
                )

    def _kept_numbers(self, place: DataSource, numbers: list[int], where: str) -> set[int]:
        if place.episodes is None:
            return set(numbers)
        key = "only" if place.episodes.only else "except"
        named = place.episodes.only or place.episodes.except_ or ()
        self._refuse_unknown(named, numbers, f"{where}episodes.{key}")
        kept = {number for number in numbers if place.episodes.keeps(number)}
        if not kept:
            raise DatasetError(
                f"{self._manifest.origin}: {where}episodes.{key}: expected at least one episode "
                f"left, found all {len(numbers)} left out; name fewer"
            )
        return kept

    def _heldout_numbers(
        self, place: DataSource, reader: FormatReader, kept: set[int], where: str
    ) -> set[int]:
        if place.splits is None:
            return set()
        named = place.splits.heldout
        if not isinstance(named, str):
            self._refuse_unknown(named, sorted(kept), f"{where}splits.heldout")
            return set(named)
        heldout = kept.intersection(reader.subset(named))
        if not heldout:
            raise DatasetError(
                f"{self._manifest.origin}: {where}splits.heldout: expected episodes in the subset "
                f"{named!r}, found none among those used; name another subset, or their numbers"
            )
        return heldout

    def _refuse_unknown(self, named: Sequence[int], numbers: Sequence[int], key: str) -> None:
        unknown = sorted(set(named).difference(numbers))
        if unknown:
            raise DatasetError(
                f"{self._manifest.origin}: {key}: expected numbers of episodes that are there "
                f"({len(numbers)}, from {min(numbers)} to {max(numbers)}), found {unknown[:5]} "
                f"({len(unknown)} in all); remove them"
            )

    def _numbers(self, episode: int, columns: _Columns) -> Float32[np.ndarray, "t d"]:
        reader, position, _ = self._at(episode)
        parts = [reader.numbers(position, key) for key in columns.keys]
        raw = np.concatenate(parts, axis=1)
        if raw.shape[1] != columns.num_joined:
            raise DatasetError(
                f"{reader.episode_name(position)}: {' + '.join(columns.keys)}: expected width "
                f"{columns.num_joined} as in {reader.episode_name(0)}, found {raw.shape[1]}; keep "
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
