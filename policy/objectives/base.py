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
from torch import Generator, Tensor

from policy.errors import AgentMismatchError
from policy.network.head import Condition
from policy.spec import FrozenModel

Chunks = Float[Tensor, "b horizon a"]
"""Normalized action chunks, and what has their shape: noise and velocities."""
Outputs = Float[Tensor, "b horizon outputs"]
"""Several chunks next to each other in the last axis, as the network returns them."""
Times = Float[Tensor, " b"]
"""A time, or a span of time, in [0, 1] per row."""
Noise = Float[Tensor, "b draws horizon a"]
"""Standard normal chunks, as many per row as a sampler needs."""
Predictor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A network with its condition bound: (z, t, h) -> `num_outputs` chunks next to each other."""


class ObjectiveSettings(FrozenModel, allow_inf_nan=False):
    """What the settings of every objective have in common."""

    kind: str
    """Names the objective in a saved configuration."""


@dataclass(frozen=True)
class Batch:
    """What a loss is computed from, and squared errors over its valid steps."""

    actions: Chunks
    """Data, normalized to about [-1, 1]; see `Normalizer`."""
    valid: Bool[Tensor, "b horizon"]
    """False where a chunk runs past the end of its episode; such steps do not count."""
    condition: Condition
    """Of the same rows."""
    generator: Generator
    """On the CPU; the only source of randomness."""
    teacher: Predictor | None = None
    """The target network of an objective that `is_taught`, under the condition of the same rows;
    evaluated without gradient. None is the network itself."""

    def draw_noise(self) -> Chunks:
        """Draw standard normal noise of the shape of the actions."""
        return torch.randn(self.actions.shape, generator=self.generator).to(self.actions)

    def summed_error(self, predicted: Chunks, target: Chunks) -> Float[Tensor, " b"]:
        """Return each row's squared error, summed over action dimensions and valid steps."""
        return self._masked((predicted - target).square()).sum(dim=(1, 2))

    def mean_error(self, predicted: Chunks, target: Chunks) -> Float[Tensor, ""]:
        """Return the squared error per valid action value, over the whole batch."""
        return self.summed_error(predicted, target).sum() / self.num_values(target)

    def root_mean_square(self, values: Chunks) -> Float[Tensor, ""]:
        """Return the root mean square of the valid values, over the whole batch."""
        return (self._masked(values.square()).sum() / self.num_values(values)).sqrt()

    def num_values(self, chunks: Chunks) -> Float[Tensor, ""]:
        """Return how many action values are valid, in the dtype of `chunks`."""
        return self.valid.to(chunks).sum() * chunks.shape[-1]

    def _masked(self, chunks: Chunks) -> Chunks:
        """Return zeros at the steps that do not count, whatever their values."""
        return torch.where(self.valid[..., None], chunks, 0.0)


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

    def __call__(self, z: Chunks, t: Times, h: Times, condition: Condition | Tensor, /) -> Outputs:
        """Predict `num_outputs` chunks of actions; see `ActionHead.forward`."""

    def derivative(
        self, z: Chunks, t: Times, h: Times, condition: Condition, direction: Chunks, /
    ) -> Outputs:
        """Differentiate along (direction, 1, 1) in (z, t, h); see `ActionHead.derivative`."""


def bind(head: ActionNetwork, condition: Condition | Tensor) -> Predictor:
    """Return the network as a function of (z, t, h) alone."""
    return lambda z, t, h: head(z, t, h, condition)


class Objective(ABC):
    """Trains a head on action chunks and draws action chunks from it."""

    num_outputs: int = 1
    """Chunks that the network predicts; its output is that many actions wide."""
    default_evaluations: int = 1
    """NFE, the number of function evaluations (of the network) of one decision."""
    is_nfe_fixed: bool = False
    """Whether the default is the only NFE that the sampler can take."""
    is_taught: bool = False
    """Whether `loss` uses a target network."""

    def __init__(self, config: ObjectiveSettings):
        self.config = config

    def check_evaluations(self, nfe: int) -> None:
        """Refuse an NFE that the sampler cannot take (AgentMismatchError)."""
        if self.is_nfe_fixed and nfe != self.default_evaluations:
            raise AgentMismatchError(
                f"nfe={nfe}, but objective {self.config.kind} always takes "
                f"{self.default_evaluations}; set {self.default_evaluations}, or leave it out"
            )
        if nfe < 1:
            raise AgentMismatchError(f"nfe: expected 1 or more, found {nfe}")

    def num_noise_draws(self, nfe: int) -> int:
        """Return how many chunks of noise a row needs at that NFE: by default 1, the start."""
        return 1

    @abstractmethod
    def loss(self, head: ActionNetwork, batch: Batch) -> Loss:
        """Compute the loss of the network to train."""

    @torch.no_grad()
    def sample(self, network: Predictor, noise: Noise, nfe: int) -> Chunks:
        """Draw normalized actions, without gradient; errors as in `check_evaluations`.

        The network, under the condition of the rows of `noise`, is evaluated `nfe` times. Noise,
        `num_noise_draws` chunks per row, is the only source of randomness: a row's actions do not
        depend on the other rows.
        """
        self.check_evaluations(nfe)
        return self._sample(network, noise, nfe)

    @abstractmethod
    def _sample(self, network: Predictor, noise: Noise, nfe: int) -> Chunks: ...
