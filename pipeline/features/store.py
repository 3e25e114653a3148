"""The feature store: frozen features, state and action of every step, in Zarr format 3.

The only file that imports zarr. Knows arrays, units and commits; nothing about how features are
made. Layout below the store's folder:

    features [N, V, 768] float16     one chunk a unit of 256 rows, uncompressed, crc32c
    state [N, S] float32   action [N, A] float32   timestamp [N] float64   episode_ends [E] int64
    frame_hash [N, V] uint64         hash of the decoded pixels of every frame
    commits/000000.json              one record a unit: its rows and the sha256 of its bytes
    COMPLETE.json                    written last; readers refuse a store without it

Zarr reads an absent chunk as its fill value without a word, so the fill value is NaN and what
counts as written is what has a commit record whose hash fits.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from jaxtyping import Float16, Float32, Float64, Int64, UInt64
from pydantic import BaseModel, ConfigDict, ValidationError
from zarr.codecs import Crc32cCodec
from zarr.errors import BaseZarrError

from pipeline.errors import IncompleteStoreError, StoreError
from pipeline.features.units import UNIT_ROWS, num_units, unit_rows
from pipeline.files import is_vacant, sync_file, sync_folder, write_json
from policy.spec import FEATURE_DIM, EncoderIdentity

FORMAT: Final = "frozen-vla features"
FORMAT_VERSION: Final = 2  # 1 knew neither sources nor the manifest's split
COMPLETE_MARK: Final = "COMPLETE.json"
STATE_CHUNK_ROWS: Final = 65_536  # control steps; about 1 MB of a 4-wide state


class SourceShare(BaseModel):
    """One of the datasets that a manifest joins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_episodes: int
    """How many of the store's episodes come from it; they follow those of the source before."""
    weight: float
    """How often training draws one of its steps, against the other sources."""


class StoreAttributes(BaseModel):
    """What a store says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    """Tells a feature store from any other Zarr group."""
    format_version: int = FORMAT_VERSION
    """Raised when older code could no longer read the store."""
    encoder: EncoderIdentity
    """Which encoder made every row."""
    view_names: tuple[str, ...]
    """Camera names in the order of the view axis."""
    fps: float
    """Control steps a second."""
    manifest: dict[str, Any]
    """The dataset's manifest, as it was written."""
    manifest_digest: str
    """sha256 of the manifest's fields that decide the rows."""
    sources: tuple[SourceShare, ...]
    """The datasets that the manifest joins, in order; one where it names a path."""
    heldout: tuple[int, ...] | None
    """Episodes that the manifest keeps out of training; None leaves the choice to the trainer."""


@dataclass(frozen=True)
class StepArrays:
    """Everything of a dataset but its frames, all episodes one after the other."""

    state: Float32[np.ndarray, "n s"]
    """Robot state of every step, in the manifest's units."""
    action: Float32[np.ndarray, "n a"]
    """Action of every step, in the manifest's units."""
    timestamp: Float64[np.ndarray, " n"]
    """Seconds since the episode's first step."""
    episode_ends: Int64[np.ndarray, " e"]
    """Row after each episode's last step."""


