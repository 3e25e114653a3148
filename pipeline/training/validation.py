"""The error of a policy on episodes that it was not trained on."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pipeline.training.data.sampling import seeded_generator
from pipeline.training.data.windows import WindowData
from policy.agent import VLAAgent

MAX_WINDOWS: Final = 512  # at most; enough for a mean error, one second of compute


class ValidationWindows:
    """Windows of validation episodes, spread evenly, and the same random numbers each time."""

    def __init__(self, data: WindowData, seed: int, device: torch.device):
        self._data, self._seed, self._device = data, seed, device
        rows = data.validation_rows
        self._rows = rows[:: max(1, math.ceil(len(rows) / MAX_WINDOWS))]

    def __len__(self) -> int:
        return len(self._rows)

    @torch.no_grad()
    def measure(self, agent: VLAAgent, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Measure weights other than those being trained, which the agent holds again afterwards.

        Returns:
            `val_error`, the root mean squared action error in normalized units (the action
            range is 2; clipped as in training), with the objective's default NFE, and `val_loss`,
            the training's own loss, in which an agent that `is_taught` teaches itself; where there
            are several instructions, `val_error/<instruction>` of each. Empty without validation
            episodes.
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
        batch = self._data.gather(
            self._rows,
            obs_horizon=agent.config.obs_horizon,
            pred_horizon=agent.config.head.pred_horizon,
        ).to(self._device)
        noise = agent.noise(len(self), seeded_generator(self._seed, "validation", 0))
        predicted = agent.predict(batch.inputs, batch.state, noise.to(self._device))
        normalize = agent.action_normalizer.normalize
        error = (normalize(predicted) - normalize(batch.actions)).square()
        generator = seeded_generator(self._seed, "validation loss", 0)
        loss = agent.compute_loss(batch.inputs, batch.state, batch.actions, batch.valid, generator)
        figures = {
            "val_error": math.sqrt(float(error[batch.valid].mean())),
            "val_loss": float(loss.value),
        }
        words, number = self._data.instructions.words, self._data.instruction_of(self._rows)
        for place in np.unique(number) if len(words) > 1 else ():
            own = (number == place).to(self._device)
            figures[f"val_error/{words[place]}"] = math.sqrt(
                float(error[own][batch.valid[own]].mean())
            )
        return figures
