"""What a store says of itself.

Knows fields; no files and no zarr.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import StoreError
from pipeline.features.store.units import CHUNK_ROWS
from policy.encoders.environment import EngineRecord
from policy.spec import EncoderIdentity

Codec = Literal["none", "blosc"]

FORMAT: Final = "frozen-vla features"
FORMAT_VERSION: Final = 5  # 4 had no start frames


def check_format_version(attributes: Mapping[str, Any], *, where: str) -> None:
    """Refuse a feature store of another version.

    Raises:
        StoreError: it has one.
    """
    version = attributes.get("format_version")
    if attributes.get("format") == FORMAT and version != FORMAT_VERSION:
        raise StoreError(
            f"{where}: format version {version}, this program reads {FORMAT_VERSION}; use the "
            f"program that wrote it, or embed the dataset into another store"
        )


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
    engine: EngineRecord
    """How the probe was computed; commit records say who computed their unit."""
    codec: Codec = "none"
    """What compresses the features: nothing, or Blosc (zstd after a bit shuffle)."""
    num_variants: int = Field(default=0, ge=0)
    """Augmented variants of every frame that lie beside it, for training."""
    rows_per_unit: int = Field(default=CHUNK_ROWS, ge=CHUNK_ROWS, multiple_of=CHUNK_ROWS)
    """Control steps a unit; more than a chunk's 256 where a file is a shard of chunks."""
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

    @property
    def num_slots(self) -> int:
        """Features a step: every view as recorded, then every view of variant 1, and so on."""
        return (1 + self.num_variants) * len(self.view_names)
