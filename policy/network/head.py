"""The action head: a transformer over [t, h, noisy actions] that reads observation tokens.

Knows condition vectors, actions and time; nothing about cameras, robots, datasets or the objective
that trains it. The network predicts an average velocity u(z, t, h) of actions, with data at time 0
and noise at time 1. Observation tokens attend to each other only, so that their keys and values are
computed once and reused by every pass over the actions.

Source: the original design's head (RMSNorm, rotary positions, SwiGLU, query-key norm) on the trunk
of arXiv 2603.15031; time embedding as in arXiv 2512.02012, on raw times in [0, 1].
"""

from dataclasses import dataclass
from typing import Final, Literal, cast

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from policy.network import forward_mode
from policy.network.attention_residuals import DepthMixer, ResidualStream, ResidualSum
from policy.network.layers import HEAD_WIDTH, Block, TimeEmbedding, rms_normalize, rotary_table

NUM_TIME_TOKENS: Final = 2  # one for t and one for h


class HeadConfig(BaseModel):
    """Size and horizons of the action head."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    n_emb: int = Field(default=384, ge=HEAD_WIDTH, le=8_192)
    """Token width, a multiple of 64; compute grows with its square."""
    n_layer: int = Field(default=12, ge=1, le=256)
    """Transformer blocks, each an attention and an MLP sublayer."""
    pred_horizon: int = Field(default=16, ge=1, le=4_096)
    """Control steps predicted per call."""
    residuals: Literal["full", "block", "prenorm"] = "full"
    """Full or Block Attention Residuals, or the running sum of an ordinary pre-norm transformer."""
    residual_block_size: int = Field(default=4, ge=1)
    """Sublayers summed into one source where `residuals` is `block`."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Positions rotate queries and keys, or are vectors added to the tokens."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "HeadConfig":
        if self.n_emb % HEAD_WIDTH:
            raise ValueError(f"n_emb={self.n_emb}, want a multiple of {HEAD_WIDTH}")
        return self


