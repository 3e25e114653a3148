"""The attributes of a feature store: which encoder, views and dataset its arrays belong to."""

from typing import Any, Final, Literal

from pydantic import Field

from pipeline.features.store.units import CHUNK_ROWS
from policy.encoders.environment import ComputeEnvironment
from policy.spec import EncoderIdentity, Fit, FrozenModel

Codec = Literal["none", "blosc"]

FORMAT: Final = "frozen-vla features"
FORMAT_VERSION: Final = 7  # 6 had no instructions and other hashes of frames, 5 British names


class SourceShare(FrozenModel):
    """One of the datasets that a manifest joins."""

    num_episodes: int
    """How many of the store's episodes come from it; they follow those of the source before."""
    weight: float
    """How often training draws one of its steps, against the other sources."""


class StoreAttributes(FrozenModel):
    """The attributes of a store's root."""

    format: str = FORMAT
    """Tells a feature store from any other Zarr group."""
    format_version: int = FORMAT_VERSION
    """Raised when older code could no longer read the store."""
    encoder: EncoderIdentity
    """Which encoder made every row, and the features that the store holds."""
    environment: ComputeEnvironment
    """How the probe was computed; a commit record names the environments of its unit."""
    codec: Codec = "none"
    """What compresses the features: nothing, or Blosc (zstd after a bit shuffle)."""
    num_variants: int = Field(default=0, ge=0)
    """Augmented variants of every frame that are stored next to it, for training."""
    rows_per_unit: int = Field(default=CHUNK_ROWS, ge=CHUNK_ROWS, multiple_of=CHUNK_ROWS)
    """Control steps per unit; more than a chunk's 256 where a file is a shard of chunks."""
    view_names: tuple[str, ...]
    """Camera names in the order of the view axis."""
    fps: float
    """Control steps per second."""
    fit: Fit = "stretch"
    """How frames that are not square were resized; live images are resized equally."""
    manifest: dict[str, Any]
    """The dataset's manifest, as it was written."""
    manifest_digest: str
    """sha256 of the manifest's fields that decide the rows."""
    sources: tuple[SourceShare, ...]
    """The datasets that the manifest joins, in order; one where it names a path."""
    validation: tuple[int, ...] | None
    """Episodes that the manifest keeps out of training; None leaves the choice to the trainer."""

    instructions: tuple[str, ...] = ()
    """Each distinct instruction once, sorted; empty if the dataset has none."""
    instruction_of: tuple[int, ...] = ()
    """Position in `instructions` of each episode's; empty if the dataset has none."""
    text_encoder: EncoderIdentity | None = None
    """Which text encoder made the instructions' vectors; None: the store holds no vectors."""
    fitted: tuple[str, ...] = ()
    """Features that were fitted to the dataset, and have an array in `bases`."""

    @property
    def num_slots(self) -> int:
        """Images per step: every view as recorded, then every view of variant 1, and so on."""
        return (1 + self.num_variants) * len(self.view_names)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of all features of one control step."""
        return self.num_slots * sum(feature.num_bytes for feature in self.encoder.features)
