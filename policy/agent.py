"""The agent: features and state in, action chunks out; the owner of the conditioning contract.

The encoder is injected for live use alone; training never needs one. An action chunk starts at the
last observation step: `chunk[0]` is the action to take now, and the rollout executes
`chunk[0:num_action_steps]` before it plans again.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from policy.encoders.base import ImageEncoder
from policy.encoders.text import KnownInstructions
from policy.errors import AgentMismatchError
from policy.network.head import ActionHead, Condition, HeadConfig
from policy.network.normalizer import DataStatistics, Normalizer, Scaling
from policy.network.readers import (
    FeatureReader,
    InstructionReader,
    InstructionReaderConfig,
    ReaderConfig,
)
from policy.objectives.base import Batch, Chunks, Loss, Noise, bind
from policy.objectives.meanflow import ImprovedMeanFlowConfig
from policy.objectives.registry import ObjectiveConfig, build_objective
from policy.spec import INSTRUCTION, AgentSpec, FrozenModel

Features = Mapping[str, Tensor]
"""Named features of observation steps, each [b, t, v, *shape], as a store keeps them; and with
`agent.language`, `instruction` [b, d]."""


class AgentConfig(FrozenModel, allow_inf_nan=False):
    """Sizes of the trainable part of a policy, and its objective."""

    readers: dict[str, ReaderConfig] = Field(default={"pooled": ReaderConfig()}, min_length=1)
    """The cached features that the policy sees, by name, and how each becomes a vector per view."""
    language: InstructionReaderConfig | None = None
    """How the policy reads an instruction; None: it takes none."""
    cond_dim: int = Field(default=384, ge=1, le=8_192)
    """Width of the condition token of one observation step."""
    obs_horizon: int = Field(default=2, ge=1, le=4_096)
    """Observation steps the policy sees, the current one included."""
    num_action_steps: int = Field(default=8, ge=1)
    """Control steps executed before re-planning; at most `head.pred_horizon`."""
    state_scaling: Scaling = "range"
    """What is scaled to -1 and 1; `quantiles` where single readings are wild."""
    action_scaling: Scaling = "range"
    """The same of actions; predicted ones leave that range by a quarter of it at most, or with
    `deviation` the mean by five standard deviations."""
    head: HeadConfig = HeadConfig()
    """Size of the action head."""
    objective: ObjectiveConfig = ImprovedMeanFlowConfig()
    """What trains the head and samples from it; its `kind` decides which other fields it has."""

    @model_validator(mode="after")
    def _executed_steps_fit_in_the_prediction(self) -> "AgentConfig":
        if self.num_action_steps > self.head.pred_horizon:
            raise ValueError(
                f"num_action_steps: expected 1 to {self.head.pred_horizon} (head.pred_horizon), "
                f"found {self.num_action_steps}"
            )
        return self


class VLAAgent(nn.Module):
    """Reads cached or live features, builds the condition and drives the action head."""

    def __init__(
        self,
        config: AgentConfig,
        spec: AgentSpec,
        encoder: ImageEncoder | None = None,
        instructions: KnownInstructions | None = None,
    ):
        """Build an untrained agent; `encoder` and `instructions` are needed only for live use.

        MissingExtraError: the objective needs a library that is not installed.
        """
        super().__init__()
        self.config = config
        self.spec = spec
        self.encoder = encoder
        self.instructions = instructions
        widths = [reader.projection_dim for reader in config.readers.values()]
        views_width = spec.num_views * sum(widths)
        self.readers = nn.ModuleDict()
        for name, reader in config.readers.items():
            self.readers[name] = FeatureReader(reader, spec.num_views, spec.feature_shapes[name])
        self.state_normalizer = Normalizer(spec.state_dim, config.state_scaling)
        self.action_normalizer = Normalizer(spec.action_dim, config.action_scaling)
        self.cond_projector = nn.Linear(views_width + spec.state_dim, config.cond_dim)
        self.language = None
        if config.language is not None:
            self.language = InstructionReader(
                config.language, spec.instruction_dim, config.cond_dim, views_width
            )
        self.objective = build_objective(config.objective)
        self.head = ActionHead(
            config.head,
            cond_dim=config.cond_dim,
            num_cond_tokens=config.obs_horizon + (self.language is not None),
            action_dim=spec.action_dim,
            num_outputs=self.objective.num_outputs,
        )

    def fit_statistics(self, statistics: DataStatistics) -> None:
        """Take the scales of features, state and action from the training split."""
        for name, reader in self._readers():
            reader.standardizer.fit(statistics.feature_mean[name], statistics.feature_std[name])
        self.state_normalizer.fit(statistics.state)
        self.action_normalizer.fit(statistics.action)
        if self.language is not None and statistics.instructions is not None:
            self.language.fit(statistics.instructions)

    def encode_views(
        self, images: UInt8[np.ndarray, "t v 256 256 3"]
    ) -> dict[str, Float[Tensor, "t v ..."]]:
        """Encode every view of live steps, RGB in [0, 255], as the cached ones were.

        Returns every feature by name, float32 of float16 values, on the agent's device.

        Raises:
            AgentMismatchError: the agent was built without an encoder.
            ImageFormatError, FeatureRangeError: see `ImageEncoder.encode`.
        """
        if self.encoder is None:
            raise AgentMismatchError("this agent has no encoder; pass features instead of images")
        encoded = self.encoder.encode_views(images).items()
        return {name: torch.from_numpy(rows).float().to(self.device) for name, rows in encoded}

    def encode_instruction(self, instruction: str) -> dict[str, Float[Tensor, "1 d"]]:
        """Return an instruction's features, none without `language`; see `KnownInstructions`."""
        if self.language is None:
            return {}
        assert self.instructions is not None, "loaded together with `agent.language`"
        vector = torch.from_numpy(self.instructions.vector(instruction))
        return {INSTRUCTION: vector[None].to(self.device)}

    def _readers(self) -> Iterator[tuple[str, FeatureReader]]:
        for name, reader in self.readers.items():
            assert isinstance(reader, FeatureReader)
            yield name, reader

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.cond_projector.weight.device

    def compute_loss(
        self,
        features: Features,
        state: Float[Tensor, "b t s"],
        actions: Float[Tensor, "b horizon a"],
        valid: Bool[Tensor, "b horizon"],
        generator: Generator,
        *,
        teacher: "VLAAgent | None" = None,
    ) -> Loss:
        """Compute the training loss of a batch of windows.

        Args:
            features: of `obs_horizon` steps, the last one current.
            state: of the same steps, in the manifest's units.
            actions: from the current step on, in the manifest's units.
            valid: False where a chunk runs past its episode's end.
            generator: on the CPU; the only source of randomness.
            teacher: the averaged weights, the target network of an agent that `is_taught`; without
                one the agent is its own. Other agents ignore it.
        """
        condition = self._encode_condition(features, state)
        known = None
        if teacher is not None and self.is_taught:
            with torch.no_grad():
                known = bind(teacher.head, teacher._encode_condition(features, state))
        normalized = self.action_normalizer.normalize(actions)
        batch = Batch(normalized, valid, condition, generator, known)
        return self.objective.loss(self.head, batch)

    @property
    def is_taught(self) -> bool:
        """Whether its loss uses a target network."""
        return self.objective.is_taught

    @torch.no_grad()
    def predict(
        self,
        features: Features,
        state: Float[Tensor, "b t s"],
        noise: Noise,
        nfe: int | None = None,
    ) -> Chunks:
        """Return action chunks that start at the last observation step, in the manifest's units.

        Features and state as in `compute_loss`; the noise, from `noise` at the same NFE, decides
        which of the likely chunks is drawn. `nfe` and errors as in `evaluations`.
        """
        nfe = self.evaluations(nfe)
        cond = self._build_cond(features, state)
        # A single evaluation encodes the condition itself, which reads the weights once.
        condition = cond if nfe == 1 else self.head.encode_condition(cond)
        normalized = self.objective.sample(bind(self.head, condition), noise, nfe)
        return self.action_normalizer.unnormalize(normalized)

    def noise(self, batch_size: int, generator: Generator, nfe: int | None = None) -> Noise:
        """Draw the noise that `predict` needs at that NFE, on the CPU; errors as `evaluations`."""
        draws = self.objective.num_noise_draws(self.evaluations(nfe))
        horizon, width = self.config.head.pred_horizon, self.spec.action_dim
        return torch.randn(batch_size, draws, horizon, width, generator=generator)

    def evaluations(self, nfe: int | None) -> int:
        """Return a decision's number of function evaluations of the head.

        It is `nfe`, or the objective's default where that is None; AgentMismatchError: the
        objective cannot take it.
        """
        if nfe is None:
            return self.objective.default_evaluations
        self.objective.check_evaluations(nfe)
        return nfe

    def _encode_condition(self, features: Features, state: Float[Tensor, "b t s"]) -> Condition:
        return self.head.encode_condition(self._build_cond(features, state))

    def _build_cond(
        self, features: Features, state: Float[Tensor, "b t s"]
    ) -> Float[Tensor, "b tokens c"]:
        """Build one condition token per observation step, after that of an instruction.

        The readers' vectors of all views, feature by feature, then the state, are concatenated and
        projected. An instruction scales and shifts the former.
        """
        views = [reader(features[name]).flatten(start_dim=2) for name, reader in self._readers()]
        tokens: list[Tensor] = []
        if self.language is not None:
            token, modulated = self.language(features[INSTRUCTION], torch.cat(views, dim=-1))
            tokens, views = [token], [modulated]
        raw = torch.cat([*views, self.state_normalizer.normalize(state)], dim=-1)
        return torch.cat([*tokens, self.cond_projector(raw)], dim=1)

    def decay_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Split the parameters into matrices, which weight decay is for, and the others.

        Queries and gains of the depth mixer are lists of vectors: decay would pull every mixture
        towards the plain mean.
        """
        mixer = {id(parameter) for parameter in self.head.residuals.parameters()}
        decayed = [p for p in self.parameters() if p.ndim >= 2 and id(p) not in mixer]
        matrices = {id(parameter) for parameter in decayed}
        return decayed, [p for p in self.parameters() if id(p) not in matrices]
