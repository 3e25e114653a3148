"""Loads a policy if all holds that must before a robot moves: encoder, features, rate, widths."""

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import Field

from pipeline.errors import EnvError
from pipeline.features.identity.encoder import load_like, load_text_like
from pipeline.features.identity.probe import check_probe
from pipeline.rollout.envs.base import RobotEnv
from pipeline.rollout.gate.camera_check import CameraCheckMode
from pipeline.training.run.checkpoint import read_average, resolve_step
from pipeline.training.run.folder import (
    RunDescription,
    read_bases,
    read_instructions,
    read_probe,
    read_run,
)
from policy.agent import VLAAgent
from policy.device import open_device
from policy.encoders.text import KnownInstructions
from policy.spec import FrozenModel

_MARGIN: Final = 0.01  # of the width of the bounds, by which training may reach beyond them


class PolicyConfig(FrozenModel):
    """Which policy to run, and how."""

    run: Path
    """Folder of a training run."""
    checkpoint: str = "latest"
    """`latest`, `best` or a step."""
    nfe: int | None = Field(default=None, ge=1)
    """Number of function evaluations per decision; None is the objective's own."""
    encoder: str | None = None
    """Path or name of the encoder; None is the name the run was trained with."""
    device: str = "auto"
    """Where encoder and head run: `auto`, or torch's name of a device."""
    text_encoder: str | None = None
    """As `encoder`, for instructions that training did not have; loaded when the first comes."""
    camera_check: CameraCheckMode = "refuse"
    """What to do where an episode's first frames are not what training showed. Of several
    environments, some scenes may differ: `refuse` then refuses only flipped, turned or exchanged
    pictures."""


def load_policy(config: PolicyConfig) -> tuple[RunDescription, VLAAgent, int]:
    """Load a run's averaged weights behind the encoder that made its features.

    Returns:
        The run's description, the agent with its encoder, ready to predict, and its step.

    Raises:
        RunError: `run` is not a run, or has no usable checkpoint.
        EncoderLoadError: the encoder cannot be loaded.
        EncoderMismatchError: it is not the one that made the features, or gives the run's probe
            other features than it had.
    """
    run, where = config.run, str(config.run)
    description = read_run(run)
    made_by, text_made_by = description.data.encoder, description.data.text_encoder
    probe = read_probe(run, description)
    step, weights = read_average(run, resolve_step(run, config.checkpoint))
    device = open_device(config.device)
    encoder = load_like(
        made_by, probe.environment, read_bases(run), name=config.encoder, where=where, device=device
    )
    check_probe(encoder, probe, where=where)
    instructions = None
    if text_made_by is not None:
        load_text_encoder = partial(
            load_text_like,
            text_made_by,
            name=config.text_encoder,
            where=where,
            option="--set text_encoder=PATH",
        )
        instructions = KnownInstructions(read_instructions(run, description), load_text_encoder)
    agent = VLAAgent(description.config.agent, description.spec, encoder, instructions)
    agent.load_state_dict(weights, strict=True)
    return description, agent.to(device).eval(), step


def check_env(description: RunDescription, env: RobotEnv) -> None:
    """Refuse an environment whose cameras, widths or control rate differ from the training's.

    Raises:
        EnvError: they differ; the message names the field and both values.
    """
    spec = description.spec
    for field, trained, found in (
        ("views", spec.view_names, env.view_names),
        ("state width", spec.state_dim, env.state_dim),
        ("action width", spec.action_dim, env.action_dim),
        ("control rate in Hz", description.data.fps, env.control_hz),
    ):
        if trained != found:
            raise EnvError(
                f"{env.name}: {field}: expected {trained} as in training, found {found}; use the "
                f"environment of the demonstrations"
            )


def check_action_bounds(agent: VLAAgent, env: RobotEnv) -> None:
    """Refuse an environment that would clip actions of the training data, or their scaled bulk.

    Raises:
        EnvError: it would, in a column that the message names.
    """
    if env.action_bounds is None:
        return
    trained = agent.action_normalizer
    lowest = (trained.center - trained.half_range).cpu().numpy()
    highest = (trained.center + trained.half_range).cpu().numpy()
    low, high = env.action_bounds
    margin = _MARGIN * (high - low)
    beyond = np.flatnonzero((lowest < low - margin) | (highest > high + margin))
    if len(beyond):
        column = int(beyond[0])
        raise EnvError(
            f"{env.name}: action[{column}]: the training data's scale is [{lowest[column]:.4g}, "
            f"{highest[column]:.4g}], but the action space is [{low[column]:.4g}, "
            f"{high[column]:.4g}] and would clip it ({len(beyond)} of {len(low)} columns); write "
            "`clip = false` below [action] if its bounds are not the robot's, `clip = true` if the "
            "recordings were made with this clipping"
        )
