"""The seam between the head and what trains it: a loss and a sampler on the same network.

Knows velocity networks, actions and time; nothing about cameras, robots or the trunk.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Generator, Tensor

from policy.head import Condition


@dataclass(frozen=True)
class Loss:
    """A training loss and the figures worth logging beside it."""

    value: Float[Tensor, ""]
    """What the optimiser descends."""
    figures: dict[str, Tensor] = field(default_factory=dict)
    """Scalars without gradient, by name."""


@runtime_checkable
class VelocityField(Protocol):
    """A network that predicts average velocities, such as `ActionHead`."""

    def __call__(
        self,
        z: Float[Tensor, "b horizon a"],
        t: Float[Tensor, " b"],
        h: Float[Tensor, " b"],
        condition: Condition,
        /,
    ) -> Float[Tensor, "b horizon a"]:
        """Predict the velocity averaged over [t - h, t]; see `ActionHead.forward`."""


@runtime_checkable
class Objective(Protocol):
    """Trains a head on action chunks and draws action chunks from it."""

    def loss(
        self,
        head: VelocityField,
        actions: Float[Tensor, "b horizon a"],
        valid: Bool[Tensor, "b horizon"],
        condition: Condition,
        generator: Generator,
    ) -> Loss:
        """Compute the loss of normalised actions.

        Args:
            head: the network to train.
            actions: data in [-1, 1].
            valid: False where a chunk runs past its episode's end; such steps do not count.
            condition: of the same batch rows.
            generator: on the CPU; the only source of randomness.
        """

    def sample(
        self,
        head: VelocityField,
        noise: Float[Tensor, "b horizon a"],
        condition: Condition,
        num_evaluations: int,
    ) -> Float[Tensor, "b horizon a"]:
        """Turn noise into normalised actions with `num_evaluations` passes through the head."""
