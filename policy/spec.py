"""The vocabulary that every room shares: feature width, frame size, agent and encoder.

Knows no tensors of its own, no files and no simulator.
"""

from typing import Final, Literal, Protocol, runtime_checkable

from jaxtyping import Float16, UInt8
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

ComputeDtype = Literal["float32", "bfloat16"]

FEATURE_DIM: Final = 768  # width of SigLIP2 base's `pooler_output`; its model card
FRAME_SIZE: Final = (256, 256)  # height, width in pixels the tower takes; preprocessor_config.json
FRAME_SHAPE: Final = (*FRAME_SIZE, 3)  # height, width, RGB


class EncoderIdentity(BaseModel):
    """Which encoder made a feature. Features may meet only where `fingerprint` is equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The hub's repository id, a local folder's name, or `stand-in`; for people."""
    revision: str
    """The hub's 40-hex commit, or `local`; for people."""
    pretrained: bool
    """False for the stand-in, whose weights come from a seed."""
    compute_dtype: ComputeDtype
    """The dtype of the tower's weights and products."""
    fingerprint: str
    """sha256 over weights, vision configuration, preprocessing, input contract and dtypes."""


class AgentSpec(BaseModel):
    """What the data decides about an agent: its cameras and the widths of state and action."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    view_names: tuple[str, ...]
    """Camera names in the order of the features' view axis."""
    state_dim: int = Field(ge=1)
    """Width of the robot state."""
    action_dim: int = Field(ge=1)
    """Width of the action."""

    @model_validator(mode="after")
    def _view_names_are_distinct(self) -> "AgentSpec":
        if not self.view_names or len(set(self.view_names)) != len(self.view_names):
            raise ValueError(f"view_names={self.view_names}, want one or more distinct names")
        return self

    @property
    def num_views(self) -> int:
        """Number of cameras."""
        return len(self.view_names)


@runtime_checkable
class VisionBackbone(Protocol):
    """A frozen encoder of camera frames. Embedding and rollout hold the same kind of object."""

    identity: EncoderIdentity
    """Which encoder this is; compared wherever features meet."""
    dataset_image_resize_shape: None
    """Dataset frames are natively 256x256 and are never resized on the way in."""
    eval_image_resize_shape: tuple[int, int]
    """(height, width) in pixels that simulator frames are resized to."""

    def encode_views(self, frames: UInt8[Tensor, "t v 256 256 3"]) -> Float16[Tensor, "t v 768"]:
        """Encode every view of every step independently.

        Args:
            frames: RGB, values in [0, 255], 256x256, any device.

        Returns:
            `pooler_output`, not L2-normalised, rounded to float16, on the CPU: exactly what a
            feature store keeps, so that a policy sees live what it was trained on.

        Raises:
            FrameFormatError: the frames have another dtype or shape.
            FeatureRangeError: a feature is not finite or does not fit float16.
        """
