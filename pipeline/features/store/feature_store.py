"""The feature store: frozen features, state and action of every step, in Zarr format 3.

Layout below the store's folder, for N control steps of E episodes, V views in S slots (each view as
recorded, then each view of every augmented variant), states of width D and actions of width A:

    features/<name> [N, S, ...] float16  an array per named feature, one file per unit (units.py),
                                         uncompressed, crc32c
    state [N, D] float32   action [N, A] float32   timestamp [N] float64   episode_ends [E] int64
    frame_hash [N, S] uint64             hash of the decoded pixels of every frame
    probe/                               frames and their features: see identity/probe.py
    bases/<name> float32                 what a feature was fitted to, as a PCA basis
    commits/000000.json                  one sealed record per unit: its rows and their sha256
    COMPLETE.json                        written last; readers refuse a store without it

A unit counts as written if it has a commit record whose hashes fit its rows in every array; a store
counts as complete if it has a mark. One scheme covers each byte: a crc32c per chunk, the record's
hashes per unit, and the mark's hashes of everything else.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from itertools import count
from types import MappingProxyType
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float16, Int64, UInt64

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.identity.probe import Probe
from pipeline.features.store.attributes import FORMAT, FORMAT_VERSION, StoreAttributes
from pipeline.features.store.completion import Completion
from pipeline.features.store.layout import (
    BASES,
    FEATURES,
    FRAME_HASH,
    PROBE,
    ROOT,
    UNREADABLE,
    create_arrays,
    is_vacant,
    open_array,
    open_group,
    open_unit_array,
    read_bases,
    read_num_rows,
    read_probe,
    unit_arrays,
)
from pipeline.features.store.records import (
    COMMITS,
    UnitRecord,
    all_finite,
    hash_rows,
    read_unit_record,
    unmark,
    write_unit_record,
)
from pipeline.features.store.steps import PIECE_ROWS, STEP_ARRAYS, StepArrays, Steps
from pipeline.features.store.units import PASSING_ROWS, cut, num_units, unit_rows
from pipeline.storage.folder import Folder
from pipeline.storage.local import json_bytes
from pipeline.storage.location import Location, on_disk
from pipeline.storage.open import open_folder
from policy.spec import EncoderIdentity


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
        self.completion = completion
        """Its mark, and whether what was read is what it promises."""
        self._group = group
        self.num_rows = read_num_rows(group)
        self.num_units = num_units(self.num_rows, attributes.rows_per_unit)
        for name in unit_arrays(attributes):
            self._open(name)

    @classmethod
    def create(
        cls,
        path: Location,
        attributes: StoreAttributes,
        steps: Steps,
        probe: Probe,
        bases: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> "FeatureStore":
        """Create a store with every array at full size and no features yet.

        Args:
            path: where nothing is yet.
            attributes: of its root.
            steps: of the dataset.
            probe: of the encoder that will fill it.
            bases: what its features were fitted to, one for each of `attributes.fitted`.

        Raises:
            DatasetError: some of the steps' numbers cannot be used; there is no store at `path`.
            StoreError: there is something at `path` other than an empty folder.
            OSError: the disk is full or not writable; there is no store at `path`.
        """
        folder = open_folder(path)
        if not is_vacant(folder):
            raise StoreError(f"{path}: holds something already; choose another path")
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
            raise StoreError(f"{path}: no feature store here; make one with vla-embed")
        completion = Completion(folder)
        completion.check_metadata()  # before zarr believes it
        try:
            group = open_group(folder, writable=writable)
            held = dict(group.attrs)
            version = held.get("format_version")
            if held.get("format") == FORMAT and version != FORMAT_VERSION:
                raise StoreError(
                    f"{path}: format version {version}, this program reads {FORMAT_VERSION}; read "
                    f"it with the release of frozen-vla that wrote it, or embed the dataset into "
                    f"another --store"
                )
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
        return self.completion.mark() is not None

    def digest(self) -> str:
        """Return the sha256 that names a complete store's content: features, steps, encoder.

        Raises:
            IncompleteStoreError: the store is not complete.
        """
        return self.completion.require_mark().digest

    def source_digest(self) -> str:
        """Return the sha256 over a complete store's views, episode ends and decoded frames.

        Two stores of different encoders that were made from the same pictures share it.

        Raises:
            IncompleteStoreError: the store is not complete.
        """
        return self.completion.require_mark().source_digest

    def unreplaced(self) -> AbstractContextManager[str]:
        """Give the digest of what is read within; units of two stores never get mixed.

        Raises:
            IncompleteStoreError: the store is not complete.
            StoreError: another store took its place meanwhile, or it was written.
        """
        return self.completion.unreplaced()

    def replace_attributes(self, attributes: StoreAttributes) -> None:
        """Change the attributes of the same rows; the store is incomplete until marked again.

        Raises:
            OSError: the disk is full; the attributes are the old ones.
        """
        unmark(self.folder)
        metadata = json.loads(self.folder.read(ROOT))
        metadata["attributes"] = attributes.model_dump(mode="json")
        self.folder.write(ROOT, json_bytes(metadata))
        self.attributes = attributes

    @property
    def encoder(self) -> EncoderIdentity:
        """Which encoder made the features, and which they are."""
        return self.attributes.encoder

    def valid_units(self, among: Iterable[int] | None = None) -> set[int]:
        """Return the units, of all or of some, whose record fits encoder and bytes on the disk."""
        valid = set()
        for unit in range(self.num_units) if among is None else among:
            with suppress(StoreError):
                self.check_unit(unit)
                valid.add(unit)
        return valid

    def check_unit(self, unit: int) -> None:
        """Compare a unit's rows in every array with its record.

        Raises:
            StoreError: the unit was never committed, or is damaged; the message names the array.
        """
        for name in unit_arrays(self.attributes):
            self.check_rows(unit, name)

    def check_rows(self, unit: int, name: str) -> None:
        """Compare a unit's rows in one array with its record, holding few at a time.

        Raises:
            StoreError: see `check_unit`.
        """
        expected = self.unit_record(unit)  # first: without one there are no rows to read
        start, stop = self.unit_rows(unit)
        # No caller keeps them: they pass by in slices, each of which is a request to a bucket.
        size = PASSING_ROWS if on_disk(self.path) else stop - start
        found = hash_rows(self._read(name, rows) for rows in cut(start, stop, size))
        self._check_hash(expected, name, found)

    def unit_record(self, unit: int) -> UnitRecord:
        """Read a unit's commit record.

        Raises:
            StoreError: it is missing, damaged, of other rows or another encoder.
        """
        made_by = self.encoder.fingerprint
        return read_unit_record(self.folder, unit, self.unit_rows(unit), made_by)

    def unit_environments(self, unit: int) -> frozenset[str]:
        """Return the digests of the environments in which a unit's features were computed.

        Raises:
            StoreError: the unit has no valid record.
        """
        return frozenset(self.unit_record(unit).environments)

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
            features: every feature of every row of the unit, by name.
            frame_hash: of the pixels behind them.
            environments: `ComputeEnvironment.digest` of each in which some were computed.

        Raises:
            StoreError: a feature is not finite.
            OSError: the disk is full; the unit has no record and is encoded again next time.
        """
        start, stop = self.unit_rows(unit)
        written = {f"{FEATURES}/{name}": rows for name, rows in features.items()}
        written[FRAME_HASH] = frame_hash
        assert written.keys() == unit_arrays(self.attributes).keys()
        for name, values in features.items():
            assert len(values) == len(frame_hash) == stop - start
            if not all_finite(values):
                raise StoreError(
                    f"{self.path}: rows {start}..{stop} of feature `{name}` are not finite"
                )
        unmark(self.folder)  # a damaged unit is being replaced
        hashes = {}
        with ThreadPoolExecutor(max_workers=1) as hasher:  # neither holds Python's lock for long
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
        write_unit_record(self.folder, record)

    def read_features(
        self, name: str, into: Float16[np.ndarray, "n s ..."] | None = None
    ) -> Float16[np.ndarray, "n s ..."]:
        """Read one feature of all rows, into new memory unless given; each unit is checked.

        Raises:
            StoreError: a unit is damaged; the message names it.
        """
        dtype, axes = unit_arrays(self.attributes)[f"{FEATURES}/{name}"]
        shape = (self.num_rows, self.attributes.num_slots, *axes)
        features = np.empty(shape, dtype) if into is None else into
        for unit in range(self.num_units):
            start, stop = self.unit_rows(unit)
            features[start:stop] = self.read_unit_feature(unit, name)
        return features

    def read_unit_features(self, unit: int) -> dict[str, Float16[np.ndarray, "n s ..."]]:
        """Read all features of a unit by name, checked against its record.

        Raises:
            StoreError: the unit was never committed, or is damaged.
        """
        names = self.encoder.feature_names
        return {name: self.read_unit_feature(unit, name) for name in names}

    def read_unit_feature(self, unit: int, name: str) -> Float16[np.ndarray, "n s ..."]:
        """Read one feature of a unit; see `read_unit_features`."""
        return self._read_checked(unit, f"{FEATURES}/{name}")

    def read_unit_hashes(self, unit: int) -> UInt64[np.ndarray, "n s"]:
        """Read the hash of the pixels of every frame of a unit, checked against its record.

        Raises:
            StoreError: the unit was never committed, or is damaged.
        """
        return self._read_checked(unit, FRAME_HASH)

    def read_steps(self) -> StepArrays:
        """Read state, action, timestamps and episode ends into memory.

        Raises:
            StoreError: an array is damaged; the message names it.
        """
        return StepArrays(
            **{name: np.concatenate([*self.read_step_pieces(name)]) for name in STEP_ARRAYS}
        )

    def read_step_pieces(self, name: str) -> Iterator[np.ndarray]:
        """Read an array of `StepArrays` in slices of rows, where memory need not hold it whole.

        Raises:
            StoreError: the array is damaged; of a complete store at the latest after the last one.
        """
        digest = hashlib.sha256()
        for start in count(0, PIECE_ROWS):
            piece = self._read(name, slice(start, start + PIECE_ROWS))
            if not len(piece):
                break
            digest.update(piece.tobytes())
            yield piece
        self.completion.check_array(name, digest.hexdigest())

    def read_episode_ends(self) -> Int64[np.ndarray, " e"]:
        """Read the row after each episode's last; StoreError where the array is damaged."""
        return self._read("episode_ends")

    def read_probe(self) -> Probe:
        """Read the frames, features and environment that an encoder is compared with.

        Raises:
            StoreError: the probe is damaged.
        """
        try:
            return read_probe(self._group, self.encoder.feature_names)
        except UNREADABLE as error:
            what = f"damaged ({error}); embed into another --store"
            raise StoreError(f"{self.path}/{PROBE}: {what}") from error

    def read_bases(self) -> dict[str, np.ndarray]:
        """Read what features were fitted to, by feature.

        Raises:
            StoreError: one is damaged.
        """
        try:
            bases = read_bases(self._group, self.attributes.fitted)
        except UNREADABLE as error:
            what = f"damaged ({error}); embed into another --store"
            raise StoreError(f"{self.path}/{BASES}: {what}") from error
        for name, basis in bases.items():
            self.completion.check_array(f"{BASES}/{name}", hash_rows([basis]))
        return bases

    def _read_checked(self, unit: int, name: str) -> np.ndarray:
        rows = self._read(name, slice(*self.unit_rows(unit)))
        self._check_hash(self.unit_record(unit), name, hash_rows([rows]))
        return rows

    def _check_hash(self, record: UnitRecord, name: str, found: str) -> None:
        if found != record.sha256.get(name):
            start, stop = record.rows
            raise StoreError(
                f"{self.path}: rows {start}..{stop} (unit {record.unit}) of {name} do not hash to "
                f"their commit record"
            )

    def _open(self, name: str) -> zarr.Array[Any]:
        if name not in unit_arrays(self.attributes):
            return open_array(self._group, name)
        return open_unit_array(self._group, name, self.attributes, self.num_rows)

    def _read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        try:
            return np.asarray(self._open(name)[rows])
        except UNREADABLE as error:
            raise StoreError(
                f"{self.path}/{name}: cannot be read ({error}); where another store took its place "
                f"run the same command again, otherwise run vla-embed again"
            ) from error
