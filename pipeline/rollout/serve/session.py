"""A served policy, and the episode that one client plays with it; not safe for threads.

**Together.** Images of several requests share the encoder's passes, and the head evaluates them as
one batch. A pass has the same shape however many there are, so features are the same bits as alone.
Each session draws its own noise, so actions are those of a session alone up to the rounding of
float32: the last bits of a product depend on its number of rows.

**History.** A policy of `obs_horizon` 2 was trained on consecutive control steps, and most clients
send one observation for a whole chunk of actions. So a request brings either all its observation
steps, which is exact, or one, which is repeated: exact at the episode's start, where training
repeats the first step too; otherwise the reply's `history` is `repeated` instead of `exact`.

**Noise.** A connection's episode number e, from 0, draws the noise that `vla-rollout` draws for the
seed `first_seed + e`: the same observations get the same actions, bit for bit if answered alone.

**Cameras.** The first observation of an episode is compared with the training's; one that does not
match is refused before any action, or logged.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

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
from pipeline.training.run.model_card import run_fields
from policy.agent import VLAAgent
from policy.objectives.base import Noise

History = Literal["exact", "repeated"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedPolicy:
    """A loaded policy and how actions are drawn from it; shared by all sessions."""

    description: RunDescription
    agent: VLAAgent
    """Holds its encoder, ready to predict."""
    reader: RequestReader
    checkpoint_step: int
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

        Errors as `load_policy` and `CameraCheck.from_run`; AgentMismatchError of the NFE;
        ConfigError of a view `state`.
        """
        description, agent, step = load_policy(config)
        data, is_checked = description.data, config.camera_check != "off"
        return cls(
            description=description,
            agent=agent,
            reader=RequestReader(
                description.spec, agent.config.obs_horizon, data.fit, data.instructions
            ),
            checkpoint_step=step,
            nfe=agent.evaluations(config.nfe),
            first_seed=config.first_seed,
            cameras=CameraCheck.from_run(config.run, description) if is_checked else None,
            camera_check=config.camera_check,
        )

    def metadata(self) -> dict[str, Any]:
        """Return what a client must know, as the server sends it before anything else."""
        data = self.description.data
        return {
            **run_fields(self.description),
            "policy": "frozen-vla",
            "checkpoint_step": self.checkpoint_step,
            "encoder": data.encoder.model_dump(mode="json"),
            "views": list(self.description.spec.view_names),
            "obs_horizon": self.agent.config.obs_horizon,
            "num_action_steps": self.agent.config.num_action_steps,
            "nfe": self.nfe,
            "instructions": list(data.instructions),
        }


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

    def reply(self) -> dict[str, object]:
        """Return the reply; its only array is `actions`, because openpi's broker slices arrays."""
        language = {} if self.instruction is None else {"instruction": self.instruction}
        timing = {"server_timing": self.timing}
        return {"actions": self.actions, "history": self.history, **language, **timing}


