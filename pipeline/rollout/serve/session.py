"""A served policy, and the episode that one client plays with it.

Not safe for threads: the server answers from one.

**Together.** Requests of several sessions are answered together: their images share the encoder's
passes, and the head evaluates them as one batch. A pass has the same shape however many there are,
so features are the same bits as alone. Each session draws its own noise, so actions are the same as
alone up to the rounding of float32: the last bits of a product depend on its number of rows.

**History.** A policy of `obs_horizon` 2 was trained on consecutive control steps, and most clients
send one observation for a whole chunk of actions. So a request brings either all its observation
steps, which is exact, or one. One is exact at the episode's start, where training repeats the first
step too, and where the client counts its control steps in `step` and sends every one, so that this
session has seen the steps before. Otherwise the oldest known step is repeated, and the reply's
`history` is `repeated` instead of `exact`.

**Noise.** A connection's episode number e, from 0, draws the noise that `vla-rollout` draws for the
seed `first_seed + e`: the same observations get the same actions, bit for bit if answered alone.

**Cameras.** The first observation of an episode is compared with the training's; one that does not
match is refused before any action, or logged. There is no comparison for a client that counts its
steps and joins in the middle of an episode.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from pipeline.errors import RequestError
from pipeline.rollout.gate.camera_check import CameraCheck, CameraCheckMode
from pipeline.rollout.gate.checks import load_policy
from pipeline.rollout.serve.config import ServeConfig
from pipeline.rollout.serve.request import Request, RequestReader, Value
from pipeline.training.data.sampling import seeded_generator
from pipeline.training.run.folder import RunDescription
from pipeline.training.run.model_card import NOT_STATED
from policy.agent import VLAAgent
from policy.objectives.base import Noise

History = Literal["exact", "repeated"]

_HISTORY: Final = (
    "exact where a request brings obs_horizon steps, oldest first, where every control step is "
    "sent alone with `step`, and at an episode's start; else steps that were not sent are replaced "
    "by the oldest known one, and the reply's `history` is `repeated`"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedPolicy:
    """A loaded policy and how actions are drawn from it; shared by all sessions."""

    description: RunDescription
    """The run it comes from."""
    agent: VLAAgent
    """Holds its encoder, ready to predict."""
    reader: RequestReader
    """Checks requests for this policy."""
    checkpoint_step: int
    """Optimizer steps behind the averaged weights."""
    nfe: int
    """Number of function evaluations per decision."""
    first_seed: int
    """Decides the noise of each connection's first episode."""
    cameras: CameraCheck | None
    """Compares an episode's first frames with the training's; None compares nothing."""
    camera_check: CameraCheckMode
    """What to do where they do not match."""

    @classmethod
    def load(cls, config: ServeConfig) -> "ServedPolicy":
        """Load a run; its encoder must be the one of its training.

        Raises:
            RunError, EncoderLoadError, EncoderMismatchError: as in `load_policy`.
            AgentMismatchError: the objective cannot take that NFE.
            ConfigError: a view's name cannot be served.
        """
        description, agent, step = load_policy(config)
        is_checked = config.camera_check != "off"
        return cls(
            description=description,
            agent=agent,
            reader=RequestReader(
                description.spec,
                agent.config.obs_horizon,
                description.data.fit,
                description.data.instructions,
            ),
            checkpoint_step=step,
            nfe=agent.evaluations(config.nfe),
            first_seed=config.first_seed,
            cameras=CameraCheck.from_run(config.run, description) if is_checked else None,
            camera_check=config.camera_check,
        )

    def metadata(self) -> dict[str, Any]:
        """Return what a client must know, as the server sends it before anything else."""
        spec, data = self.description.spec, self.description.data
        manifest = data.stores[0].manifest
        return {
            "policy": "frozen-vla",
            "dataset": data.name,
            "checkpoint_step": self.checkpoint_step,
            "encoder": data.encoder.model_dump(mode="json"),
            "views": list(spec.view_names),
            "state_dim": spec.state_dim,
            "state_units": manifest.get("state", {}).get("units", NOT_STATED),
            "action_dim": spec.action_dim,
            "action_units": manifest.get("action", {}).get("units", NOT_STATED),
            "fps": data.fps,
            "obs_horizon": self.agent.config.obs_horizon,
            "num_action_steps": self.agent.config.num_action_steps,
            "nfe": self.nfe,
            "observation": self.reader.expected(),
            "history": _HISTORY,
            "instructions": list(data.instructions),
        }


