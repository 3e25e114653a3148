"""What policies without noise share: a fixed number of passes, and none to draw.

Knows the seam of an objective; nothing about losses. The network is asked at h = 0, and its time
says which pass it is: 0 knows nothing yet. Elsewhere in this project 0 is data and 1 is noise.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from policy.network.head import Condition
from policy.objectives.base import ActionNetwork, check_fixed_evaluations


class Deterministic:
    """An objective whose sampler always takes the same passes."""

    num_outputs = 1

    def __init__(self, kind: str, *, num_passes: int):
        self._kind = kind
        self.default_evaluations = num_passes

    def check_evaluations(self, num_evaluations: int) -> None:
        """Refuse any number of passes but the one; see `Objective.check_evaluations`."""
        check_fixed_evaluations(self._kind, self.default_evaluations, num_evaluations)

    def num_noise_draws(self, num_evaluations: int) -> int:
        """Return 0; see `Objective.num_noise_draws`."""
        return 0


def ask(
    head: ActionNetwork, actions: Float[Tensor, "b horizon a"], time: float, condition: Condition
) -> Float[Tensor, "b horizon a"]:
    """Return the network's answer to actions, at the same time in every row and at h = 0."""
    t = actions.new_full((len(actions),), time)
    return head(actions, t, torch.zeros_like(t), condition)


def no_actions(noise: Float[Tensor, "b draws horizon a"]) -> Float[Tensor, "b horizon a"]:
    """Return a chunk of zeros a row; the noise, even of 0 draws, says of which shape."""
    return noise.new_zeros((noise.shape[0], *noise.shape[2:]))
