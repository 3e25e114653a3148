"""Loads a policy if all holds that must before a robot moves: encoder, features, rate and widths.

Every refusal names what differs.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import Field

from pipeline.errors import EncoderMismatchError, EnvError, RunError
from pipeline.features.identity.encoder import load_like, load_text_like, refuse_other_encoder
from pipeline.features.identity.probe import check_probe
from pipeline.rollout.envs.base import RobotEnv
from pipeline.rollout.gate.camera_verdict import CameraCheckMode
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
from policy.errors import VlaError
from policy.spec import FrozenModel

_MARGIN: Final = 0.01  # of the width of the bounds, by which training may reach beyond them

logger = logging.getLogger(__name__)


class Gate:
    """Refuses; or, overridden, accepts what can run at all, and keeps the reasons."""

    def __init__(self, *, is_overridden: bool = False):
        self.is_overridden = is_overridden
        self.overridden: list[str] = []
        """What would have been refused."""

    def refuse(self, error: VlaError) -> None:
        """Raise `error`, or note it where the gate is overridden."""
        if not self.is_overridden:
            raise error
        reason = " ".join(str(error).split())
        self.overridden.append(reason)
        logger.warning("CHECK OVERRIDDEN: %s", reason)


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
    """Path or name of what encodes instructions that training did not have; None is the name the
    run was trained with. It is loaded when the first one comes."""
    camera_check: CameraCheckMode = "refuse"
    """What to do where an episode's first frames are not what training showed. Of several
    environments, some scenes may differ: `refuse` then refuses only flipped, turned or exchanged
    pictures."""


def load_policy(
    config: PolicyConfig, gate: Gate | None = None
) -> tuple[RunDescription, VLAAgent, int]:
    """Load a run's averaged weights behind the encoder that made its features.

    Args:
        config: the policy.
        gate: decides about another encoder; None refuses it.

    Returns:
        The run's description, the agent with its encoder, ready to predict, and its step.

    Raises:
        RunError: `run` is not a run, or has no usable checkpoint.
        EncoderLoadError: the encoder cannot be loaded.
        EncoderMismatchError: it is not the one that made the features, or gives the run's probe
            other features than it had.
    """
    gate, run = gate or Gate(), config.run
    description = read_run(run)
    probe = read_probe(run, description)
    step, weights = read_average(run, resolve_step(run, config.checkpoint))
    opened = open_device(config.device)
    made_by = description.data.encoder
    loaded = load_like(
        made_by,
        probe.environment,
        read_bases(run),
        name=config.encoder,
        where=str(run),
        device=opened,
    )
    try:
        refuse_other_encoder(loaded, made_by, where=str(run))
        check_probe(loaded, probe, where=str(run))
    except EncoderMismatchError as error:
        gate.refuse(error)
    agent = VLAAgent(
        description.config.agent,
        description.spec,
        loaded,
        _known_instructions(run, description, config.text_encoder),
    )
    try:
        agent.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise RunError(
            f"{run}: the checkpoint does not fit the agent of this run ({error})"
        ) from error
    return description, agent.to(opened).eval(), step


def _known_instructions(
    run: Path, description: RunDescription, text_encoder: str | None
) -> KnownInstructions | None:
    made_by = description.data.text_encoder
    if made_by is None:
        return None
    load = partial(
        load_text_like,
        made_by,
        name=text_encoder,
        where=str(run),
        option="--set text_encoder=PATH",
    )
    return KnownInstructions(read_instructions(run, description), load)


def check_env(description: RunDescription, env: RobotEnv, gate: Gate | None = None) -> None:
    """Refuse an environment whose cameras, widths or control rate differ from the training's.

    Args:
        description: of the run.
        env: not yet reset.
        gate: decides about another control rate; None refuses it. Other views and widths are
            always refused: nothing could run.

    Raises:
        EnvError: they differ; the message names the field and both values.
    """
    gate = gate or Gate()
    spec = description.spec
    for field, trained, found in (
        ("views", spec.view_names, env.view_names),
        ("state width", spec.state_dim, env.state_dim),
        ("action width", spec.action_dim, env.action_dim),
        ("control rate in Hz", description.data.fps, env.control_hz),
    ):
        if trained != found:
            error = EnvError(
                f"{env.name}: {field}: expected {trained} as in training, found {found}; use the "
                f"environment of the demonstrations"
            )
            if not field.startswith("control rate"):
                raise error
            gate.refuse(error)


def check_action_bounds(agent: VLAAgent, env: RobotEnv) -> None:
    """Refuse an environment that would clip actions which training has shown the policy.

    Raises:
        EnvError: it would, in a column that the message names.
    """
    if env.action_bounds is None:
        return
    center, half_range = agent.action_normalizer.center, agent.action_normalizer.half_range
    trained = np.stack([(center - half_range).cpu().numpy(), (center + half_range).cpu().numpy()])
    low, high = env.action_bounds
    margin = _MARGIN * (high - low)
    beyond = np.flatnonzero((trained[0] < low - margin) | (trained[1] > high + margin))
    if len(beyond):
        column = int(beyond[0])
        raise EnvError(
            f"{env.name}: action[{column}]: the training data is in [{trained[0, column]:.4g}, "
            f"{trained[1, column]:.4g}], but the action space is [{low[column]:.4g}, "
            f"{high[column]:.4g}] and would clip it ({len(beyond)} of {len(low)} columns); write "
            "`clip = false` below [action] if its bounds are not the robot's, `clip = true` if the "
            "recordings were made with this clipping"
        )
