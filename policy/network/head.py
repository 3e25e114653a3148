"""The action head: a transformer over [t, h, noisy actions] that reads observation tokens.

It predicts an average velocity u(z, t, h) of actions, with data at time 0 and noise at time 1;
other objectives train it on something else at h = 0. Observation tokens attend to each other only:
their keys and values are computed once and reused by every pass over the actions.

Source: the original design's head (RMSNorm, rotary positions, SwiGLU, query-key norm) on the trunk
of arXiv 2603.15031; time embedding as in arXiv 2512.02012, on raw times in [0, 1].
"""

from dataclasses import dataclass
from typing import Final, Literal, cast

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from policy.network import forward_mode
from policy.network.attention_residuals import DepthMixer
from policy.network.layers import HEAD_WIDTH, Block, TimeEmbedding, rms_normalize, rotary_table
from policy.spec import FrozenModel

NUM_TIME_TOKENS: Final = 2  # one for t and one for h


class HeadConfig(FrozenModel, allow_inf_nan=False):
    """Size and horizons of the action head."""

    n_emb: int = Field(default=384, ge=HEAD_WIDTH, le=8_192, multiple_of=HEAD_WIDTH)
    """Token width; compute grows with its square."""
    n_layer: int = Field(default=12, ge=1, le=256)
    """Transformer blocks, each an attention and an MLP sublayer."""
    pred_horizon: int = Field(default=16, ge=1, le=4_096)
    """Control steps predicted per call."""
    # Of earlier versions' choices run.json still names the one that is left.
    residuals: Literal["full"] = "full"
    residual_block_size: Literal[4] = 4
    positions: Literal["rotary"] = "rotary"


KeysValues = tuple[Tensor, Tensor]  # each [b, heads, t, 64], of tokens in one block


@dataclass(frozen=True)
class Condition:
    """Keys and values of the observation tokens, one pair per block."""

    keys_values: tuple[KeysValues, ...]

    def detach(self) -> "Condition":
        """Return the same condition outside the gradient graph."""
        return Condition(tuple((key.detach(), value.detach()) for key, value in self.keys_values))

    def select(self, rows: slice) -> "Condition":
        """Return the condition of some batch rows."""
        return Condition(tuple((key[rows], value[rows]) for key, value in self.keys_values))


class ActionHead(nn.Module):
    """Predicts `num_outputs` chunks side by side from a noisy one, given observation tokens."""

    rotations: Tensor
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
        super().__init__()
        width = config.n_emb
        self.num_cond_tokens = num_cond_tokens
        self.pred_horizon = config.pred_horizon
        self.embed_cond = nn.Linear(cond_dim, width)
        self.embed_action = nn.Linear(action_dim, width)
        self.embed_t = TimeEmbedding(width)
        self.embed_h = TimeEmbedding(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(config.n_layer))
        self.residuals = DepthMixer(width, num_sublayers=2 * config.n_layer)
        self.predict = nn.Linear(width, num_outputs * action_dim)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)
        num_tokens = num_cond_tokens + NUM_TIME_TOKENS + config.pred_horizon
        self.register_buffer("rotations", rotary_table(num_tokens), persistent=False)
        may_see = torch.ones(num_tokens, num_tokens, dtype=torch.bool)
        may_see[:num_cond_tokens, num_cond_tokens:] = False
        self.register_buffer("may_see", may_see, persistent=False)

    def encode_condition(self, cond: Float[Tensor, "b t c"]) -> Condition:
        """Turn observation tokens into the keys and values that every later pass reads."""
        slots = slice(0, self.num_cond_tokens)
        _, keys_values = self._run_blocks(self.embed_cond(cond), slots)
        return Condition(keys_values)

    def forward(
        self,
        z: Float[Tensor, "b horizon a"],
        t: Float[Tensor, " b"],
        h: Float[Tensor, " b"],
        condition: Condition | Float[Tensor, "b t c"],
    ) -> Float[Tensor, "b horizon outputs"]:
        """Predict u(z, t, h), the velocity averaged over times [t - h, t].

        Args:
            z: noisy actions at time t, normalized.
            t: times in [0, 1]; 0 is data and 1 is noise.
            h: spans in [0, t]; 0 is the instantaneous velocity.
            condition: from `encode_condition`, or what that takes, to encode it in this pass: used
                once, that reads every weight once instead of twice, most of a CPU's time.
        """
        actions = torch.cat([self.embed_t(t), self.embed_h(h), self.embed_action(z)], dim=1)
        if isinstance(condition, Condition):
            slots = slice(self.num_cond_tokens, None)
            output, _ = self._run_blocks(actions, slots, context=condition.keys_values)
        else:
            tokens = torch.cat([self.embed_cond(condition), actions], dim=1)
            output, _ = self._run_blocks(tokens, slice(0, None), may_see=self.may_see)
        predicted: Tensor = self.predict(rms_normalize(output[:, -self.pred_horizon :]))
        return predicted

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

        `direction` is dz/dt, the velocity along which to derive; the condition, from
        `encode_condition`, stays where it is. With r fixed and h = t - r, dh/dt = 1. In bfloat16
        the derivative over close times would round to zero, and a loss that needs it silently
        become flow matching.
        """
        slots = slice(self.num_cond_tokens, None)
        with torch.autocast(z.device.type, enabled=False):
            now = forward_mode.embed_time(self.embed_t, t)
            span = forward_mode.embed_time(self.embed_h, h)
            actions = forward_mode.linear(self.embed_action, torch.stack([z, direction]))
            tokens = torch.cat([now, span, actions], dim=2)
            rotations = self.rotations[:, slots]
            stream = forward_mode.DualDepthStream(self.residuals, tokens)
            for block, context in zip(self._blocks(), condition.keys_values, strict=True):
                attended = forward_mode.attend(block.attention, stream.read(), rotations, context)
                stream.append(attended)
                stream.append(forward_mode.transform(block.mlp, stream.read()))
            last = forward_mode.normalize(stream.read()[:, :, -self.pred_horizon :])
            return forward_mode.linear(self.predict, last)[1]

    def _run_blocks(
        self,
        tokens: Float[Tensor, "b t d"],
        slots: slice,
        *,
        context: tuple[KeysValues, ...] | None = None,
        may_see: Bool[Tensor, "t t"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], tuple[KeysValues, ...]]:
        """Pass embedded tokens, at `slots` of the sequence, through every block.

        They attend to each block's keys and values in `context`, and to each other as `may_see`
        allows (None: all to all). Also returns each block's keys and values of the tokens.
        """
        stream = self.residuals.open(tokens)
        own: list[KeysValues] = []
        for depth, block in enumerate(self._blocks()):
            query, key, value = block.attention.project(stream.read(), self.rotations[:, slots])
            own.append((key, value))
            if context is not None:
                key = torch.cat([context[depth][0], key], dim=2)
                value = torch.cat([context[depth][1], value], dim=2)
            stream.append(block.attention.attend(query, key, value, may_see))
            stream.append(block.mlp(stream.read()))
        return stream.read(), tuple(own)

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))  # ModuleList forgets what it holds
