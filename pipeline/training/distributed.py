"""Several processes that train one run, as torchrun starts them.

Each takes some of the parts that a batch is cut into; gradients and figures are added up. Knows
processes and tensors; nothing about runs or agents. Untested on GPUs (nccl); tested with gloo.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed
from torch import Tensor

from pipeline.errors import RankLostError

SLOWEST_RANK: Final = timedelta(minutes=30)  # loading a large store, or a validation
PRIMARY: Final = 0  # the rank that writes


@dataclass(frozen=True)
class Ranks:
    """This process among those of the same training; by default it is alone."""

    rank: int = PRIMARY
    """Number of this process."""
    size: int = 1
    """How many there are."""

    @property
    def is_primary(self) -> bool:
        """Whether this process writes, validates and reports."""
        return self.rank == PRIMARY

    def share(self, num_parts: int) -> range:
        """Return the parts of a batch that are this process's own."""
        return range(self.rank, num_parts, self.size)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of one dtype on one device, by their sums over all processes.

        Raises:
            RankLostError: another process has ended.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _other_ranks_needed():
            torch.distributed.all_reduce(flat)
        sizes = [tensor.numel() for tensor in tensors]
        parts = torch.split(flat, sizes)
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Return whether any process says so; all must ask.

        Raises:
            RankLostError: another process has ended.
        """
        if self.size == 1:
            return flag
        said = torch.tensor(int(flag), device=_collective_device())
        with _other_ranks_needed():
            torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MAX)
        return bool(said)

    def wait(self) -> None:
        """Go on when every process is here (RankLostError: another process has ended)."""
        self.any(False)


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that torchrun started; alone where it started none.

    Args:
        device: asked for; of a GPU without a number, each process takes its own.

    Yields:
        This process's place, and its device.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Ranks(), device
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend, timeout=SLOWEST_RANK)
    try:
        yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size()), device
    finally:
        torch.distributed.destroy_process_group()


def _collective_device() -> torch.device:
    is_nccl = torch.distributed.get_backend() == "nccl"
    return torch.device("cuda" if is_nccl else "cpu")


@contextmanager
def _other_ranks_needed() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and nccl have no class of their own for a lost peer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RankLostError(
            f"another process of this training has ended or hangs ({reason[:120]}); its own "
            f"message tells why; start the same command again with --resume"
        ) from error
