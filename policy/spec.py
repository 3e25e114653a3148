"""What rooms tell each other about features, encoders and agents; imports no torch.

Code that needs a feature's name, shape or dtype reads its `FeatureSpec`: another encoder is data.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

ComputeDtype = Literal["float32", "bfloat16"]
Fit = Literal["stretch", "crop", "pad"]
"""How an image that is not square becomes one: squeezed, its middle alone, or padded in black."""

FRAME_SIZE: Final = (256, 256)  # height, width in pixels that every encoder here takes
FRAME_SHAPE: Final = (*FRAME_SIZE, 3)  # height, width, RGB
INSTRUCTION: Final = "instruction"  # the name of its feature


class FrozenModel(BaseModel):
    """A record or configuration: nothing changes a field, and unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FeatureSpec(FrozenModel):
    """One named output of a frozen encoder, as it is cached."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_@]*$")
    """As `pooled` or `grid`; also the name of its array in a store."""
    shape: tuple[int, ...]
    """Per image: `(768,)`, or `(8, 8, 112)` for rows, columns and channels of a grid."""
    per: Literal["view", "instruction"] = "view"
    """What has one: every view of every control step, or an instruction."""
    dtype: Literal["float16", "float32"] = "float16"
    """As it is stored, and as a policy sees it live; float32 of an instruction."""
    fingerprint: str
    """sha256 over layer, pooling and basis; of an instruction's vector, the words for these."""

    @property
    def num_bytes(self) -> int:
        """Bytes per image."""
        return 2 * math.prod(self.shape)


class EncoderIdentity(FrozenModel):
    """Which encoder made some features. They may meet only where `fingerprint` is equal."""

    name: str
    """The hub's repository id, a local folder's name, or a registered encoder; for people."""
    revision: str
    """The hub's 40-hex commit, `local`, or the version of the package with the weights."""
    pretrained: bool
    """False for the stand-in, whose weights come from a seed."""
    compute_dtype: ComputeDtype
    weights: str
    """sha256 over weights, architecture, preprocessing, input contract and compute dtype."""
    features: tuple[FeatureSpec, ...] = Field(min_length=1)
    """Its features of an image or of an instruction, in the requested order."""

    @property
    def fingerprint(self) -> str:
        """The sha256 over everything that decides the features' values."""
        parts = [self.weights, *sorted(feature.model_dump_json() for feature in self.features)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, in their order."""
        return tuple(feature.name for feature in self.features)

    def only(self, names: Iterable[str]) -> "EncoderIdentity":
        """Return the identity with just these of its features (KeyError: it lacks one)."""
        held = {feature.name: feature for feature in self.features}
        return self.model_copy(update={"features": tuple(held[name] for name in names)})


class AgentSpec(FrozenModel):
    """What the data decides about an agent: cameras, features, widths of state and action."""

    view_names: tuple[str, ...] = Field(min_length=1)
    """Camera names in the order of the features' view axis."""
    feature_shapes: dict[str, tuple[int, ...]]
    """Shape per image of each feature that the policy reads, by name."""
    state_dim: int = Field(ge=1)
    action_dim: int = Field(ge=1)
    instruction_dim: int = Field(default=0, ge=0)
    """Width of an instruction's vector; 0 for a policy without instructions."""

    @property
    def num_views(self) -> int:
        """Number of cameras."""
        return len(self.view_names)
