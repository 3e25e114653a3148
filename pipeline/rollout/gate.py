"""What must hold before a robot moves: the encoder, its features, the cameras and the widths.

Knows runs, encoders and environments; steps none. Every refusal names what differs.
"""

from pathlib import Path

from pipeline.errors import EnvError, RunError
from pipeline.features.encoder import load_same_encoder
from pipeline.features.probe import check_probe
from pipeline.rollout.envs.base import RobotEnv
from pipeline.training.checkpoint import read_average
from pipeline.training.run_folder import RunDescription, read_probe, read_run
from policy.agent import VLAAgent


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
        EncoderMismatchError: it is not the one that made the features, or gives the run's probe
            other features than it had.
    """
    description = read_run(run)
    probe = read_probe(run, description)
    step, weights = read_average(run)
    encoder = load_same_encoder(description.data.encoder, backbone, where=str(run))
    check_probe(encoder, probe, where=str(run))
    agent = VLAAgent(description.config.agent, description.spec, encoder)
    try:
        agent.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise RunError(f"{run}: checkpoint of another agent ({error})") from error
    return description, agent.eval(), step


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
