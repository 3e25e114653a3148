"""The seam between the head and what trains it: a loss and a sampler on the same network.

Knows networks, actions and time; nothing about cameras, robots or the trunk. Data is at time 0 and
noise at time 1, z_t = (1-t) x + t e, in every objective that draws a line between them.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Generator, Tensor

from policy.errors import AgentMismatchError
from policy.network.head import Condition


@dataclass(frozen=True)
class Loss:
    """A training loss and the figures worth logging beside it."""

    value: Float[Tensor, ""]
    """What the optimiser descends."""
    figures: dict[str, Tensor] = field(default_factory=dict)
    """Scalars without gradient, by name; `raw_mse`, the plain squared error, is always there."""


@runtime_checkable
class ActionNetwork(Protocol):
    """What an objective trains, such as `ActionHead`; the objective says what it predicts."""

    def __call__(
        self,
        z: Float[Tensor, "b horizon a"],
        t: Float[Tensor, " b"],
        h: Float[Tensor, " b"],
        condition: Condition,
        /,
    ) -> Float[Tensor, "b horizon outputs"]:
        """Predict `num_outputs` chunks of actions, side by side; see `ActionHead.forward`."""


@runtime_checkable
class DifferentiableNetwork(ActionNetwork, Protocol):
    """What average velocities are trained in: a network that knows its derivative, `ActionHead`."""

    def derivative(
        self,
        z: Float[Tensor, "b horizon a"],
        t: Float[Tensor, " b"],
        h: Float[Tensor, " b"],
        condition: Condition,
        direction: Float[Tensor, "b horizon a"],
        /,
    ) -> Float[Tensor, "b horizon outputs"]:
        """Differentiate along (direction, 1, 1) in (z, t, h); see `ActionHead.derivative`."""


@runtime_checkable
class Objective(Protocol):
    """Trains a head on action chunks and draws action chunks from it."""

    @property
    def num_outputs(self) -> int:
        """Chunks that the network predicts side by side; its output is that many actions wide."""

    @property
    def default_evaluations(self) -> int:
        """Passes through the network a decision takes unless another number is asked for."""

    def check_evaluations(self, num_evaluations: int) -> None:
        """Refuse a number of passes that the sampler cannot take.

        Raises:
            AgentMismatchError: it cannot; the message says which numbers it can.
        """

    def num_noise_draws(self, num_evaluations: int) -> int:
        """Return how many chunks of noise a row needs for that many passes; 0 if deterministic."""

    def loss(
        self,
        head: DifferentiableNetwork,
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
        head: ActionNetwork,
        noise: Float[Tensor, "b draws horizon a"],
        condition: Condition,
        num_evaluations: int,
    ) -> Float[Tensor, "b horizon a"]:
        """Draw normalised actions with `num_evaluations` passes through the network.

        Args:
            head: the trained network.
            noise: standard normal, `num_noise_draws` chunks a row; the only source of randomness,
                so that a row's answer does not depend on the rows beside it.
            condition: of the same batch rows.
            num_evaluations: one that `check_evaluations` accepts.

        Raises:
            AgentMismatchError: the sampler cannot take that many passes.
        """


@dataclass(frozen=True)
class Teacher:
    """Whom a loss asks for what it should be: a network, and the condition as that one reads it."""

    head: ActionNetwork
    """Asked without gradient; a moving average of the network to train, or that network itself."""
    condition: Condition
    """Of the batch rows of the loss."""


@runtime_checkable
class TaughtObjective(Protocol):
    """An objective whose targets a network gives, so that a steadier network teaches better."""

    def taught_loss(
        self,
        head: DifferentiableNetwork,
        actions: Float[Tensor, "b horizon a"],
        valid: Bool[Tensor, "b horizon"],
        condition: Condition,
        generator: Generator,
        *,
        teacher: Teacher,
    ) -> Loss:
        """Compute the loss by a teacher; in `Objective.loss` the network teaches itself."""


@runtime_checkable
class AdditiveObjective(Protocol):
    """An objective whose jumps must add up, which a policy can check on itself without labels."""

    def additivity_residual(
        self,
        head: ActionNetwork,
        noise: Float[Tensor, "b draws horizon a"],
        condition: Condition,
    ) -> Float[Tensor, " b"]:
        """Return how far one jump from noise to data is from two, relative to their length.

        Takes a few passes through the network. 0 is perfect; at most 2.

        Args:
            head: the trained network.
            noise: as for `Objective.sample` with one pass.
            condition: of the same batch rows.
        """


def check_fixed_evaluations(kind: str, taken: int, asked: int) -> None:
    """Refuse any number of passes but the one that a kind of objective takes.

    Raises:
        AgentMismatchError: another is asked for.
    """
    if asked != taken:
        raise AgentMismatchError(
            f"num_evaluations={asked}, but objective {kind} always takes {taken}; ask for {taken}, "
            f"or for no number"
        )
