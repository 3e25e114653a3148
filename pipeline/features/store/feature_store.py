"""The feature store: frozen features, state and action of every step; see `layout.py`.

A unit is committed if it has a commit record whose hashes fit its rows in every array; a store is
complete if it has a mark. One scheme covers each byte: a crc32c per chunk, the record's hashes per
unit, and the mark's hashes of everything else.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float16, Float32, Int64, UInt8, UInt64

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.identity.probe import Probe
from pipeline.features.store.attributes import FORMAT, FORMAT_VERSION, StoreAttributes
from pipeline.features.store.layout import (
    BASES,
    FEATURES,
    FRAME_HASH,
    INSTRUCTIONS,
    PROBE,
    ROOT,
    START_ARRAYS,
    UNREADABLE,
    create_arrays,
    create_whole,
    is_vacant,
    open_group,
    unit_arrays,
)
from pipeline.features.store.records import (
    COMMITS,
    CompleteMark,
    UnitRecord,
    damaged_metadata,
    find_mark,
    hash_rows,
    read_sealed,
    record_name,
    unmark,
    write_sealed,
)
from pipeline.features.store.start_frames import StartFrames
from pipeline.features.store.steps import STEP_ARRAYS, StepArrays
from pipeline.features.store.units import PASSING_ROWS, cut
from pipeline.storage.local import naming
from pipeline.storage.location import Location, on_disk
from pipeline.storage.open import Folder, open_folder
from policy.encoders.environment import ComputeEnvironment
from policy.spec import EncoderIdentity


class FeatureStore:
    """A store on a disk or in object storage; make one with `create` or `open`."""

    def __init__(self, folder: Folder, group: zarr.Group, attributes: StoreAttributes):
        self.folder = folder
        self.path = folder.location
        self.attributes = attributes
        self._group = group
        state = self._open("state")
        if state.ndim != len(STEP_ARRAYS["state"]):
            raise ValueError(f"state: expected 2 axes, found shape {state.shape}")
        self.num_rows = state.shape[0]
        self._units = [*cut(0, self.num_rows, attributes.rows_per_unit)]
        self.num_units = len(self._units)
        for name in unit_arrays(attributes):
            self._open(name)

    @classmethod
    def create(
        cls,
        path: Location,
        attributes: StoreAttributes,
        steps: StepArrays,
        probe: Probe,
        bases: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> "FeatureStore":
        """Create a store with every array at full size (StoreError: `path` is taken; OSError)."""
        folder = open_folder(path)
        if not is_vacant(folder):
            raise StoreError(
                f"{path}: expected an empty or new folder, found other files; choose another path"
            )
        with naming(path):
            create_arrays(folder, attributes, steps, probe, bases)
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
            raise StoreError(
                f"{path}: expected a feature store, found none; create one with vla-embed"
            )
        damaged = damaged_metadata(folder)  # before zarr reads it
        if damaged:
            raise StoreError(
                f"{path}/{damaged[0]}: is missing or was changed since the store was completed; "
                f"restore it from a copy, or embed into another --store"
            )
        try:
            group = open_group(folder, writable=writable)
            held = dict(group.attrs)
            version = held.get("format_version")
            if held.get("format") == FORMAT and version != FORMAT_VERSION:
                raise StoreError(
                    f"{path}: expected format version {FORMAT_VERSION}, found {version}; use the "
                    f"release of frozen-vla that wrote it, or embed the dataset into another "
                    f"--store"
                )
            store = cls(folder, group, StoreAttributes.model_validate(held))
        except StoreError:
            raise
        except UNREADABLE as error:
            raise StoreError(
                f"{path}: cannot be read as a feature store ({error}); restore it from a copy, "
                f"or use another --store"
            ) from error
        if not store.is_complete and not allow_incomplete:
            done = sum(name.endswith(".json") for name in folder.names(COMMITS))
            raise IncompleteStoreError(
                f"{path}: embedding stopped after {done} of {store.num_units} units; run the same "
                f"vla-embed command again to finish it"
            )
        return store

    def unit_rows(self, unit: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a unit; the last one may be short."""
        return self._units[unit].start, self._units[unit].stop

    def num_unit_rows(self, unit: int) -> int:
        """Return how many rows a unit has."""
        return len(range(*self.unit_rows(unit)))

    @property
    def is_complete(self) -> bool:
        """Whether every row of every view was written."""
        return find_mark(self.folder) is not None

    def digest(self) -> str:
        """Return the sha256 of the content (IncompleteStoreError: the store is not complete)."""
        return self._mark().digest

    def source_digest(self) -> str:
        """Return the sha256 over views, episode ends and decoded frames, whichever the encoder."""
        return self._mark().source_digest

    @contextmanager
    def unreplaced(self) -> Iterator[str]:
        """Yield the digest of what the caller reads; units of two stores are never mixed.

        Raises:
            StoreError: another store replaced it meanwhile, it was written, or it is not complete.
        """
        digest = self.digest()
        try:
            yield digest
        finally:  # also after an error, which the change may have caused
            mark = find_mark(self.folder)
            if mark is None or mark.digest != digest:
                raise StoreError(
                    f"{self.path}: the store was replaced or changed while it was read; "
                    f"run the same command again"
                )

    def _mark(self) -> CompleteMark:
        mark = find_mark(self.folder)
        if mark is None:
            raise IncompleteStoreError(
                f"{self.path}: expected a complete store, found an incomplete one; run vla-embed "
                f"again"
            )
        return mark

    @property
    def encoder(self) -> EncoderIdentity:
        """Which encoder made the features, and which they are."""
        return self.attributes.encoder

    def valid_units(self, among: Iterable[int] | None = None) -> set[int]:
        """Return the units, of all or of some, that match their commit record."""
        valid = set()
        for unit in range(self.num_units) if among is None else among:
            with suppress(StoreError):
                self.check_unit(unit)
                valid.add(unit)
        return valid

    def check_unit(self, unit: int) -> None:
        """Compare a unit's rows in every array with its record (StoreError: see `check_rows`)."""
        for name in unit_arrays(self.attributes):
            self.check_rows(unit, name)

    def check_rows(self, unit: int, name: str, rows: Iterable[np.ndarray] | None = None) -> None:
        """Compare a unit's rows in one array with its record, with few of them in memory.

        `name` is a key of `unit_arrays`; `rows` are the unit's in slices, if the caller reads them.

        Raises:
            StoreError: the unit was never committed, or is damaged; the message names the array.
        """
        record = self.unit_record(unit)  # first: without one there are no rows to read
        if hash_rows(rows or self.read_slices(unit, name)) != record.sha256.get(name):
            start, stop = record.rows
            raise StoreError(
                f"{self.path}: rows {start}..{stop} (unit {unit}) of {name} differ from the "
                f"checksum of their commit record; run vla-embed again, and if it finds nothing, "
                f"delete the copies in data.cache"
            )

    def read_slices(self, unit: int, name: str) -> Iterator[np.ndarray]:
        """Read a unit's rows of an array in slices (StoreError: the array cannot be read)."""
        start, stop = self.unit_rows(unit)
        size = PASSING_ROWS if on_disk(self.path) else stop - start  # one request to a bucket
        return (self._read(name, rows) for rows in cut(start, stop, size))

    def unit_record(self, unit: int) -> UnitRecord:
        """Read a commit record (StoreError: missing, damaged, of other rows or another encoder)."""
        start, stop = self.unit_rows(unit)
        where = f"{self.path}: rows {start}..{stop} (unit {unit})"
        try:
            record = read_sealed(self.folder, record_name(unit), UnitRecord)
        except FileNotFoundError as error:
            raise StoreError(f"{where} have no commit record; run vla-embed again") from error
        except StoreError as error:
            raise StoreError(
                f"{where} have a damaged commit record ({error}); run vla-embed again"
            ) from error
        expected = unit, (start, stop), self.encoder.fingerprint
        if (record.unit, record.rows, record.fingerprint) != expected:
            raise StoreError(f"{where} have a commit record of other rows or another encoder")
        return record

    def write_unit(
        self,
        unit: int,
        features: Mapping[str, Float16[np.ndarray, "n s ..."]],
        frame_hash: UInt64[np.ndarray, "n s"],
        environments: Set[str],
    ) -> None:
        """Write a unit's rows to the disk, then its commit record.

        Args:
            unit: its number.
            features: every feature of every row of the unit, by name; finite.
            frame_hash: of the pixels behind them.
            environments: `ComputeEnvironment.digest` of each in which some were computed.

        Raises:
            OSError: the disk is full; the unit has no record and is encoded again next time.
        """
        start, stop = self.unit_rows(unit)
        written = {f"{FEATURES}/{name}": rows for name, rows in features.items()}
        written[FRAME_HASH] = frame_hash
        assert written.keys() == unit_arrays(self.attributes).keys()
        assert all(len(rows) == stop - start for rows in written.values())
        unmark(self.folder)  # a damaged unit is being replaced
        hashes = {}
        # Neither writing nor hashing holds Python's lock for long.
        with naming(self.path), ThreadPoolExecutor(max_workers=1) as hasher:
            for name, rows in written.items():
                hashing = hasher.submit(hash_rows, [rows])
                self._open(name)[start:stop] = rows
                self.folder.settle(f"{name}/c/{unit}")
                hashes[name] = hashing.result()
        record = UnitRecord(
            unit=unit,
            rows=(start, stop),
            sha256=hashes,
            fingerprint=self.encoder.fingerprint,
            environments=tuple(sorted(environments)),
        )
        write_sealed(self.folder, record_name(unit), record)

    def write_start_frames(self, frames: UInt8[np.ndarray, "k v 32 32 3"]) -> None:
        """Write small copies of the first frames of the episodes in `start_episodes`."""
        unmark(self.folder)
        self._open("start_frames")[:] = frames
        self.folder.settle("start_frames")

    def write_instructions(self, vectors: Float32[np.ndarray, "k d"]) -> None:
        """Write the vectors of the distinct instructions of the attributes."""
        unmark(self.folder)
        self.folder.delete([*self.folder.names(INSTRUCTIONS)])
        create_whole(self._group, INSTRUCTIONS, vectors)
        self.folder.settle(INSTRUCTIONS)

    def read_features(self, name: str) -> Float16[np.ndarray, "n s ..."]:
        """Read one feature of all rows into memory (StoreError: a unit is damaged)."""
        array = f"{FEATURES}/{name}"
        return np.concatenate([self._read_unit(unit, array) for unit in range(self.num_units)])

    def read_unit_features(self, unit: int) -> dict[str, Float16[np.ndarray, "n s ..."]]:
        """Read all features of a unit by name (StoreError: it is not committed, or damaged)."""
        names = self.encoder.feature_names
        return {name: self._read_unit(unit, f"{FEATURES}/{name}") for name in names}

    def read_unit_hashes(self, unit: int) -> UInt64[np.ndarray, "n s"]:
        """Read the hash of the pixels of every frame of a unit (StoreError: as above)."""
        return self._read_unit(unit, FRAME_HASH)

    def read_steps(self) -> StepArrays:
        """Read everything but features into memory (StoreError: an array is damaged)."""
        return StepArrays(**{name: self.read_whole(name) for name in STEP_ARRAYS})

    def read_whole(self, name: str) -> np.ndarray:
        """Read an array that belongs to no unit (StoreError: it is not what was written)."""
        values = self._read(name)
        mark = find_mark(self.folder)
        if mark is not None and mark.arrays.get(name) != hash_rows([values]):
            raise StoreError(
                f"{self.path}/{name}: differs from what was embedded (a chunk is missing or was "
                f"changed); restore it from a copy, or embed into another --store"
            )
        return values

    def read_episode_ends(self) -> Int64[np.ndarray, " e"]:
        """Read the row after each episode's last; StoreError where the array is damaged."""
        return self.read_whole("episode_ends")

    def read_probe(self) -> Probe:
        """Read the frames and features to compare an encoder with (StoreError: damaged)."""
        names = self.encoder.feature_names
        try:
            held = dict(self._group[PROBE].attrs)
            probe = Probe(
                frames=self._read(f"{PROBE}/frames"),
                features={name: self._read(f"{PROBE}/{FEATURES}/{name}") for name in names},
                environment=ComputeEnvironment.model_validate(held["environment"]),
                tolerance=float(str(held["tolerance"])),
            )
            if probe.digest() != held["digest"]:
                raise ValueError("its frames and features differ from its checksum")
            return probe
        except UNREADABLE as error:
            raise StoreError(
                f"{self.path}/{PROBE}: damaged ({error}); embed into another --store"
            ) from error

    def read_bases(self) -> dict[str, np.ndarray]:
        """Read the arrays that were fitted to the dataset, by feature (StoreError: damaged)."""
        return {name: self.read_whole(f"{BASES}/{name}") for name in self.attributes.fitted}

    def read_instructions(self) -> Float32[np.ndarray, "k d"]:
        """Read the vectors of the instructions (StoreError: damaged, or there are none)."""
        return self.read_whole(INSTRUCTIONS)

    def read_start_frames(self) -> StartFrames:
        """Read small copies of first frames (StoreError: an array is damaged)."""
        return StartFrames(*map(self.read_whole, START_ARRAYS))

    def _read_unit(self, unit: int, name: str) -> np.ndarray:
        rows = self._read(name, self._units[unit])
        self.check_rows(unit, name, [rows])
        return rows

    def _open(self, name: str) -> zarr.Array[Any]:
        """Open an array (one of `UNREADABLE`: it is not as the attributes describe it)."""
        array, described = self._group[name], unit_arrays(self.attributes).get(name)
        if not isinstance(array, zarr.Array):
            raise ValueError(f"{name} is not an array")
        if described is None:
            return array
        dtype, axes = described
        shape = [self.num_rows, self.attributes.num_slots, *axes]
        expected = f"{dtype} {shape}, {self.attributes.rows_per_unit} rows per file"
        rows_per_file = (array.shards or array.chunks)[0]
        found = f"{array.dtype} {list(array.shape)}, {rows_per_file} rows per file"
        if found != expected:
            raise ValueError(f"{name}: expected {expected}, found {found}")
        # Without comparing every chunk with the fill value, which is half the time of writing.
        return array.with_config({"write_empty_chunks": True})

    def _read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        try:
            return np.asarray(self._open(name)[rows])
        except UNREADABLE as error:
            is_unit = name in unit_arrays(self.attributes)  # those, vla-embed writes again
            remedy = "run vla-embed again" if is_unit else "embed into another --store"
            raise StoreError(
                f"{self.path}/{name}: cannot be read ({error}); if the store was replaced "
                f"meanwhile, run the same command again, else restore it from a copy, or {remedy}"
            ) from error
