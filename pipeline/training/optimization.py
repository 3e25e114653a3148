"""AdamW for an agent: its parameter groups, its schedule, and its state as named tensors."""

import math

import torch
from torch import Tensor

from pipeline.training.config import OptimizerConfig
from policy.agent import VLAAgent


def build_optimizer(agent: VLAAgent, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW with weight decay on the matrices that `VLAAgent.decay_groups` names."""
    decayed, others = agent.decay_groups()
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0, of `steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / (steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer_tensors(optimizer: torch.optim.Optimizer, agent: VLAAgent) -> dict[str, Tensor]:
    """Return AdamW's state as named tensors: `exp_avg/head.predict.weight` and so on."""
    return {
        f"{kind}/{name}": value
        for name, parameter in agent.named_parameters()
        for kind, value in optimizer.state[parameter].items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, agent: VLAAgent, tensors: dict[str, Tensor]
) -> None:
    """Restore the state that `optimizer_tensors` returned."""
    parameters = dict(agent.named_parameters())
    for key, value in tensors.items():
        kind, name = key.split("/", maxsplit=1)
        parameter = parameters[name]
        optimizer.state[parameter][kind] = value.to(parameter.device)
