"""The action head: a transformer over [t, h, noisy actions] that reads observation tokens.

Knows condition vectors, actions and time; nothing about cameras, robots, datasets or the objective
that trains it. The network predicts an average velocity u(z, t, h) of actions, with data at time 0
and noise at time 1. Observation tokens attend to each other only, so that their keys and values are
computed once and reused by every pass over the actions.

Source: the original design's head (RMSNorm, rotary positions, SwiGLU, query-key norm) on the trunk
of arXiv 2603.15031; time embedding as in arXiv 2512.02012, on raw times in [0, 1].
"""

import math
from dataclasses import dataclass
from typing import Final, Literal, cast

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from policy.attention_residuals import (
    DepthMixer,
    ResidualStream,
    ResidualSum,
    inverse_root_mean_square,
)

HEAD_WIDTH: Final = 64  # features an attention head
ROPE_BASE: Final = 10_000.0  # dimensionless; arXiv 2104.09864, section 3.3
TIME_MAX_PERIOD: Final = 10_000.0  # in units of time; du/dt carries the embedding's frequency
TIME_FEATURES: Final = 128  # sines and cosines of a time
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

    def _blocks(self) -> list["Block"]:
        return cast(list[Block], list(self.blocks))  # ModuleList forgets what it holds


def build_residuals(config: HeadConfig) -> DepthMixer | ResidualSum:
    """Build what carries sublayer outputs forward, as the configuration says."""
    if config.residuals == "prenorm":
        return ResidualSum()
    block_size = config.residual_block_size if config.residuals == "block" else 1
    return DepthMixer(config.n_emb, num_sublayers=2 * config.n_layer, block_size=block_size)


class Block(nn.Module):
    """One attention and one MLP sublayer; the depth mixture replaces the skip connections."""

    def __init__(self, width: int):
        super().__init__()
        self.attention = Attention(width)
        self.mlp = SwiGlu(width)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys and rotary positions."""

    def __init__(self, width: int):
        super().__init__()
        self.num_heads = width // HEAD_WIDTH
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_gain = nn.Parameter(torch.ones(HEAD_WIDTH))  # one gain scales every logit
        self.out = nn.Linear(width, width, bias=False)

    def project(
        self, x: Float[Tensor, "b t d"], rotations: Float[Tensor, "2 t 32"] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys, rotated if asked, and values, each [b, heads, t, 64]."""
        heads = self.qkv(rms_normalize(x)).unflatten(-1, (3, self.num_heads, HEAD_WIDTH))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        query, key = rms_normalize(query) * self.query_gain, rms_normalize(key)
        if rotations is not None:
            query, key = rotate(query, rotations), rotate(key, rotations)
        return query, key, value

    def attend(
        self,
        query: Float[Tensor, "b n q 64"],
        key: Float[Tensor, "b n k 64"],
        value: Float[Tensor, "b n k 64"],
        may_see: Bool[Tensor, "q k"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Mix values by softmax over keys, those that a query may see if that is said.

        Written out because torch's fused kernels have no forward-mode derivative
        (pytorch#165530, #154226), and both passes must be one function.
        """
        scores = (query @ key.transpose(-1, -2)) * HEAD_WIDTH**-0.5
        if may_see is not None:
            scores = scores.masked_fill(~may_see, -torch.inf)
        mixed = scores.softmax(dim=-1) @ value
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(start_dim=2))
        return attended


class SwiGlu(nn.Module):
    """Pre-normalised gated MLP, 8/3 of the width inside; arXiv 2002.05202."""

    def __init__(self, width: int):
        super().__init__()
        inner = math.ceil(width * 8 / 3 / HEAD_WIDTH) * HEAD_WIDTH
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Transform every token on its own."""
        gate, up = self.gate_up(rms_normalize(x)).chunk(2, dim=-1)
        transformed: Tensor = self.down(nn.functional.silu(gate) * up)
        return transformed


class TimeEmbedding(nn.Module):
    """One token from a time in [0, 1], by sines of the raw value.

    Multiplying the time (by 1000, as image diffusion does) would multiply du/dt and drown the loss.
    """

    frequencies: Tensor

    def __init__(self, width: int):
        super().__init__()
        exponents = torch.arange(TIME_FEATURES // 2) / (TIME_FEATURES // 2)
        self.register_buffer("frequencies", TIME_MAX_PERIOD**-exponents, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, time: Float[Tensor, " b"]) -> Float[Tensor, "b 1 d"]:
        """Embed one time a batch row as one token."""
        angles = time[:, None, None] * self.frequencies
        token: Tensor = self.layers(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return token


def rms_normalize(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Scale to root mean square 1, without a gain: the matrix that follows would absorb it."""
    return x * inverse_root_mean_square(x)


def rotary_table(num_tokens: int) -> Float[Tensor, "2 t 32"]:
    """Return cosines and sines of the rotary angles of positions 0..num_tokens-1."""
    half = HEAD_WIDTH // 2
    angles = torch.outer(torch.arange(num_tokens), ROPE_BASE ** -(torch.arange(half) / half))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Float[Tensor, "b n t 64"], rotations: Float[Tensor, "2 t 32"]) -> Tensor:
    """Rotate pairs of features by their token's position; arXiv 2104.09864, eq. 34."""
    cosine, sine = rotations
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
