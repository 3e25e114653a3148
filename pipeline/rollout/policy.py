"""A trained policy in Python: load a run, then request actions as from a served one."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED
from pipeline.rollout.gate.camera_check import CameraCheckMode
from pipeline.rollout.serve.config import ServeConfig
from pipeline.rollout.serve.request import PREFIX, PROMPT, RESET, STATE, Value
from pipeline.rollout.serve.session import ServedPolicy, Session


class Policy:
    """A policy that holds its encoder, and the episode that it is in; not safe for threads."""

    def __init__(self, policy: ServedPolicy):
        self._session = Session(policy)
        self._starts_episode = False
        self.views: tuple[str, ...] = policy.description.spec.view_names
        """Names of the cameras."""
        self.metadata = policy.metadata()
        """Widths, units, horizons and rate, as a server sends them to its clients."""

    @classmethod
    def load(
        cls,
        run: Path | str,
        *,
        encoder: str | None = None,
        device: str = "auto",
        checkpoint: str = "latest",
        nfe: int | None = None,
        seed: int = FIRST_ROLLOUT_SEED,
        camera_check: CameraCheckMode = "refuse",
        text_encoder: str | None = None,
    ) -> "Policy":
        """Load a run; see `ServeConfig` for the arguments, `ServedPolicy.load` for the errors."""
        config = ServeConfig(
            run=Path(run),
            encoder=encoder,
            device=device,
            checkpoint=checkpoint,
            nfe=nfe,
            first_seed=seed,
            camera_check=camera_check,
            text_encoder=text_encoder,
        )
        return cls(ServedPolicy.load(config))

    def reset(self) -> None:
        """Begin an episode with the next observation."""
        self._starts_episode = True

    def act(
        self, frames: Mapping[str, np.ndarray], state: np.ndarray, prompt: str | None = None
    ) -> Float32[np.ndarray, "n a"]:
        """Decide what to do next.

        Args:
            frames: per view, RGB in [0, 255], uint8 [height, width, 3] of any size; or the latest
                `obs_horizon` control steps, oldest first, [obs_horizon, height, width, 3]. A single
                step in the middle of an episode stands for those before it too.
            state: numbers [width], or [obs_horizon, width], in the dataset's units.
            prompt: what to do, for a policy with instructions; optional if training had one only.

        Returns:
            The actions to execute before the next call, the first one now, in the dataset's units.

        Raises:
            RequestError: frames or state are not what the policy takes, or its actions not finite.
            CameraMismatchError: an episode's first frames are not what training showed.
        """
        fields: dict[str, Value] = {f"{PREFIX}{view}": frame for view, frame in frames.items()}
        fields |= {STATE: np.asarray(state), RESET: self._starts_episode, PROMPT: prompt}
        actions = self._session.answer(fields).actions
        self._starts_episode = False
        return actions
