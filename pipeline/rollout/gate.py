"""What must hold before a robot moves: the encoder, the cameras and the widths of the training.

Knows runs, encoders and environments; steps none. Every refusal names what differs.
"""

from pathlib import Path

from pipeline.errors import EncoderMismatchError, EnvError, RunError
from pipeline.rollout.envs.base import RobotEnv
from pipeline.training.checkpoint import RunDescription, read_average, read_run
from policy.agent import VLAAgent
from policy.backbone import STAND_IN, FrozenSiglip2, load_backbone
from policy.spec import EncoderIdentity


def load_policy(run: Path, *, backbone: str | None) -> tuple[RunDescription, VLAAgent, int]:
    """Load a run's averaged weights behind the encoder that made its features.

    Args:
        run: folder of a training run.
        backbone: where that encoder lies now; None takes the name the run was trained with.

    Returns:
        The run's description, the agent with its encoder, ready to predict, and its step.

    Raises:
        RunError: `run` is not a run, or has no usable checkpoint.
        EncoderLoadError: the encoder cannot be loaded.
        EncoderMismatchError: it is not the one that made the features.
    """
    description = read_run(run)
    step, weights = read_average(run)
    encoder = load_same_encoder(description.data.encoder, backbone, where=str(run))
    agent = VLAAgent(description.config.agent, description.spec, encoder)
    try:
        agent.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise RunError(f"{run}: checkpoint of another agent ({error})") from error
    return description, agent.eval(), step


def load_same_encoder(made_by: EncoderIdentity, name: str | None, *, where: str) -> FrozenSiglip2:
    """Load an encoder and refuse it unless its fingerprint is `made_by`'s.

    Args:
        made_by: the encoder of the features.
        name: hub repository, local folder or `stand-in`; None takes `made_by`'s own name.
        where: what holds the features, for the message.

    Raises:
        EncoderLoadError: the encoder cannot be loaded.
        EncoderMismatchError: it is another encoder.
    """
    if name is None and made_by.revision == "local":
        raise EncoderMismatchError(
            f"{where}: features come from the local folder {made_by.name}; name it with --backbone"
        )
    encoder = load_backbone(
        name or made_by.name,
        revision=made_by.revision if name is None and made_by.name != STAND_IN else None,
        compute_dtype=made_by.compute_dtype,
    )
    if encoder.identity.fingerprint != made_by.fingerprint:
        raise EncoderMismatchError(
            f"{where}: features come from {made_by.name} (fingerprint {made_by.fingerprint[:12]}), "
            f"{encoder.identity.name} is another encoder ({encoder.identity.fingerprint[:12]}); "
            f"name the right one with --backbone"
        )
    return encoder


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
                f"{env.name}: {field} is {found}, the policy was trained with {trained}; roll it "
                f"out in the environment of its recordings"
            )
