"""How features are computed, as against by what: the record that two runs compare.

The same weights give the same bits only on the same engine; on another one they agree within a
tolerance. Knows torch's view of the machine; nothing about towers, stores or files.
"""

import hashlib
import os
from importlib.metadata import version
from typing import Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

DeviceKind = Literal["cpu", "cuda", "mps"]
AttentionKernel = Literal["sdpa", "eager"]

ISA_LIMITS: Final = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # how oneDNN is held back


class EngineRecord(BaseModel):
    """How features were computed. Equal records promise equal bits; others, a tolerance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: DeviceKind
    """Kind of device the tower runs on."""
    hardware: tuple[str, ...]
    """A CPU's capabilities, cache sizes, and what limits the kernels, sorted; or the GPU's name."""
    torch_version: str
    """torch's version with its build."""
    transformers_version: str
    """Version of the library whose tower it is."""
    attention: AttentionKernel
    """Which implementation of attention."""
    tf32: bool
    """Whether float32 products may be rounded to a shorter mantissa."""
    compiled: bool
    """Whether torch.compile fused the tower's operations."""
    threads: int = Field(ge=1)
    """Threads of a CPU's product; they may change how a sum is split."""
    steps_per_pass: int = Field(ge=1)
    """Control steps that share one pass through the tower."""

    def digest(self) -> str:
        """Return a sha256 that names this engine."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def describe_engine(
    device: torch.device, *, attention: AttentionKernel, compiled: bool, steps_per_pass: int
) -> EngineRecord:
    """Describe this process's engine as it is set now.

    Args:
        device: where the tower runs.
        attention: which implementation of attention the tower holds.
        compiled: whether torch.compile fused the tower.
        steps_per_pass: control steps that share one pass.
    """
    return EngineRecord.model_validate(
        {
            "device": device.type,
            "hardware": _hardware(device),
            "torch_version": str(torch.__version__),
            "transformers_version": version("transformers"),
            "attention": attention,
            "tf32": _rounds_float32(device),
            "compiled": compiled,
            "threads": torch.get_num_threads(),
            "steps_per_pass": steps_per_pass,
        }
    )


def multiply_float32_exactly(device: torch.device) -> None:
    """Forbid shorter mantissas in float32 products: a GPU's convolutions have them by default."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def _hardware(device: torch.device) -> tuple[str, ...]:
    if device.type == "cuda":
        return (torch.cuda.get_device_name(device),)
    if device.type == "mps":
        return ("Apple GPU",)
    held = torch.cpu.get_capabilities()
    # Counts of cores are left out: threads say what of them is used. Cache sizes are not, because
    # they decide how a product is cut into blocks.
    named = {key for key, value in held.items() if value is True}
    sized = {f"{key}={held[key]}" for key in ("l1d_cache_size", "l2_cache_size") if key in held}
    chosen = {f"kernels={torch.backends.cpu.get_cpu_capability()}"}
    limited = {f"{key}={os.environ[key]}" for key in ISA_LIMITS if key in os.environ}
    return tuple(sorted(named | sized | chosen | limited))


def _rounds_float32(device: torch.device) -> bool:
    if device.type == "cuda":
        precisions = {
            torch.backends.cuda.matmul.fp32_precision,
            torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        }
        return precisions != {"ieee"}
    return not {
        torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv.fp32_precision,  # type: ignore[attr-defined]
    } <= {"none", "ieee"}
