"""Several processes that train one run, as torchrun starts them.

Each trains some of the chunks of a batch; gradients and figures are added up. Tested with gloo, not
on GPUs (nccl).
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
from policy.errors import first_line

SLOWEST_RANK: Final = timedelta(minutes=30)  # loading a large store, or a validation


@dataclass(frozen=True)
class Ranks:
    """This process among those of the same training; by default it is alone."""

    rank: int = 0
    size: int = 1

    @property
    def is_primary(self) -> bool:
        """Whether this process writes, validates and reports."""
        return self.rank == 0

    def share(self, num_chunks: int) -> range:
        """Return the chunks of a batch that this process trains."""
        return range(self.rank, num_chunks, self.size)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over all processes (RankLostError)."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        try:
            torch.distributed.all_reduce(flat)
        except RuntimeError as error:  # gloo and nccl have no class of their own for a lost peer
            raise RankLostError(
                f"another process of this training has ended or hangs ({first_line(error)[:120]}); "
                "its own message tells the cause; run the same command again with --resume"
            ) from error
        sums = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, sums, strict=True):
            tensor.copy_(total.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Wait for all processes; return whether the flag of any of them is set (RankLostError)."""
        if self.size == 1:
            return flag
        is_nccl = torch.distributed.get_backend() == "nccl"
        count = torch.tensor(int(flag), device="cuda" if is_nccl else "cpu")
        self.add_up([count])
        return bool(count)


def has_launcher() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that torchrun started, if any; yield the ranks and this process's device.

    If `device` is a GPU without a number, each process takes its own.
    """
    if not has_launcher():
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
