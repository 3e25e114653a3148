"""The settings of one embedding, and which part of the units it is."""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from pipeline.errors import ConfigError
from pipeline.features.store.attributes import Codec
from pipeline.features.store.units import SHARD_ABOVE
from pipeline.storage.location import Location
from policy.encoders.registry import DEFAULT_ENCODER
from policy.spec import ComputeDtype, FrozenModel


@dataclass(frozen=True)
class Part:
    """One of so many parts of a store's units."""

    number: int
    """From 1."""
    total: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Parse `i/n`, as in `--units 3/8` (ConfigError: another text, or i is not in 1..n)."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(
                f"--units: expected i/n with i from 1 to n, such as 3/8 for the third of eight "
                f"parts, found {text!r}"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def units(self, num_units: int) -> range:
        """Return the part's own units: consecutive, and as many as others have but for one."""
        return range(
            (self.number - 1) * num_units // self.total, self.number * num_units // self.total
        )


class EmbedConfig(FrozenModel):
    """The settings of one embedding."""

    manifest: Path
    store: Location
    """Folder or address of the feature store that is created or resumed."""
    encoder: str = DEFAULT_ENCODER
    """A registered encoder, a repository on the Hugging Face hub, or a local folder."""
    features: tuple[str, ...] = ()
    """Names of the features to cache; empty: the store's, or the encoder's own default."""
    text_encoder: str | None = None
    """What makes vectors of the dataset's instructions: a registered text encoder, a repository or
    a local folder; None: the store's, or none."""
    revision: str | None = None
    """40-hex commit of the hub repository; None is the default repository's pinned one."""
    compute_dtype: ComputeDtype | None = None
    """The encoder's dtype; None is its own choice, bfloat16 for SigLIP2 if the hardware has it."""
    device: str = "auto"
    """Where the encoder runs: `auto` (a GPU if there is one), or torch's name of a device."""
    images_per_pass: int | None = Field(default=None, ge=1)
    """Images per forward pass, at embedding and live; None: one step's views on a CPU, more on a
    GPU. Belongs to the store."""
    compiled: bool = False
    """Fuse the encoder with torch.compile: another compute environment, minutes of compiling."""
    num_variants: int = Field(default=0, ge=0, le=64)
    """Augmented variants of every frame to store next to it; each costs as much as the frames."""
    codec: Codec = "none"
    """Compression of the features: none, or Blosc (zstd after a bit shuffle)."""
    shard_above: int = Field(default=SHARD_ABOVE, ge=0)
    """Control steps above which a new store has shards of many chunks, not 256 steps per file."""
    ray_workers: int | None = Field(default=None, ge=1)
    """Encode with so many Ray actors, each with as many threads as torch has in this process, and
    a GPU if `device` is one. RAY_ADDRESS names a cluster, else Ray is started on this machine.
    None encodes in this process."""
    read_workers: int | None = Field(default=None, ge=0)
    """Processes that decode, resize and hash frames; 0 is a thread of this process, as in each of
    Ray's actors. None: 0 for an encoder on a CPU, which needs the cores itself, else the cores."""
    part: Part | None = None
    """The share of the units that is this command's own; None is all of them."""
