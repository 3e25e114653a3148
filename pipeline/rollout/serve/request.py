"""What a robot may send: one observation, or the latest few, checked before the policy sees it.

The keys are flat, as in openpi's examples: `observation/<view>` for each view of the training, and
`observation/state`.

Source: Physical-Intelligence/openpi@0e61745e, docs/remote_inference.md, for the form of the keys.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Float32, UInt8

from pipeline.errors import ConfigError, RequestError
from policy.images import resize_images
from policy.spec import AgentSpec, Fit

Value: TypeAlias = object
"""What a key of a message holds; nothing is known of it before `RequestReader` has checked it."""

PREFIX: Final = "observation/"
STATE: Final = f"{PREFIX}state"
RESET: Final = "reset"
PROMPT: Final = "prompt"


@dataclass(frozen=True)
class Request:
    """One request: the observation steps it brings, oldest first, the current one last."""

    frames: UInt8[np.ndarray, "t v 256 256 3"]
    """RGB in [0, 255]; t is 1 or `obs_horizon`."""
    state: Float32[np.ndarray, "t s"]
    """In the units of the manifest."""
    starts_episode: bool
    """The client requests a new episode, of which this is the first observation."""
    instruction: str
    """What to do, in words; empty for a policy without instructions."""


@dataclass(frozen=True)
class RequestReader:
    """Turns decoded messages into requests that fit one policy."""

    spec: AgentSpec
    obs_horizon: int
    fit: Fit = "stretch"
    """How images that are not square become square, as in training."""
    instructions: tuple[str, ...] = ()
    """Those of the training; empty for a policy without them."""

    def __post_init__(self) -> None:
        if STATE in self._frame_keys:
            raise ConfigError(
                "view state: expected another name, since clients send the robot's state by it; "
                "rename the view in the manifest and train again"
            )

    @property
    def _frame_keys(self) -> list[str]:
        return [f"{PREFIX}{view}" for view in self.spec.view_names]

    def read(self, fields: Mapping[Any, Value]) -> Request:
        """Check a decoded message and bring its frames to 256x256.

        Raises:
            RequestError: keys are missing or unknown, or a value has another type or shape.
        """
        self._check_keys(fields)
        state = self._state(fields[STATE])
        lead = state.shape[:-1]
        views = [self._frames(key, fields[key], lead) for key in self._frame_keys]
        reset = fields.get(RESET, False)
        if not isinstance(reset, bool):
            raise RequestError(f"{RESET}: expected true or false, found {clipped(reset)}")
        return Request(
            frames=np.stack(views, axis=1),
            state=state.reshape(-1, self.spec.state_dim),
            starts_episode=reset,
            instruction=self._instruction(fields.get(PROMPT)),
        )

    def _instruction(self, prompt: Value) -> str:
        if not self.instructions:
            return ""
        if prompt is None and len(self.instructions) == 1:
            return self.instructions[0]
        if not isinstance(prompt, str):
            raise RequestError(
                f"{PROMPT}: expected what to do in words, such as {self.instructions[0]!r}, found "
                f"{_described(prompt)}"
            )
        return prompt

    def _check_keys(self, fields: Mapping[Any, Value]) -> None:
        needed = [*self._frame_keys, STATE]
        missing = [key for key in needed if key not in fields]
        unknown = [clipped(key) for key in fields if key not in {*needed, RESET, PROMPT}]
        if missing or unknown:
            raise RequestError(
                f"observation: expected the keys {', '.join(needed)} and perhaps {RESET}, "
                f"{PROMPT}; missing: {', '.join(missing) or 'none'}; unknown: "
                f"{', '.join(unknown[:8]) or 'none'}"
            )

    def _state(self, content: Value) -> np.ndarray:
        """Return float32 [s] or [obs_horizon, s]."""
        horizon, width = self.obs_horizon, self.spec.state_dim
        if (
            not isinstance(content, np.ndarray)
            or content.dtype.kind not in "fiu"
            or content.shape not in {(width,), (horizon, width)}
        ):
            raise RequestError(
                f"{STATE}: expected numbers of shape [{width}] or [{horizon}, {width}], found "
                f"{_described(content)}"
            )
        with np.errstate(over="ignore"):
            state = content.astype(np.float32)
        if not np.isfinite(state).all():
            raise RequestError(f"{STATE}: expected finite float32 numbers, found others")
        return state

    def _frames(self, key: str, content: Value, lead: tuple[int, ...]) -> np.ndarray:
        """Return uint8 [t, 256, 256, 3]; `lead` is () or (obs_horizon,), as the state has it."""
        if (
            not isinstance(content, np.ndarray)
            or content.dtype != np.uint8
            or content.ndim != len(lead) + 3
            or content.shape[: len(lead)] != lead
            or content.shape[-1] != 3
            or not content.size
        ):
            steps = "".join(f"{length}, " for length in lead)
            raise RequestError(
                f"{key}: expected uint8 [{steps}height, width, 3] with a {STATE} of "
                f"[{steps}{self.spec.state_dim}], found {_described(content)}"
            )
        return resize_images(content.reshape(-1, *content.shape[-3:]), self.fit)


def clipped(content: object) -> str:
    """Return a stranger's text as one short line, for a message to a person."""
    text = content if isinstance(content, str) else reprlib.repr(content)
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[:80])
    return f"{printable}..." if len(text) > 80 else printable


def _described(content: Value) -> str:
    if isinstance(content, np.ndarray):
        return f"{content.dtype.name} {list(content.shape)}"
    return f"{type(content).__name__} {clipped(content)}"