class UnitRecord(BaseModel):
    """Says that a unit's rows were written, and what they must hash to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: int
    rows: tuple[int, int]
    sha256: str
    fingerprint: str


class FeatureStore:
    """A store on the local disk; make one with `create` or `open`."""

    def __init__(self, path: Path, group: zarr.Group, attributes: StoreAttributes):
        self.path = path
        self.attributes = attributes
        self._group = group
        self.num_rows = self._array("features").shape[0]
        self.num_units = num_units(self.num_rows)

    @classmethod
    def create(cls, path: Path, attributes: StoreAttributes, steps: StepArrays) -> "FeatureStore":
        """Create a store with every array at full size and no features yet.

        Raises:
            StoreError: there is something at `path` other than an empty folder.
            OSError: the disk is full or not writable; nothing is left at `path`.
        """
        if not is_vacant(path):
            raise StoreError(f"{path}: holds something already; choose another path")
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            _create_group(partial, attributes, steps)
            (partial / "commits").mkdir()
            for file in partial.rglob("*"):
                sync_folder(file) if file.is_dir() else sync_file(file)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(path.parent)
        return cls.open(path, allow_incomplete=True, writable=True)

    @classmethod
    def open(
        cls, path: Path, *, allow_incomplete: bool = False, writable: bool = False
    ) -> "FeatureStore":
        """Open a store.

        Raises:
            StoreError: there is none at `path`, or it is of another format.
            IncompleteStoreError: embedding has not finished and `allow_incomplete` is False.
        """
        if not (path / "zarr.json").is_file():
            raise StoreError(f"{path}: no feature store here; make one with vla-embed")
        try:
            group = zarr.open_group(path, mode="r+" if writable else "r", zarr_format=3)
            held = dict(group.attrs)
            version = held.get("format_version")
            if held.get("format") == FORMAT and version != FORMAT_VERSION:
                raise StoreError(
                    f"{path}: format version {version}, this program reads {FORMAT_VERSION}; use "
                    f"the program that wrote it, or embed the dataset into another store"
                )
            store = cls(path, group, StoreAttributes.model_validate(held))
        except (BaseZarrError, ValidationError, ValueError, KeyError, OSError) as error:
            raise StoreError(f"{path}: not a feature store of this program ({error})") from error
        if not allow_incomplete and not store.is_complete:
            done = len(list((path / "commits").glob("*.json")))
            raise IncompleteStoreError(
                f"{path}: embedding stopped after {done} of {store.num_units} units; run the same "
                f"vla-embed command again to finish it"
            )
        return store

    @property
    def is_complete(self) -> bool:
        """Whether every row of every view was written."""
        return self._marked_digest() is not None

    def digest(self) -> str:
        """Return the sha256 that names a complete store's content: features, steps, encoder.

        Raises:
            IncompleteStoreError: the store is not complete.
        """
        digest = self._marked_digest()
        if digest is None:
            raise IncompleteStoreError(
                f"{self.path}: no valid {COMPLETE_MARK}; run vla-embed again"
            )
        return digest

    def check_digest(self) -> None:
        """Compare what the complete mark promises with attributes, steps and commit records.

        Features are checked against the commit records when they are read.

        Raises:
            StoreError: something was changed after the store was completed.
        """
        if self._content_digest() != self.digest():
            raise StoreError(
                f"{self.path}: state, action, episodes or attributes are not those that were "
                f"embedded; embed the dataset into another --store"
            )

    def replace_attributes(self, attributes: StoreAttributes) -> None:
        """Say something else of the same rows; a complete store is incomplete until marked again.

        Raises:
            OSError: the disk is full; the attributes are the old ones.
        """
        (self.path / COMPLETE_MARK).unlink(missing_ok=True)
        metadata = json.loads((self.path / "zarr.json").read_bytes())
        metadata["attributes"] = attributes.model_dump(mode="json")
        write_json(self.path / "zarr.json", metadata)
        self.attributes = attributes

    def valid_units(self) -> set[int]:
        """Return the units whose record fits the encoder and the bytes on the disk."""
        return {unit for unit in range(self.num_units) if self._is_valid(unit)}

    def write_unit(
        self,
        unit: int,
        features: Float16[np.ndarray, "n v 768"],
        frame_hash: UInt64[np.ndarray, "n v"],
    ) -> None:
        """Write a unit's rows to the disk, then its commit record.

        Raises:
            StoreError: a feature is not finite.
            OSError: the disk is full; the unit has no record and is encoded again next time.
        """
        start, stop = unit_rows(unit, self.num_rows)
        assert len(features) == len(frame_hash) == stop - start
        if not np.isfinite(features).all():
            raise StoreError(f"{self.path}: rows {start}..{stop} hold features that are not finite")
        (self.path / COMPLETE_MARK).unlink(missing_ok=True)  # a damaged unit is being replaced
        self._array("features")[start:stop] = features
        self._array("frame_hash")[start:stop] = frame_hash
        for name in ("features", "frame_hash"):
            folder = self.path / name / "c" / str(unit)
            for file in folder.rglob("*"):
                sync_folder(file) if file.is_dir() else sync_file(file)
            sync_folder(folder)
            sync_folder(folder.parent)
        record = UnitRecord(
            unit=unit,
            rows=(start, stop),
            sha256=_unit_hash(features, frame_hash),
            fingerprint=self.attributes.encoder.fingerprint,
        )
        write_json(self._record_path(unit), record.model_dump(mode="json"))

    def mark_complete(self) -> None:
        """Write the mark that readers ask for, after checking every unit against its record.

        Raises:
            StoreError: some unit has no valid record.
        """
        for unit in range(self.num_units):
            self._read_unit(unit)
        digest = self._content_digest()
        write_json(
            self.path / COMPLETE_MARK,
            {"rows": self.num_rows, "units": self.num_units, "digest": digest},
        )

    def read_features(self) -> Float16[np.ndarray, "n v 768"]:
        """Read all features into memory, each unit checked against its record.

        Raises:
            StoreError: a unit is damaged; the message names it.
        """
        features = np.empty(self._array("features").shape, np.float16)
        for unit in range(self.num_units):
            start, stop = unit_rows(unit, self.num_rows)
            features[start:stop] = self._read_unit(unit)
        return features

    def read_frame_hash(self) -> UInt64[np.ndarray, "n v"]:
        """Read the hash of every frame's pixels; 0 where a unit was never written."""
        return self._read("frame_hash")

    def read_steps(self) -> StepArrays:
        """Read state, action, timestamps and episode ends into memory.

        Raises:
            StoreError: an array is damaged; the message names it.
        """
        names = ("state", "action", "timestamp", "episode_ends")
        return StepArrays(*(self._read(name) for name in names))

    def _content_digest(self) -> str:
        digest = hashlib.sha256(self.attributes.model_dump_json().encode())
        steps = self.read_steps()
        for array in (steps.state, steps.action, steps.timestamp, steps.episode_ends):
            digest.update(array.tobytes())
        for unit in range(self.num_units):
            try:
                digest.update(self._record_path(unit).read_bytes())
            except OSError as error:
                raise StoreError(
                    f"{self.path}: unit {unit} has no commit record; run vla-embed again"
                ) from error
        return digest.hexdigest()

    def _marked_digest(self) -> str | None:
        """A mark that is absent or damaged marks nothing; embedding again writes a new one."""
        try:
            mark = json.loads((self.path / COMPLETE_MARK).read_text())
            return str(mark["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _read_unit(self, unit: int) -> np.ndarray:
        """Return a unit's features, or raise a StoreError where they do not fit their record."""
        start, stop = unit_rows(unit, self.num_rows)
        where = f"{self.path}: rows {start}..{stop} (unit {unit})"
        try:
            record = UnitRecord.model_validate_json(self._record_path(unit).read_bytes())
        except FileNotFoundError as error:
            raise StoreError(f"{where} have no commit record") from error
        except (ValidationError, OSError) as error:
            raise StoreError(f"{where} have a damaged commit record") from error
        expected = (unit, (start, stop), self.attributes.encoder.fingerprint)
        if (record.unit, record.rows, record.fingerprint) != expected:
            raise StoreError(f"{where} have the commit record of other rows or another encoder")
        features = self._read("features", slice(start, stop))
        frame_hash = self._read("frame_hash", slice(start, stop))
        if _unit_hash(features, frame_hash) != record.sha256:
            raise StoreError(f"{where} do not hash to their commit record")
        return features

    def _is_valid(self, unit: int) -> bool:
        try:
            self._read_unit(unit)
        except StoreError:
            return False
        return True

    def _record_path(self, unit: int) -> Path:
        return self.path / "commits" / f"{unit:06d}.json"

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array

    def _read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        try:
            return np.asarray(self._array(name)[rows])
        except (ValueError, OSError, KeyError) as error:  # zarr's checksum error is a ValueError
            raise StoreError(
                f"{self.path}/{name}: cannot be read ({error}); run vla-embed again"
            ) from error


def _create_group(path: Path, attributes: StoreAttributes, steps: StepArrays) -> None:
    num_rows, num_views = len(steps.state), len(attributes.view_names)
    group = zarr.create_group(path, zarr_format=3, attributes=attributes.model_dump(mode="json"))
    group.create_array(
        "features",
        shape=(num_rows, num_views, FEATURE_DIM),
        chunks=(UNIT_ROWS, num_views, FEATURE_DIM),
        dtype="float16",
        fill_value=float("nan"),
        compressors=[Crc32cCodec()],
        dimension_names=("step", "view", "feature"),
    )
    group.create_array(
        "frame_hash",
        shape=(num_rows, num_views),
        chunks=(UNIT_ROWS, num_views),
        dtype="uint64",
        fill_value=0,
        compressors=[Crc32cCodec()],
        dimension_names=("step", "view"),
    )
    for name, axes in (
        ("state", ("step", "state")),
        ("action", ("step", "action")),
        ("timestamp", ("step",)),
        ("episode_ends", ("episode",)),
    ):
        values = getattr(steps, name)
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=(min(STATE_CHUNK_ROWS, len(values)), *values.shape[1:]),
            dtype=values.dtype,
            fill_value=-1 if values.dtype.kind == "i" else float("nan"),
            compressors=[Crc32cCodec()],
            dimension_names=axes,
        )
        array[:] = values


def _unit_hash(features: np.ndarray, frame_hash: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(features).tobytes())
    digest.update(np.ascontiguousarray(frame_hash).tobytes())
    return digest.hexdigest()
