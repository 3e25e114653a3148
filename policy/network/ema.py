"""Exponential moving average of an agent's weights; the averaged weights are the ones to roll out.

Source: the warm-up schedule of real-stanford/diffusion_policy@5ba07ac, power 0.75.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

MAX_DECAY: Final = 0.9999  # dimensionless, per optimizer step
WARMUP_POWER: Final = 0.75  # dimensionless; reaches 0.999 after 10 k steps, 0.9999 after 215 k


def ema_decay(step: int) -> float:
    """Return the decay after `step` optimizer steps: 0 at the start, rising to `MAX_DECAY`."""
    return float(min(MAX_DECAY, 1.0 - (1.0 + step) ** -WARMUP_POWER))


class WeightAverage:
    """The running average of every floating-point tensor of a module, parameters and buffers."""

    def __init__(self, module: nn.Module):
        self.averaged = {
            name: tensor.detach().clone() for name, tensor in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards `module` after optimizer step `step`, counted from 0."""
        current = module.state_dict()
        targets = [current[name] for name in self.averaged]
        torch._foreach_lerp_(list(self.averaged.values()), targets, 1 - ema_decay(step))

    def restore(self, averaged: Mapping[str, Tensor]) -> None:
        """Resume from a saved average (KeyError, RuntimeError: a tensor or a shape differs)."""
        for name, tensor in self.averaged.items():
            tensor.copy_(averaged[name])

    def mirror(self, module: Module) -> Module:
        """Return a copy of the averaged module, without gradient, that follows every `update`.

        It holds the averaged tensors themselves.
        """
        copy = deepcopy(module).requires_grad_(False)
        copy.load_state_dict(self.averaged, assign=True)
        return copy
