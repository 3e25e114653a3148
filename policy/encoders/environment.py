"""The compute environment of an encoder: how features are computed, as against by what.

The same weights give the same bits only in the same environment; elsewhere they agree within a
tolerance.
"""

import ctypes
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import torch
from pydantic import Field

from policy.spec import FrozenModel

M_TRIM_THRESHOLD: Final = -1  # glibc's malloc.h
M_MMAP_THRESHOLD: Final = -3  # the same
REUSED_BYTES: Final = 2**31 - 1  # the most that mallopt takes; beyond it memory is returned
ISA_LIMITS: Final = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # how oneDNN is held back


class ComputeEnvironment(FrozenModel):
    """How features were computed. Equal records promise equal bits; others, a tolerance."""

    device: Literal["cpu", "cuda", "mps"]
    hardware: tuple[str, ...]
    """A CPU's capabilities, cache sizes, and what limits the kernels, sorted; or the GPU's name."""
    torch_version: str
    library: str
    """The library whose network it is, its version, and its kernels where it has several."""
    tf32: bool
    """Whether float32 products may be rounded to a shorter mantissa."""
    compiled: bool
    threads: int = Field(ge=1)
    """Threads of a CPU's product; they may change how a sum is split."""
    images_per_pass: int = Field(ge=1)
    """Images that share one forward pass, fillers included: same shapes run the same kernels."""
    place_matters: bool
    """Whether a feature's last bits depend on its image's place in the pass, as measured; if so,
    view i of a step is always encoded at place i."""

    def digest(self) -> str:
        """Return a sha256 that names this environment."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def differences(self, other: "ComputeEnvironment") -> list[str]:
        """Name every field in which `other` differs from this one, with both values."""
        pairs = zip(self, other, strict=True)  # each a field's name and value
        return [f"{name} was {was}, is {now}" for (name, was), (_, now) in pairs if was != now]


def describe_environment(
    device: torch.device, *, library: str, compiled: bool, images_per_pass: int, place_matters: bool
) -> ComputeEnvironment:
    """Describe this process's environment as torch is set now; see `ComputeEnvironment`."""
    return ComputeEnvironment(
        device=device.type,  # pydantic refuses other kinds
        hardware=_hardware(device),
        torch_version=str(torch.__version__),
        library=library,
        tf32=_rounds_float32(device),
        compiled=compiled,
        threads=torch.get_num_threads(),
        images_per_pass=images_per_pass,
        place_matters=place_matters,
    )


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Forbid shorter mantissas in float32 products meanwhile: a GPU's convolutions have them."""
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    held = products.fp32_precision, convolutions.fp32_precision
    products.fp32_precision = convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        products.fp32_precision, convolutions.fp32_precision = held


def reuse_freed_memory() -> None:
    """Let this process keep the memory that a pass on the CPU frees, for the next pass.

    glibc otherwise maps every large tensor anew, and the kernel clears its pages each time:
    embedding with EfficientNet-Lite0 took 1.28 times as long. No effect without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, REUSED_BYTES)
        mallopt(M_TRIM_THRESHOLD, REUSED_BYTES)


def _hardware(device: torch.device) -> tuple[str, ...]:
    if device.type == "cuda":
        return (torch.cuda.get_device_name(device),)
    if device.type == "mps":
        return ("Apple GPU",)
    held = torch.cpu.get_capabilities()
    # Counts of cores are left out: the number of threads is recorded instead. Cache sizes are kept:
    # they decide how a product is cut into blocks.
    named = {key for key, value in held.items() if value is True}
    sized = {f"{key}={held[key]}" for key in ("l1d_cache_size", "l2_cache_size") if key in held}
    chosen = {f"kernels={torch.backends.cpu.get_cpu_capability()}"}
    limited = {f"{key}={os.environ[key]}" for key in ISA_LIMITS if key in os.environ}
    return tuple(sorted(named | sized | chosen | limited))


def _rounds_float32(device: torch.device) -> bool:
    if device.type == "cuda":
        return False  # `exact_float32` holds during every pass
    return not {
        torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv.fp32_precision,  # type: ignore[attr-defined]
    } <= {"none", "ieee"}
