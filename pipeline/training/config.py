"""The configuration of a training run, saved with it. Presets are functions in `presets.py`."""

import tomllib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import ConfigError
from policy.agent import AgentConfig
from policy.errors import invalid_field
from policy.spec import ComputeDtype, FrozenModel

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(FrozenModel, allow_inf_nan=False):
    """AdamW and its schedule."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak step size."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of AdamW's two running means, per step."""
    weight_decay: float = Field(default=1e-3, ge=0)
    """Pull towards zero, on matrices only: gains, biases and depth queries keep none."""
    warmup_steps: int = Field(default=1_000, ge=0)
    """Steps over which the step size rises from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: fall to zero along a cosine, or stay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are scaled down to this Euclidean norm."""


class TrainConfig(FrozenModel, allow_inf_nan=False):
    """Everything that decides a run's weights, given the store."""

    preset: str
    """Name of the preset this configuration started from; for people."""
    agent: AgentConfig = AgentConfig()
    """Sizes and objective of the policy."""
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = Field(default=50_000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=64, ge=1, le=65_536)
    """Windows per optimizer step."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Chunks of a batch, each with a pass and a gradient of its own: less memory, the same step
    size. The processes of torchrun share them."""
    balance_instructions: bool = False
    """Draw every instruction equally often, however many steps it has; else every step."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides initial weights, batches and noise."""
    compute_dtype: ComputeDtype | None = None
    """Dtype of the head's products; du/dt always stays in float32. None: bfloat16 on a CPU that
    multiplies it natively, if the head is wide enough to gain by it; else float32."""
    validation_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the episodes kept out of training, to measure the error on. If the manifest has a
    split, any share above 0 means the episodes of that split."""
    log_every: int = Field(default=50, ge=1)
    """Steps between two lines of log.jsonl."""
    validate_every: int = Field(default=1_000, ge=1)
    """Steps between two measurements on the validation episodes."""
    checkpoint_every: int = Field(default=1_000, ge=1)
    """Steps between two checkpoints; a killed job loses at most these."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the latest checkpoints stay on the disk, in addition to the best one."""

    @model_validator(mode="after")
    def _warmup_and_chunks_fit(self) -> "TrainConfig":
        warmup, chunks = self.optimizer.warmup_steps, self.gradient_accumulation_steps
        if warmup >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps: expected fewer than steps={self.steps}, found {warmup}"
            )
        if self.batch_size % chunks:
            raise ValueError(
                f"batch_size: expected a multiple of gradient_accumulation_steps={chunks}, found "
                f"{self.batch_size}"
            )
        return self


def with_settings(config: TrainConfig, settings: Sequence[str]) -> TrainConfig:
    """Return `config` with `group.field=value` settings applied in order, values as in TOML.

    Setting a group's `kind` resets it to that kind's defaults; later settings name its fields.

    Raises:
        ConfigError: a setting names no field, or its value is out of range.
    """
    content = config.model_dump()
    for setting in settings:
        key, separator, text = setting.partition("=")
        *groups, field = key.strip().split(".")
        target, is_found = _find_group(content, groups)
        if not separator or not is_found or field not in target or field == "preset":
            known = ", ".join(target)
            raise ConfigError(f"--set {setting}: expected group.field=value, known fields: {known}")
        value = _parse_value(text.strip())
        if field == "kind":
            valid = config.model_dump()  # in it only this group can be wrong
            _find_group(valid, groups[:-1])[0][groups[-1]] = {"kind": str(value)}
            defaults, _ = _find_group(_validated(valid, setting).model_dump(), groups)
            target.clear()
            target.update(defaults)
        else:
            target[field] = value
    return _validated(content, " ".join(settings))


def _find_group(content: dict[str, Any], groups: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """Return a nested group, or the innermost one that exists, and whether it was found."""
    for group in groups:
        if not isinstance(content.get(group), dict):
            return content, False
        content = content[group]
    return content, True


def _validated(content: dict[str, Any], settings: str) -> TrainConfig:
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"--set {settings}: {invalid_field(error)}") from error


def _parse_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string, as in `optimizer.schedule=constant`
