"""The interface of an objective: a loss that trains the head, and a sampler that draws from it.

Data is at time 0 and noise at time 1, z_t = (1-t) x + t e, in every objective that interpolates
between them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict
from torch import Generator, Tensor

from policy.errors import AgentMismatchError
from policy.network.head import Condition

Predictor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A network with its condition bound: (z, t, h) -> `num_outputs` chunks side by side."""


class ObjectiveSettings(BaseModel):
    """What the settings of every objective have in common; each adds a `kind` of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Batch:
    """What a loss is computed from."""

    actions: Float[Tensor, "b horizon a"]
    """Data, normalized to [-1, 1]."""
    valid: Bool[Tensor, "b horizon"]
    """False where a chunk runs past the end of its episode; such steps do not count."""
    condition: Condition
    """Of the same rows."""
    generator: Generator
    """On the CPU; the only source of randomness."""

    def draw_noise(self) -> Float[Tensor, "b horizon a"]:
        """Draw standard normal noise of the shape of the actions."""
        return torch.randn(self.actions.shape, generator=self.generator).to(self.actions)


@dataclass(frozen=True)
class Loss:
    """A training loss and the figures to log with it."""

    value: Float[Tensor, ""]
    """What the optimizer minimizes."""
    figures: dict[str, Tensor] = field(default_factory=dict)
    """Scalars without gradient, by name; `raw_mse`, the plain squared error, is always there."""


@runtime_checkable  # the test run checks argument types
class ActionNetwork(Protocol):
    """The network that an objective trains: `ActionHead`, or a closed form in the tests."""

    def __call__(
        self,
        z: Float[Tensor, "b horizon a"],
        t: Float[Tensor, " b"],
        h: Float[Tensor, " b"],
        condition: Condition,
        /,
    ) -> Float[Tensor, "b horizon outputs"]:
        """Predict `num_outputs` chunks of actions side by side; see `ActionHead.forward`."""

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


def bind(head: ActionNetwork, condition: Condition) -> Predictor:
    """Return the network as a function of (z, t, h) alone."""
    return lambda z, t, h: head(z, t, h, condition)


class Objective(ABC):
    """Trains a head on action chunks and draws action chunks from it."""

    num_outputs: int = 1
    """Chunks that the network predicts side by side; its output is that many actions wide."""
    default_evaluations: int = 1
    """NFE, the number of function evaluations (passes through the network) of one decision."""
    is_taught: bool = False
    """Whether `loss` uses a target network."""
    learns_jumps: bool = False
    """Whether there is an `additivity_residual`."""

    def check_evaluations(self, nfe: int) -> None:
        """Refuse an NFE that the sampler cannot take; by default any from 1 is accepted.

        Raises:
            AgentMismatchError: it cannot; the message says which numbers it can take.
        """
        if nfe < 1:
            raise AgentMismatchError(f"nfe={nfe}, want 1 or more")

    def num_noise_draws(self, nfe: int) -> int:
        """Return how many chunks of noise a row needs at that NFE: by default 1, the start."""
        return 1

    @abstractmethod
    def loss(self, head: ActionNetwork, batch: Batch, *, teacher: Predictor | None = None) -> Loss:
        """Compute the loss.

        Args:
            head: the network to train.
            batch: what to train it on.
            teacher: the target network of an objective that `is_taught`, under the condition of
                the same rows; evaluated without gradient. None is the network itself.
        """

    @abstractmethod
    def sample(
        self,
        network: Predictor,
        noise: Float[Tensor, "b draws horizon a"],
        nfe: int,
    ) -> Float[Tensor, "b horizon a"]:
        """Draw normalized actions, without gradient.

        Args:
            network: the trained network under the condition of the rows of `noise`.
            noise: standard normal, `num_noise_draws` chunks per row; the only source of
                randomness, so that a row's actions do not depend on the other rows.
            nfe: how often the network is evaluated.

        Raises:
            AgentMismatchError: see `check_evaluations`.
        """

    def additivity_residual(
        self, network: Predictor, noise: Float[Tensor, "b draws horizon a"]
    ) -> Float[Tensor, " b"] | None:
        """Return how far one jump from noise to data is from two, relative to their length.

        Objectives that learn jumps must learn jumps that add up, so a policy can check itself
        without labels, in a few evaluations. 0 is perfect; at most 2. None without `learns_jumps`.

        Args:
            network: the trained network under the condition of the rows of `noise`.
            noise: as for `sample` with one evaluation.
        """
        return None


def check_fixed_evaluations(kind: str, accepted: int, nfe: int) -> None:
    """Refuse every NFE but the one that a kind of objective takes.

    Raises:
        AgentMismatchError: another was requested.
    """
    if nfe != accepted:
        raise AgentMismatchError(
            f"nfe={nfe}, but objective {kind} always takes {accepted}; "
            f"set {accepted}, or leave the number out"
        )
