"""Attention Residuals: every sublayer reads a learned mixture of all earlier outputs.

Knows tokens and depth; nothing about attention between tokens, actions or time. An ordinary
residual stream adds every sublayer's output to one running sum. Here the input of sublayer l is

    h_l = sum_{i <= l} alpha_{i->l} v_i,    alpha_{i->l} = softmax_i( w_l . RMSNorm_l(v_i) )

per token, where v_0 is the token embedding, v_i the output of sublayer i, and w_l a learned
pseudo-query. Attention and MLP count as one sublayer each; one more mixture is read at the output.
In the Block variant the sources are the embedding, the sums of finished blocks of S sublayers, and
the running sum of the present block; with S = 1 that is the Full variant.

The gain g_l of RMSNorm_l folds into the query exactly, w . (g * v/rms(v)) = ((w * g) . v) / rms(v),
so all later readers' logits for a source are one product, taken once when the source appears.

Source: Attention Residuals, arXiv 2603.15031 (queries start at zero).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RMS_EPS: Final = 1e-5  # dimensionless; keeps the slope of 1/rms bounded for a zero source


@runtime_checkable
class ResidualStream(Protocol):
    """How the outputs of sublayers become the inputs of later ones, in one forward pass."""

    def append(self, output: Float[Tensor, "b t d"]) -> None:
        """Add a sublayer's output."""

    def read(self) -> Float[Tensor, "b t d"]:
        """Return the input of the next sublayer, or of the head's last projection."""


class DepthMixer(nn.Module):
    """The pseudo-queries and key gains of every reader of an attention-residual stream."""

    def __init__(self, width: int, num_sublayers: int, block_size: int):
        """Create one reader a sublayer and one for the output; all start as the plain mean.

        Args:
            width: features a token.
            num_sublayers: attention and MLP sublayers together.
            block_size: sublayers whose outputs are summed into one source; 1 is the Full variant.
        """
        super().__init__()
        self.block_size = block_size
        self.query = nn.Parameter(torch.zeros(num_sublayers + 1, width))
        self.key_gain = nn.Parameter(torch.ones(num_sublayers + 1, width))

    def open(self, embedding: Float[Tensor, "b t d"]) -> ResidualStream:
        """Start a stream whose first source is the token embedding."""
        return DepthStream(self.query * self.key_gain, self.block_size, embedding)


class ResidualSum(nn.Module):
    """The ordinary residual stream of a pre-norm transformer, for the control experiment."""

    def open(self, embedding: Float[Tensor, "b t d"]) -> ResidualStream:
        """Start a stream at the token embedding."""
        return SumStream(embedding)


class SumStream:
    """One running sum; implements `ResidualStream`."""

    def __init__(self, embedding: Float[Tensor, "b t d"]):
        self._sum = embedding

    def append(self, output: Float[Tensor, "b t d"]) -> None:
        """Add a sublayer's output to the sum."""
        self._sum = self._sum + output

    def read(self) -> Float[Tensor, "b t d"]:
        """Return the sum."""
        return self._sum


class DepthStream:
    """The sources so far, and every later reader's logits for them; a `ResidualStream`."""

    def __init__(
        self,
        folded_query: Float[Tensor, "l d"],
        block_size: int,
        embedding: Float[Tensor, "b t d"],
    ):
        self._folded_query = folded_query
        self._block_size = block_size
        self._reader = 0
        self._finished = [self._source(embedding, last_reader=len(folded_query))]
        self._block_sum: Tensor | None = None
        self._open: list[_Source] = []  # the running sum of the present block, if it holds any

    def append(self, output: Float[Tensor, "b t d"]) -> None:
        """Add a sublayer's output to the present block."""
        self._reader += 1
        block_sum = output if self._block_sum is None else self._block_sum + output
        if self._reader % self._block_size == 0:
            self._finished.append(self._source(block_sum, last_reader=len(self._folded_query)))
            self._block_sum, self._open = None, []
        else:
            self._open = [self._source(block_sum, last_reader=self._reader + 1)]
            self._block_sum = block_sum

    def read(self) -> Float[Tensor, "b t d"]:
        """Return the mixture of all sources for the next reader."""
        sources = self._finished + self._open
        logits = [source.logits[..., self._reader - source.first_reader] for source in sources]
        weights = torch.stack(logits, dim=-1).softmax(dim=-1)
        tensors = [source.tensor for source in sources]
        if not torch.is_grad_enabled():
            return _mix(weights, tensors)
        gradients = [source.gradient for source in sources]
        mixed: Tensor = _Mix.apply(weights, gradients, *tensors)  # type: ignore[no-untyped-call]
        return mixed

    def _source(self, tensor: Tensor, last_reader: int) -> "_Source":
        queries = self._folded_query[self._reader : last_reader]
        logits = (tensor @ queries.T) * inverse_root_mean_square(tensor)
        gradient = _GradientSum()
        if torch.is_grad_enabled():
            tensor = _Append.apply(tensor, gradient)  # type: ignore[no-untyped-call]
        return _Source(tensor, logits, self._reader, gradient)


class _GradientSum:
    """What the readers of one source have sent back so far."""

    value: Tensor | None = None


@dataclass(frozen=True)
class _Source:
    """A tensor that later readers mix."""

    tensor: Tensor
    logits: Tensor
    """[b, t, readers], of the readers from `first_reader` on."""
    first_reader: int
    gradient: _GradientSum


def inverse_root_mean_square(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b 1"]:
    """Return 1 / rms(x) over the last axis, bounded for x near zero."""
    return torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + RMS_EPS)


def _mix(weights: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum without stacking the sources, which would copy all of them."""
    mixture = weights[..., :1] * tensors[0]
    for i, tensor in enumerate(tensors[1:], start=1):
        mixture.addcmul_(weights[..., i : i + 1], tensor)
    return mixture


# Every reader sends a gradient to every earlier source. Autograd would make a tensor of each and
# then add them up; these two functions add in place instead: `_Mix` into the source's sum, which
# `_Append` hands on once all of the source's readers have run backward.


class _Append(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gradient: _GradientSum) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.gradient = gradient
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, None]:
        total, ctx.gradient.value = ctx.gradient.value, None
        return total, None


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, gradients: list[_GradientSum], *tensors: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        ctx.save_for_backward(weights, *tensors)
        return _mix(weights, tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *tensors = ctx.saved_tensors
        weight_gradients = [(gradient * tensor).sum(dim=-1) for tensor in tensors]
        for i, total in enumerate(ctx.gradients):
            weight = weights[..., i : i + 1]
            if total.value is None:
                total.value = weight * gradient
            else:
                total.value.addcmul_(weight, gradient)
        return torch.stack(weight_gradients, dim=-1), None, *(None for _ in tensors)