class Session:
    """One connection: its episodes, its decisions and the steps it has seen."""

    def __init__(self, policy: ServedPolicy):
        """Begin the connection's first episode."""
        self._policy = policy
        self._episode = self._decision = 0
        self._has_warned = False

    def answer(self, fields: Mapping[Any, Value]) -> Decision:
        """Decide on one message, which is decoded already.

        Raises:
            RequestError: it is not an observation of this policy, or the actions are not finite.
            CameraMismatchError: an episode's first frames are not what training showed.
            EncoderLoadError, EncoderMismatchError: see `KnownInstructions.vector`.
            FeatureRangeError: the encoder's features of these frames are not finite.
        """
        turn = Turn(self, fields)
        answer_together(self._policy, [turn])
        return turn.answered.result()

    def read(self, turn: "Turn") -> None:
        """Check a message, and begin the episode that it starts: before the images are encoded."""
        turn.request = self._policy.reader.read(turn.fields)
        turn.words = self._policy.agent.encode_instruction(turn.request.instruction)
        if turn.request.starts_episode and self._decision > 0:
            self._episode, self._decision = self._episode + 1, 0
        if self._policy.cameras is not None and self._decision == 0:
            self._policy.cameras.admit(turn.request.frames[-1], self._policy.camera_check)

    def prepare(self, turn: "Turn", encoded: dict[str, Tensor]) -> None:
        """Build the head's inputs from the encoded steps, and draw the noise."""
        agent, state = self._policy.agent, torch.from_numpy(turn.request.state)
        missing = agent.config.obs_horizon - len(state)
        turn.history = "repeated" if missing and self._decision else "exact"

        def padded(steps: Tensor) -> Tensor:
            return torch.cat([steps[:1]] * missing + [steps])[None]

        turn.state = padded(state.to(agent.device))
        turn.features = {name: padded(rows) for name, rows in encoded.items()}
        turn.features |= turn.words
        draw = seeded_generator(self._policy.first_seed + self._episode, "decision", self._decision)
        turn.noise = agent.noise(1, draw, self._policy.nfe).to(agent.device)

    def conclude(
        self, turn: "Turn", actions: Float32[np.ndarray, "n a"], timing: dict[str, float]
    ) -> None:
        """Answer with the actions of the head."""
        if not np.isfinite(actions).all():
            raise RequestError(
                "actions: expected finite numbers, found others; the policy has diverged, train "
                "it again"
            )
        agent = self._policy.agent
        self._decision += 1
        if turn.history == "repeated" and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a client sends single observations, but the policy was trained with a history; "
                "send %d observation steps per request",
                agent.config.obs_horizon,
            )
        instruction: Literal["known", "unseen"] | None = None
        if agent.instructions is not None:
            is_known = agent.instructions.knows(turn.request.instruction)
            instruction = "known" if is_known else "unseen"
        turn.answered.set_result(Decision(actions, turn.history, instruction, timing))


@dataclass
class Turn:
    """One session's request on its way to a decision; each stage adds fields below `answered`."""

    session: Session
    fields: Mapping[Any, Value]
    """The decoded message."""
    answered: Future[Decision] = field(default_factory=Future)
    """The decision, or the error that takes its place."""
    request: Request = field(init=False)
    words: dict[str, Tensor] = field(init=False)
    """Features of the instruction, if the policy takes one."""
    history: History = field(init=False)
    features: dict[str, Tensor] = field(init=False)
    """A batch of one for the head, as `state` and `noise`."""
    state: Tensor = field(init=False)
    noise: Noise = field(init=False)


def answer_together(policy: ServedPolicy, turns: list[Turn]) -> None:
    """Set what `answered` of several sessions' turns holds: a decision, or an error of its own."""
    started = time.perf_counter()
    for turn in turns:
        _attempt(lambda alone: alone[0].session.read(alone[0]), [turn])
    _attempt(lambda unanswered: _decide(policy, unanswered, started), turns)


def _attempt(stage: Callable[[list[Turn]], None], turns: list[Turn]) -> None:
    """Run a stage for all turns without an answer; where that fails, for each alone."""
    turns = [turn for turn in turns if not turn.answered.done()]
    if not turns:
        return
    try:
        stage(turns)
    except Exception as error:  # noqa: BLE001 - raised again where the decision is awaited
        if len(turns) == 1:
            turns[0].answered.set_exception(error)
        else:
            for turn in turns:
                _attempt(stage, [turn])


def _decide(policy: ServedPolicy, turns: list[Turn], started: float) -> None:
    """Encode all images, evaluate the head once, and answer; sessions change with the answer."""
    agent, frames = policy.agent, [turn.request.frames for turn in turns]
    encoding = time.perf_counter()
    encoded = agent.encode_views(np.concatenate(frames))
    sizes = [len(own) for own in frames]
    shares = {name: torch.split(rows, sizes) for name, rows in encoded.items()}
    for index, turn in enumerate(turns):
        turn.session.prepare(turn, {name: rows[index] for name, rows in shares.items()})
    deciding = time.perf_counter()
    features = {
        name: torch.cat([turn.features[name] for turn in turns]) for name in turns[0].features
    }
    state = torch.cat([turn.state for turn in turns])
    noise = torch.cat([turn.noise for turn in turns])
    chunks = agent.predict(features, state, noise, policy.nfe).cpu().numpy()
    ended = time.perf_counter()
    timing = {
        "infer_ms": 1e3 * (ended - started),
        "encode_ms": 1e3 * (deciding - encoding),
        "head_ms": 1e3 * (ended - deciding),
    }
    for turn, chunk in zip(turns, chunks, strict=True):
        turn.session.conclude(turn, chunk[: agent.config.num_action_steps], timing)
