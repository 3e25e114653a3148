"""The feature store: frozen features, state and action of every step, in Zarr format 3.

Knows arrays, units and commits; nothing about how features are made. Layout below the store's
folder:

    features [N, S, 768] float16     one file a unit (see units.py), uncompressed, crc32c; S slots
                                     a step: its views, then those of each augmented variant
    state [N, S] float32   action [N, A] float32   timestamp [N] float64   episode_ends [E] int64
    frame_hash [N, S] uint64         hash of the decoded pixels of every frame
    start_frames [K, V, 32, 32, 3] uint8   start_episodes [K] int64   see start_frames.py
    probe/                           frames and their features: see probe.py
    commits/000000.json              one sealed record a unit: its rows and their sha256
    FILES.json                       size and sha256 of every file, written when all is there
    COMPLETE.json                    written last; readers refuse a store without it

What counts as written is what has a commit record whose hash fits; what counts as complete is what
has a list of files and a mark whose hashes fit.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float16, Int64, UInt8, UInt64

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.identity.probe import Probe
from pipeline.features.store.attributes import StoreAttributes, check_format_version
from pipeline.features.store.completion import Completion
from pipeline.features.store.layout import (
    PROBE,
    ROOT,
    ROOTS,
    START_ARRAYS,
    UNIT_ARRAYS,
    UNREADABLE,
    create_arrays,
    is_vacant,
    open_array,
    open_group,
    open_unit_array,
    read_num_rows,
    read_probe,
)
from pipeline.features.store.records import (
    COMMITS,
    CompleteMark,
    UnitRecord,
    all_finite,
    read_unit_record,
    source_digest,
    unit_hash,
    unmark,
    write_file_list,
    write_mark,
    write_unit_record,
)
from pipeline.features.store.start_frames import StartFrames
from pipeline.features.store.steps import PIECE_ROWS, STEP_ARRAYS, StepArrays, Steps
from pipeline.features.store.units import PASSING_ROWS, cut, num_units, unit_rows
from pipeline.storage.folders import Folder, Location, open_folder
from pipeline.storage.local_files import json_bytes
from policy.spec import FEATURE_DIM


class FeatureStore:
    """A store on a disk or in object storage; make one with `create` or `open`."""

    def __init__(
        self,
        folder: Folder,
        group: zarr.Group,
        attributes: StoreAttributes,
        completion: Completion,
    ):
        self.folder = folder
        self.path = folder.location
        self.attributes = attributes
        self._group = group
        self._completion = completion
        self.num_rows = read_num_rows(group)
        self.num_units = num_units(self.num_rows, attributes.rows_per_unit)
        for name in UNIT_ARRAYS:
            self._open(name)

    @classmethod
    def create(
        cls, path: Location, attributes: StoreAttributes, steps: Steps, probe: Probe
    ) -> "FeatureStore":
        """Create a store with every array at full size and no features yet.

        Raises:
            DatasetError: some of the steps' numbers cannot be used; there is no store at `path`.
            StoreError: there is something at `path` other than an empty folder.
            OSError: the disk is full or not writable; there is no store at `path`.
        """
        folder = open_folder(path)
        if not is_vacant(folder):
            raise StoreError(f"{path}: holds something already; choose another path")
        create_arrays(folder, attributes, steps, probe)
        return cls.open(path, allow_incomplete=True, writable=True)

    @classmethod
    def open(
        cls, path: Location, *, allow_incomplete: bool = False, writable: bool = False
    ) -> "FeatureStore":
        """Open a store.

        Raises:
            StoreError: there is none at `path`, it is of another format, or it is complete and
                what describes its arrays was changed since.
            IncompleteStoreError: embedding has not finished and `allow_incomplete` is False.
        """
        folder = open_folder(path)
        if not folder.exists(ROOT):
            raise StoreError(f"{path}: no feature store here; make one with vla-embed")
        completion = Completion(folder)
        # Before zarr believes what they say.
        completion.check_files(lambda name: name.endswith("zarr.json"))
        try:
            group = open_group(folder, writable=writable)
            held = dict(group.attrs)
            check_format_version(held, where=str(path))
            store = cls(folder, group, StoreAttributes.model_validate(held), completion)
        except StoreError:
            raise
        except UNREADABLE as error:
            raise StoreError(
                f"{path}: not a feature store of this program ({error}); restore it from a copy, "
                f"or name another --store"
            ) from error
        if completion.mark() is None and not allow_incomplete:
            done = sum(name.endswith(".json") for name in folder.names(COMMITS))
            raise IncompleteStoreError(
                f"{path}: embedding stopped after {done} of {store.num_units} units; run the same "
                f"vla-embed command again to finish it"
            )
        return store

    def unit_rows(self, unit: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a unit; the last one may be short."""
        return unit_rows(unit, self.num_rows, self.attributes.rows_per_unit)

    @property
    def is_complete(self) -> bool:
        """Whether every row of every view was written."""
        return self._completion.mark() is not None

    def digest(self) -> str:
        """Return the sha256 that names a complete store's content: features, steps, encoder.

        Raises:
            IncompleteStoreError: the store is not complete.
        """
        return self._completion.require_mark().digest

    def source_digest(self) -> str:
        """Return the sha256 over a complete store's views, episode ends and decoded frames.

        Two stores of different encoders that were made from the same pictures share it.

        Raises:
            IncompleteStoreError: the store is not complete.
        """
        return self._completion.require_mark().source_digest

    def check_digest(self) -> None:
        """Compare what the complete mark promises with attributes, steps and commit records.

        Features are checked against the commit records when they are read.

        Raises:
            StoreError: something was changed after the store was completed.
        """
        if self._content_digest() != self.digest():
            what = "attributes or commit records are not those that were embedded"
            raise StoreError(f"{self.path}: {what}; embed the dataset into another --store")

    def unreplaced(self) -> AbstractContextManager[str]:
        """Give the digest of what is read within; units of two stores never get mixed.

        Raises:
            IncompleteStoreError: the store is not complete.
            StoreError: another store took its place meanwhile, or it was written.
        """
        return self._completion.unreplaced()

    def replace_attributes(self, attributes: StoreAttributes) -> None:
        """Say something else of the same rows; a complete store is incomplete until marked again.

        Raises:
            OSError: the disk is full; the attributes are the old ones.
        """
        unmark(self.folder)
        metadata = json.loads(self.folder.read(ROOT))
        metadata["attributes"] = attributes.model_dump(mode="json")
        self.folder.write(ROOT, json_bytes(metadata))
        self.attributes = attributes

    def valid_units(self, among: Iterable[int] | None = None) -> set[int]:
        """Return the units, of all or of some, whose record fits encoder and bytes on the disk."""
        valid = set()
        for unit in range(self.num_units) if among is None else among:
            with suppress(StoreError):
                self._unit_record(unit)  # first: without one there are no rows to read
                self.read_unit_hashes(unit)
                valid.add(unit)
        return valid

    def unit_engines(self, unit: int) -> frozenset[str]:
        """Return the digests of the engines behind a unit's features; StoreError without record."""
        return frozenset(self._unit_record(unit).engines)

    def write_unit(
        self,
        unit: int,
        features: Float16[np.ndarray, "n s 768"],
        frame_hash: UInt64[np.ndarray, "n s"],
        engines: Set[str],
    ) -> None:
        """Write a unit's rows to the disk, then its commit record.

        Args:
            unit: its number.
            features: of every row of the unit.
            frame_hash: of the pixels behind them.
            engines: `EngineRecord.digest` of every engine that computed some of the features.

        Raises:
            StoreError: a feature is not finite.
            OSError: the disk is full; the unit has no record and is encoded again next time.
        """
        start, stop = self.unit_rows(unit)
        assert len(features) == len(frame_hash) == stop - start
        if not all_finite(features):
            raise StoreError(f"{self.path}: rows {start}..{stop} hold features that are not finite")
        unmark(self.folder)  # a damaged unit is being replaced
        with ThreadPoolExecutor(max_workers=1) as beside:  # neither holds Python's lock for long
            digest = beside.submit(unit_hash, [features], frame_hash)
            for name, rows in (("features", features), ("frame_hash", frame_hash)):
                self._open(name)[start:stop] = rows
                self.folder.settle(f"{name}/c/{unit}")
        record = UnitRecord(
            unit=unit,
            rows=(start, stop),
            sha256=digest.result(),
            fingerprint=self.attributes.encoder.fingerprint,
            engines=tuple(sorted(engines)),
        )
        write_unit_record(self.folder, record)

    def write_start_frames(self, frames: UInt8[np.ndarray, "k v 32 32 3"]) -> None:
        """Write small copies of the first frames of the episodes in `start_episodes`."""
        unmark(self.folder)
        self._open("start_frames")[:] = frames
        self.folder.settle("start_frames")

    def mark_complete(self) -> None:
        """Write the list of files and the mark, after checking every unit against its record.

        Raises:
            StoreError: some unit has no valid record.
            OSError: the disk is full; the store stays incomplete.
        """
        views, ends = self.attributes.view_names, self._read("episode_ends")
        hashes = (self.read_unit_hashes(unit) for unit in range(self.num_units))
        source = source_digest(views, ends, (of_unit[:, : len(views)] for of_unit in hashes))
        mark = CompleteMark(
            rows=self.num_rows,
            units=self.num_units,
            digest=self._content_digest(),
            source_digest=source,
            file_list=write_file_list(self.folder, (*ROOTS, COMMITS)),
        )
        write_mark(self.folder, mark)

    def read_features(
        self, into: Float16[np.ndarray, "n s 768"] | None = None
    ) -> Float16[np.ndarray, "n s 768"]:
        """Read all features, into new memory unless told; each unit is checked by its record.

        Raises:
            StoreError: a unit is damaged; the message names it.
        """
        shape = (self.num_rows, self.attributes.num_slots, FEATURE_DIM)
        features = np.empty(shape, np.float16) if into is None else into
        for unit in range(self.num_units):
            start, stop = self.unit_rows(unit)
            features[start:stop] = self.read_unit_features(unit)
        return features

    def read_unit_features(self, unit: int) -> Float16[np.ndarray, "n s 768"]:
        """Read a unit's features, checked against its record.

        Raises:
            StoreError: the unit was never committed, or is damaged.
        """
        rows = slice(*self.unit_rows(unit))
        features, frame_hash = (self._read(name, rows) for name in UNIT_ARRAYS)
        self._check_unit(unit, unit_hash([features], frame_hash))
        return features

    def read_unit_hashes(self, unit: int) -> UInt64[np.ndarray, "n s"]:
        """Read the hash of the pixels of every frame of a unit, checked against its record.

        Raises:
            StoreError: the unit was never committed, or is damaged.
        """
        rows = self.unit_rows(unit)
        # Nobody keeps the features: they pass by in pieces, each of which is a request elsewhere.
        pieces = cut(*rows, PASSING_ROWS) if isinstance(self.path, Path) else [slice(*rows)]
        features = (self._read("features", piece) for piece in pieces)
        frame_hash = self._read("frame_hash", slice(*rows))
        self._check_unit(unit, unit_hash(features, frame_hash))
        return frame_hash

    def read_steps(self) -> StepArrays:
        """Read state, action, timestamps and episode ends into memory.

        Raises:
            StoreError: an array is damaged; the message names it.
        """
        self._completion.check_arrays(*STEP_ARRAYS)
        return StepArrays(**{name: self._read(name) for name in STEP_ARRAYS})

    def read_step_pieces(self, name: str) -> Iterator[np.ndarray]:
        """Read an array of `StepArrays` in pieces of rows, where memory need not hold it whole.

        Raises:
            StoreError: the array is damaged.
        """
        self._completion.check_arrays(name)
        for start in count(0, PIECE_ROWS):
            piece = self._read(name, slice(start, start + PIECE_ROWS))
            if not len(piece):
                return
            yield piece

    def read_episode_ends(self) -> Int64[np.ndarray, " e"]:
        """Read the row after each episode's last; StoreError where the array is damaged."""
        return self._read("episode_ends")

    def read_probe(self) -> Probe:
        """Read the frames, features and engine that an encoder is compared with.

        Raises:
            StoreError: the probe is damaged.
        """
        try:
            return read_probe(self._group)
        except UNREADABLE as error:
            what = f"damaged ({error}); embed into another --store"
            raise StoreError(f"{self.path}/{PROBE}: {what}") from error

    def read_start_frames(self) -> StartFrames:
        """Read small copies of first frames; StoreError where an array is damaged."""
        self._completion.check_arrays(*START_ARRAYS)
        return StartFrames(*(self._read(name) for name in START_ARRAYS))

    def _content_digest(self) -> str:
        digest = hashlib.sha256(self.attributes.model_dump_json().encode())
        for name in STEP_ARRAYS:
            for piece in self.read_step_pieces(name):
                digest.update(piece.tobytes())
        digest.update(self.read_start_frames().digest().encode())
        digest.update(self.read_probe().digest().encode())
        for unit in range(self.num_units):
            digest.update(self._unit_record(unit).model_dump_json().encode())
        return digest.hexdigest()

    def _unit_record(self, unit: int) -> UnitRecord:
        made_by = self.attributes.encoder.fingerprint
        return read_unit_record(self.folder, unit, self.unit_rows(unit), made_by)

    def _check_unit(self, unit: int, found: str) -> None:
        if found != self._unit_record(unit).sha256:
            where = "{}: rows {}..{}".format(self.path, *self.unit_rows(unit))
            raise StoreError(f"{where} (unit {unit}) do not hash to their commit record")

    def _open(self, name: str) -> zarr.Array[Any]:
        if name not in UNIT_ARRAYS:
            return open_array(self._group, name)
        held, num_rows = self.attributes, self.num_rows
        return open_unit_array(self._group, name, (num_rows, held.num_slots), held.rows_per_unit)

    def _read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        try:
            return np.asarray(self._open(name)[rows])
        except UNREADABLE as error:
            raise StoreError(
                f"{self.path}/{name}: cannot be read ({error}); where another store took its place "
                f"run the same command again, otherwise run vla-embed again"
            ) from error
