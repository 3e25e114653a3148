"""Settings of diffusion, apart from its implementation, whose library is optional."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DiffusionConfig(BaseModel):
    """Settings of diffusion; the defaults are Diffusion Policy's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["diffusion"] = "diffusion"
    """Names the objective in a saved configuration."""
    num_train_timesteps: int = Field(default=100, ge=10, multiple_of=10)
    """Steps between data and noise in training; `ddpm` takes them all by default."""
    sampler: Literal["ddpm", "ddim"] = "ddim"
    """`ddpm` draws new noise at every step, `ddim` only at the start and needs fewer steps."""
    timestep_spacing: Literal["leading", "trailing"] = "leading"
    """Which steps a sampler with fewer than `num_train_timesteps` takes: those that end at the
    first step, or those that start at the last, which 1 to 4 evaluations need to see pure noise
    (arXiv 2305.08891)."""
