"""The layers of the action head: attention, gated MLP, time embedding and rotary positions.

Source: RMSNorm, rotary positions, SwiGLU and query-key norm as the original design's head has them.
"""

import math
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from policy.network.attention_residuals import inverse_root_mean_square

HEAD_WIDTH: Final = 64  # features per attention head
ROPE_BASE: Final = 10_000.0  # dimensionless; arXiv 2104.09864, section 3.3
TIME_MAX_PERIOD: Final = 10_000.0  # in units of time; du/dt carries the embedding's frequency
TIME_FEATURES: Final = 128  # sines and cosines of a time


class Block(nn.Module):
    """One attention and one MLP sublayer; the depth mixture replaces the skip connections."""

    def __init__(self, width: int):
        super().__init__()
        self.attention = Attention(width)
        self.mlp = SwiGlu(width)


class Attention(nn.Module):
    """Multi-head attention with normalized queries and keys and rotary positions."""

    def __init__(self, width: int):
        super().__init__()
        self.num_heads = width // HEAD_WIDTH
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_gain = nn.Parameter(torch.ones(HEAD_WIDTH))  # one gain scales every logit
        self.out = nn.Linear(width, width, bias=False)

    def project(
        self, x: Float[Tensor, "b t d"], rotations: Float[Tensor, "2 t 32"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys, rotated by position, and values: [b, heads, t, 64]."""
        query, key, value = self.split_heads(self.qkv(rms_normalize(x)))
        query, key = rms_normalize(query) * self.query_gain, rms_normalize(key)
        return rotate(query, rotations), rotate(key, rotations), value

    def split_heads(self, projected: Float[Tensor, "*b t qkv"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [*b, heads, t, 64]."""
        heads = projected.reshape(*projected.shape[:-1], 3, self.num_heads, HEAD_WIDTH)
        query, key, value = heads.movedim(-3, 0).transpose(-2, -3).unbind()
        return query, key, value

    def attend(
        self,
        query: Float[Tensor, "b n q 64"],
        key: Float[Tensor, "b n k 64"],
        value: Float[Tensor, "b n k 64"],
        may_see: Bool[Tensor, "q k"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Mix values by softmax over keys; `may_see` masks the keys of each query.

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
    """Pre-normalized gated MLP, 8/3 of the width inside; arXiv 2002.05202."""

    def __init__(self, width: int):
        super().__init__()
        inner = math.ceil(width * 8 / 3 / HEAD_WIDTH) * HEAD_WIDTH
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
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
        self.inner = nn.Linear(TIME_FEATURES, width)
        self.outer = nn.Linear(width, width)

    def forward(self, time: Float[Tensor, " b"]) -> Float[Tensor, "b 1 d"]:
        angles = time[:, None, None] * self.frequencies
        hidden = self.inner(torch.cat([angles.cos(), angles.sin()], dim=-1))
        token: Tensor = self.outer(nn.functional.silu(hidden))
        return token


def rms_normalize(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Scale to root mean square 1, without a gain: the matrix that follows would absorb it."""
    return x * inverse_root_mean_square(x)


def rotary_table(num_tokens: int) -> Float[Tensor, "2 t 32"]:
    """Return cosines and sines of the rotary angles of positions 0..num_tokens-1."""
    half = HEAD_WIDTH // 2
    angles = torch.outer(torch.arange(num_tokens), ROPE_BASE ** -(torch.arange(half) / half))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Float[Tensor, "*b n t 64"], rotations: Float[Tensor, "2 t 32"]) -> Tensor:
    """Rotate pairs of features by their token's position; arXiv 2104.09864, eq. 34."""
    cosine, sine = rotations
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