@dataclass(frozen=True)
class _Seen:
    """One observation step, encoded once."""

    features: dict[str, Tensor]
    """float32 [v, ...] by name; of float16 values, as a store keeps them."""
    state: Tensor
    """float32 [s]."""


@dataclass(frozen=True)
class Decision:
    """The answer to one request."""

    actions: Float32[np.ndarray, "n a"]
    """`num_action_steps` actions in the manifest's units, the first for the observation's step."""
    history: History
    """Whether the policy saw the steps that training would have shown it."""
    instruction: Literal["known", "unseen"] | None
    """Whether training had the instruction; None for a policy without instructions."""
    timing: dict[str, float]
    """Milliseconds from the message to the actions, of the encoder, and of the head."""

    def reply(self, **timing: float) -> dict[str, object]:
        """Return the reply; its only array is `actions`, because openpi's broker slices arrays.

        Args:
            timing: further entries of `server_timing`, in milliseconds.
        """
        timing = self.timing | timing
        language = {} if self.instruction is None else {"instruction": self.instruction}
        return {
            "actions": self.actions,
            "history": self.history,
            **language,
            "server_timing": timing,
        }


class Session:
    """One connection: its episodes, its decisions and the steps it has seen."""

    def __init__(self, policy: ServedPolicy):
        """Begin the connection's first episode."""
        self._policy = policy
        self._episode = 0
        self._has_warned = False
        self._seen: deque[_Seen] = deque(maxlen=policy.agent.config.obs_horizon)
        self._begin_episode()

    def answer(self, fields: Mapping[str, Value]) -> Decision:
        """Decide on one message, which is decoded already.

        Raises:
            RequestError: it is not an observation of this policy, or the actions are not
                finite.
            CameraMismatchError: an episode's first frames are not what training showed.
            EncoderLoadError, EncoderMismatchError: see `KnownInstructions.vector`.
            FeatureRangeError: the encoder's features of these frames are not finite.
        """
        turn = Turn(self, fields)
        answer_together(self._policy, [turn])
        return turn.answered.result()

    def read(self, turn: "Turn") -> None:
        """Check a message, and begin the episode that it starts: before the images are encoded."""
        request = self._policy.reader.read(turn.fields)
        if request.starts_episode and self._decision > 0:
            self._episode += 1
            self._begin_episode()
        cameras = self._policy.cameras
        if cameras is not None and self._decision == 0 and not request.step:
            cameras.admit(request.frames[-1], self._policy.camera_check)
        turn.request = request

    def prepare(self, turn: "Turn") -> None:
        """Build the head's inputs from the encoded steps, and those before; draw the noise."""
        agent, nfe = self._policy.agent, self._policy.nfe
        states = torch.from_numpy(turn.request.state).to(agent.device)
        current = [
            # Copied: a slice would keep the features of all sessions in memory.
            _Seen({name: rows[step].clone() for name, rows in turn.encoded.items()}, state)
            for step, state in enumerate(states)
        ]
        steps, turn.history = self._with_history(current, turn.request.step)
        turn.features = {
            name: torch.stack([seen.features[name] for seen in steps])[None]
            for name in turn.encoded
        }
        turn.features |= agent.encode_instruction(turn.request.instruction)
        turn.state = torch.stack([seen.state for seen in steps])[None]
        draw = seeded_generator(self._policy.first_seed + self._episode, "decision", self._decision)
        turn.noise = agent.noise(1, draw, nfe).to(agent.device)

    def conclude(self, turn: "Turn", timing: dict[str, float]) -> None:
        """Answer with the chunk of the head."""
        if not np.isfinite(turn.chunk).all():
            raise RequestError(
                "actions: expected finite numbers, found others; the policy has diverged, train "
                "it again"
            )
        self._decision += 1
        if turn.history == "repeated" and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a client sends single observations, but the policy was trained with a history; "
                "send "
                "%d observation steps per request, or each control step with `step`",
                self._policy.agent.config.obs_horizon,
            )
        known = self._knows(turn.request.instruction)
        turn.answered.set_result(Decision(turn.chunk, turn.history, known, timing))

    def _begin_episode(self) -> None:
        self._decision = 0
        self._last_step: int | None = None
        self._seen.clear()

    def _knows(self, instruction: str) -> Literal["known", "unseen"] | None:
        instructions = self._policy.agent.instructions
        if instructions is None:
            return None
        return "known" if instructions.knows(instruction) else "unseen"

    def _with_history(self, current: list[_Seen], step: int | None) -> tuple[list[_Seen], History]:
        """Return `obs_horizon` steps that end with the current one, and whether all are real."""
        obs_horizon = self._policy.agent.config.obs_horizon
        if step is None:
            known, is_start = current, self._decision == 0
            self._seen.clear()
        else:
            if self._last_step is not None and step <= self._last_step:
                raise RequestError(
                    f"step: expected more than {self._last_step}, found {step}; a new episode "
                    "begins with `reset`: true"
                )
            if self._last_step != step - 1:
                self._seen.clear()
            self._seen.extend(current)
            known, is_start = list(self._seen), step < len(self._seen)
        self._last_step = step
        missing = obs_horizon - len(known)
        history: History = "exact" if missing == 0 or is_start else "repeated"
        return [known[0]] * missing + known, history


