"""How good a policy is on episodes that it was not trained on.

Knows windows and the agent; nothing about the training loop.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
from jaxtyping import Int64
from torch import Tensor

from pipeline.training.data.sampling import seeded_generator
from pipeline.training.data.windows import WindowData, Windows
from policy.agent import VLAAgent

MAX_WINDOWS: Final = 512  # at most; enough for a mean error, a second of compute


def validation_sample(data: WindowData) -> Int64[Tensor, " n"]:
    """Return the validation rows whose windows are measured, spread evenly."""
    rows = data.validation_rows
    return rows[:: max(1, math.ceil(len(rows) / MAX_WINDOWS))]


class ValidationWindows:
    """Windows of validation episodes, spread evenly, and the same random numbers each time."""

    def __init__(self, data: WindowData, seed: int, device: torch.device):
        """Choose the windows.

        Args:
            data: split into training and validation rows.
            seed: of the run.
            device: where the agent is.
        """
        self._data, self._seed, self._device = data, seed, device
        self._rows = validation_sample(data)

    def __len__(self) -> int:
        return len(self._rows)

    @torch.no_grad()
    def measure(self, agent: VLAAgent, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Measure weights other than those being trained, which the agent holds again afterwards.

        Returns:
            `val_error`, the root mean squared action error in normalized units (the action
            range is 2; clipped as in training), with as many passes through the head as the
            objective takes by default, and `val_loss`, the training's own loss, in which an
            agent that `is_taught` teaches itself; empty if no episode is held out.
        """
        if not len(self):
            return {}
        trained = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
        agent.load_state_dict(dict(weights))
        try:
            return self._measure(agent)
        finally:
            agent.load_state_dict(trained)

    def _measure(self, agent: VLAAgent) -> dict[str, float]:
        batch = self._windows(agent)
        noise = agent.noise(len(self), seeded_generator(self._seed, "validation", 0))
        predicted = agent.predict(batch.features, batch.state, noise.to(self._device))
        normalize = agent.action_normalizer.normalize
        error = (normalize(predicted) - normalize(batch.actions)).square()[batch.valid]
        generator = seeded_generator(self._seed, "validation loss", 0)
        loss = agent.compute_loss(
            batch.features, batch.state, batch.actions, batch.valid, generator
        )
        return {
            "val_error": math.sqrt(float(error.mean())),
            "val_loss": float(loss.value),
        }

    def _windows(self, agent: VLAAgent) -> Windows:
        windows = self._data.gather(
            self._rows,
            obs_horizon=agent.config.obs_horizon,
            pred_horizon=agent.config.head.pred_horizon,
        )
        return windows.to(self._device)
