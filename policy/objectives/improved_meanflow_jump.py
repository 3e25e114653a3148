"""Improved MeanFlow by jumps: an average velocity trained to add up, without a derivative.

The network has two outputs: the average velocity u, and the velocity v, trained on e - x. An
average velocity adds up:

    (t - r) u(z_t, r, t) = (z_t - z_s) + (s - r) u(z_s, r, s),    r < s < t

where z_s is on the trajectory of the velocity through z_t. The right side, by the target network,
is `jump_target`, which u is trained on:

    loss = d(u - jump) + velocity_weight * |v - (e - x)|^2,    d the adaptively weighted error

Every item ends at the data, r = 0, as a decision of one evaluation does. The MeanFlow identity is
the limit s -> t. Its du/dt amplifies every wiggle of the network in t, and carries what is known
near the data to the noise through infinitely many points; a jump of finite length does neither, and
its target is free of the noise of the pair (e, x). It costs evaluations of the target network: two
per midpoint step and one for the rest of the way.

The target network has the averaged weights: the point where two modes part moves with every step of
training, and a u trained by the present velocity would draw actions between the modes. Even the
averaged point moves: the distance instead of its square (power 0.5) lets u take the more frequent
target's side. The velocity's own target is noisy: its optimum is a mean, so its error is squared.

Source: the velocity head of improved MeanFlow, arXiv 2512.02012; the additivity of MeanFlow, arXiv
2505.13447, as a target like SplitMeanFlow's, arXiv 2507.16884; averaged weights as the target
network: Mean Teacher, arXiv 1703.01780; a distance to a target network's output: the pseudo-Huber
loss of arXiv 2310.14189.
Differs from the source: no du/dt; only spans that a decision of one evaluation needs; z_s comes
from the velocity, not from u over [s, t]; r < s is always left for u; errors are means over a
chunk, so that their balance does not depend on its size.
"""

from typing import Final, Literal

import torch
from pydantic import Field
from torch import Generator

from policy.objectives.base import ActionNetwork, Batch, Chunks, Loss, Predictor, Times, bind
from policy.objectives.flow_matching import StartConfig
from policy.objectives.meanflow import JumpObjective, adaptively_weighted

SHARE_LEFT: Final = (0.1, 0.6)  # (s - r) / (t - r); 0.3 to 0.9 drew wider modes
MIDPOINT_STEPS: Final = 2  # of the velocity, from t to s; second order in their length


class ImprovedMeanFlowJumpConfig(StartConfig):
    """Settings of improved MeanFlow by jumps."""

    kind: Literal["improved_meanflow_jump"] = "improved_meanflow_jump"
    noise_share: float = Field(default=0.3, ge=0, lt=1)
    """Share of a batch at t = 1, where a decision evaluates u; the others, at least one, are
    uniform in [0, 1], where jumps land."""
    weight_power: float = Field(default=0.5, ge=0, le=2)
    """p of the adaptive weight of u's error; 0 is the squared error, 0.5 the distance."""
    weight_constant: float = Field(default=0.0005, gt=0)
    """c of that weight, in mean squared normalized actions."""
    velocity_weight: float = Field(default=1.4, gt=0)
    """Weight of the velocity's loss, relative to u's; only the velocity sees the data."""


class ImprovedMeanFlowJump(JumpObjective):
    """The objective; see the module docstring for its equation."""

    config: ImprovedMeanFlowJumpConfig
    num_outputs = 2
    is_nfe_fixed = True  # other spans are not trained
    is_taught = True

    def loss(self, head: ActionNetwork, batch: Batch) -> Loss:
        # `raw_mse` is the velocity's distance from the data, as in flow matching, and `jump_mse`
        # that of u from its target, which is 0 at the start of a training.
        noise = batch.draw_noise()
        t = self._draw_times(len(noise), batch.generator).to(noise)
        left = draw_shares_left(len(noise), batch.generator)
        target = noise - batch.actions
        z = batch.actions + t[:, None, None] * target
        predicted = head(z, t, t, batch.condition)
        width = batch.actions.shape[-1]
        average, velocity = predicted[..., :width], predicted[..., width:]
        jump = jump_target(batch.teacher or bind(head, batch.condition), (z, t, t), left)
        jump_error = batch.summed_error(average, jump)
        velocity_error = batch.summed_error(velocity, target)
        size, count = batch.actions[0].numel(), batch.num_values(target)
        jump_loss = adaptively_weighted(
            jump_error / size, self.config.weight_power, self.config.weight_constant
        )
        return Loss(
            value=jump_loss.mean() + self.config.velocity_weight * (velocity_error / size).mean(),
            figures={
                "raw_mse": velocity_error.detach().sum() / count,
                "jump_mse": jump_error.detach().sum() / count,
                "average_velocity_rms": batch.root_mean_square(average.detach().to(jump_error)),
            },
        )

    def _draw_times(self, batch_size: int, generator: Generator) -> Times:
        """Draw times of which the last are 1; the rows of a batch are shuffled."""
        num_uniform = batch_size - min(round(self.config.noise_share * batch_size), batch_size - 1)
        t = torch.ones(batch_size)
        t[:num_uniform] = torch.rand(num_uniform, generator=generator)
        return t


def draw_shares_left(count: int, generator: Generator) -> Times:
    """Draw the share of its way that each jump leaves to u, on the CPU."""
    low, high = SHARE_LEFT
    return low + (high - low) * torch.rand(count, generator=generator)


@torch.no_grad()
def jump_target(network: Predictor, at: tuple[Chunks, Times, Times], left: Times) -> Chunks:
    """Return the right side of the additivity, divided by t - r, at points (z, t, h).

    Args:
        network: predicts u and v side by side; v is evaluated at the h that is left on its way.
        at: the points; the target has the dtype of z.
        left: the share of h that each jump leaves to u, in [0, 1].
    """
    z, now, rest = at
    width, left = z.shape[-1], left.to(z)
    step = (1 - left) * rest / MIDPOINT_STEPS
    passed = torch.zeros_like(z)  # summed velocities; a quotient by h would fail at h = 0
    for _ in range(MIDPOINT_STEPS):
        middle = z - _times(step / 2, network(z, now, rest)[..., width:])
        found = network(middle, now - step / 2, rest - step / 2)[..., width:]
        z, now, rest = z - _times(step, found), now - step, rest - step
        passed += found
    average = network(z, now, rest)[..., :width]
    return _times((1 - left) / MIDPOINT_STEPS, passed) + _times(left, average)


def _times(factor: Times, chunks: Chunks) -> Chunks:
    return factor[:, None, None] * chunks