@dataclass
class Turn:
    """One session's request on its way to a decision; each stage adds fields below `answered`."""

    session: Session
    fields: Mapping[str, Value]
    """The decoded message."""
    answered: Future[Decision] = field(default_factory=Future)
    """The decision, or the error that takes its place."""
    request: Request = field(init=False)
    encoded: dict[str, Tensor] = field(init=False)
    """float32 [t, v, ...] by name, of the request's steps."""
    features: dict[str, Tensor] = field(init=False)
    """A batch of one for the head, as `state` and `noise`."""
    state: Tensor = field(init=False)
    noise: Noise = field(init=False)
    history: History = field(init=False)
    chunk: Float32[np.ndarray, "n a"] = field(init=False)


def answer_together(policy: ServedPolicy, turns: list[Turn]) -> None:
    """Decide on one request each of several sessions; errors as `Session.answer`, each its own.

    Args:
        policy: of these sessions.
        turns: their `answered` gets a result or an exception, none of which is raised.
    """
    started = time.perf_counter()
    _attempt_each(lambda turn: turn.session.read(turn), turns)
    encoding = time.perf_counter()
    _attempt(lambda unanswered: _encode(policy, unanswered), turns)
    _attempt_each(lambda turn: turn.session.prepare(turn), turns)
    encoded = time.perf_counter()
    _attempt(lambda unanswered: _predict(policy, unanswered), turns)
    ended = time.perf_counter()
    timing = {
        "infer_ms": 1e3 * (ended - started),
        "encode_ms": 1e3 * (encoded - encoding),
        "head_ms": 1e3 * (ended - encoded),
    }
    _attempt_each(lambda turn: turn.session.conclude(turn, timing), turns)


def _attempt(stage: Callable[[list[Turn]], None], turns: list[Turn]) -> None:
    """Run a stage for all turns without an error; where that fails, for each alone."""
    turns = [turn for turn in turns if not turn.answered.done()]
    if not turns:
        return
    try:
        stage(turns)
    except Exception as error:  # noqa: BLE001 - raised again where the decision is awaited
        if len(turns) == 1:
            turns[0].answered.set_exception(error)
        else:
            _attempt_each(lambda turn: stage([turn]), turns)


def _attempt_each(stage: Callable[[Turn], None], turns: list[Turn]) -> None:
    for turn in turns:
        _attempt(lambda alone: stage(alone[0]), [turn])


def _encode(policy: ServedPolicy, turns: list[Turn]) -> None:
    frames = [turn.request.frames for turn in turns]
    encoded = policy.agent.encode_views(np.concatenate(frames))
    shares = {
        name: torch.split(rows, [len(own) for own in frames]) for name, rows in encoded.items()
    }
    for index, turn in enumerate(turns):
        turn.encoded = {name: rows[index] for name, rows in shares.items()}


def _predict(policy: ServedPolicy, turns: list[Turn]) -> None:
    names = turns[0].features
    features = {name: torch.cat([turn.features[name] for turn in turns]) for name in names}
    state = torch.cat([turn.state for turn in turns])
    noise = torch.cat([turn.noise for turn in turns])
    chunks = policy.agent.predict(features, state, noise, policy.nfe).cpu().numpy()
    for turn, chunk in zip(turns, chunks, strict=True):
        turn.chunk = chunk[: policy.agent.config.num_action_steps]