@dataclass(frozen=True)
class Condition:
    """Keys and values of the observation tokens, a pair a block, each [b, heads, t, 64]."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]

    def detach(self) -> "Condition":
        """Return the same condition outside the gradient graph."""
        return Condition(tuple((key.detach(), value.detach()) for key, value in self.keys_values))

    def select(self, rows: slice) -> "Condition":
        """Return the condition of some batch rows."""
        return Condition(tuple((key[rows], value[rows]) for key, value in self.keys_values))


class ActionHead(nn.Module):
    """Predicts the average velocity of a noisy action chunk, given observation tokens."""

    rotations: Tensor | None
    may_see: Tensor

    def __init__(
        self,
        config: HeadConfig,
        *,
        cond_dim: int,
        num_cond_tokens: int,
        action_dim: int,
        num_outputs: int = 1,
    ):
        """Build a head that predicts `num_outputs` chunks of actions side by side."""
        super().__init__()
        width = config.n_emb
        self.num_cond_tokens = num_cond_tokens
        self.pred_horizon = config.pred_horizon
        self.action_dim = action_dim
        self.embed_cond = nn.Linear(cond_dim, width)
        self.embed_action = nn.Linear(action_dim, width)
        self.embed_t = TimeEmbedding(width)
        self.embed_h = TimeEmbedding(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(config.n_layer))
        self.residuals = build_residuals(config)
        self.predict = nn.Linear(width, num_outputs * action_dim)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)
        num_tokens = num_cond_tokens + NUM_TIME_TOKENS + config.pred_horizon
        is_rotary = config.positions == "rotary"
        self.register_buffer(
            "rotations", rotary_table(num_tokens) if is_rotary else None, persistent=False
        )
        self.positions = None if is_rotary else nn.Parameter(0.02 * torch.randn(num_tokens, width))
        may_see = torch.ones(num_tokens, num_tokens, dtype=torch.bool)
        may_see[:num_cond_tokens, num_cond_tokens:] = False
        self.register_buffer("may_see", may_see, persistent=False)

    def encode_condition(self, cond: Float[Tensor, "b t c"]) -> Condition:
        """Turn observation tokens into the keys and values that every later pass reads."""
        place = slice(0, self.num_cond_tokens)
        stream = self._open(self.embed_cond(cond), place)
        keys_values = []
        for depth, block in enumerate(self._blocks()):
            query, key, value = block.attention.project(stream.read(), self._rotations(place))
            keys_values.append((key, value))
            if depth + 1 < len(self.blocks):  # nobody reads the last block's output
                stream.append(block.attention.attend(query, key, value))
                stream.append(block.mlp(stream.read()))
        return Condition(tuple(keys_values))

    def forward(
        self,
        z: Float[Tensor, "b horizon a"],
        t: Float[Tensor, " b"],
        h: Float[Tensor, " b"],
        condition: Condition,
    ) -> Float[Tensor, "b horizon outputs"]:
        """Predict u(z, t, h), the velocity averaged over times [t - h, t].

        Args:
            z: noisy actions at time t, normalised.
            t: times in [0, 1]; 0 is data and 1 is noise.
            h: spans in [0, t]; 0 asks for the instantaneous velocity.
            condition: from `encode_condition`, same batch size.
        """
        place = slice(self.num_cond_tokens, None)
        stream = self._open(self._embed_actions(z, t, h), place)
        for block, (cond_key, cond_value) in zip(
            self._blocks(), condition.keys_values, strict=True
        ):
            query, key, value = block.attention.project(stream.read(), self._rotations(place))
            key = torch.cat([cond_key, key], dim=2)
            value = torch.cat([cond_value, value], dim=2)
            stream.append(block.attention.attend(query, key, value))
            stream.append(block.mlp(stream.read()))
        return self._predict(stream)

    def forward_once(
        self,
        z: Float[Tensor, "b horizon a"],
        t: Float[Tensor, " b"],
        h: Float[Tensor, " b"],
        cond: Float[Tensor, "b t c"],
    ) -> Float[Tensor, "b horizon outputs"]:
        """Predict what `forward` predicts, observation tokens and actions in the same pass.

        Where a condition is used once, this reads every weight once instead of twice; on a CPU the
        weights' memory traffic is most of a small batch's time.
        """
        place = slice(0, None)
        tokens = torch.cat([self.embed_cond(cond), self._embed_actions(z, t, h)], dim=1)
        stream = self._open(tokens, place)
        for block in self._blocks():
            query, key, value = block.attention.project(stream.read(), self._rotations(place))
            stream.append(block.attention.attend(query, key, value, self.may_see))
            stream.append(block.mlp(stream.read()))
        return self._predict(stream)

    @torch.no_grad()
    def derivative(
        self,
        z: Float[Tensor, "b horizon a"],
        t: Float[Tensor, " b"],
        h: Float[Tensor, " b"],
        condition: Condition,
        direction: Float[Tensor, "b horizon a"],
    ) -> Float[Tensor, "b horizon outputs"]:
        """Differentiate `forward` along (direction, 1, 1) in (z, t, h), without gradient.

        With r fixed and h = t - r, dh/dt = 1: h advances with t. Lower precision is kept out: in
        bfloat16 the derivative over close times rounds to zero and a loss that needs it silently
        becomes flow matching.

        Args:
            z: noisy actions at time t, normalised.
            t: times in [0, 1].
            h: spans in [0, t].
            condition: from `encode_condition`, same batch size; stays where it is.
            direction: dz/dt, the velocity along which to derive.
        """
        place = slice(self.num_cond_tokens, None)
        with torch.autocast(z.device.type, enabled=False):
            times = [
                forward_mode.embed_time(self.embed_t, t),
                forward_mode.embed_time(self.embed_h, h),
            ]
            actions = forward_mode.linear(self.embed_action, torch.stack([z, direction]))
            tokens = torch.cat([*times, actions], dim=2)
            if self.positions is not None:
                tokens[0] += self.positions[place]
            stream = forward_mode.open_stream(self.residuals, tokens)
            for block, keys_values in zip(self._blocks(), condition.keys_values, strict=True):
                rotations = self._rotations(place)
                stream.append(
                    forward_mode.attend(block.attention, stream.read(), rotations, keys_values)
                )
                stream.append(forward_mode.transform(block.mlp, stream.read()))
            last = forward_mode.normalize(stream.read()[:, :, -self.pred_horizon :])
            return forward_mode.linear(self.predict, last)[1]

    def _embed_actions(self, z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        return torch.cat([self.embed_t(t), self.embed_h(h), self.embed_action(z)], dim=1)

    def _open(self, tokens: Tensor, place: slice) -> ResidualStream:
        placed = tokens if self.positions is None else tokens + self.positions[place]
        return self.residuals.open(placed)

    def _predict(self, stream: ResidualStream) -> Tensor:
        predicted: Tensor = self.predict(rms_normalize(stream.read()[:, -self.pred_horizon :]))
        return predicted

    def _rotations(self, place: slice) -> Tensor | None:
        return None if self.rotations is None else self.rotations[:, place]

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))  # ModuleList forgets what it holds


def build_residuals(config: HeadConfig) -> DepthMixer | ResidualSum:
    """Build what carries sublayer outputs forward, as the configuration says."""
    if config.residuals == "prenorm":
        return ResidualSum()
    block_size = config.residual_block_size if config.residuals == "block" else 1
    return DepthMixer(config.n_emb, num_sublayers=2 * config.n_layer, block_size=block_size)
