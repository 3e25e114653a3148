"""Attention Residuals: every sublayer reads a learned mixture of all earlier outputs.

An ordinary residual stream adds every sublayer's output to one running sum. Here the input of
sublayer l is

    h_l = sum_{i <= l} alpha_{i->l} v_i,    alpha_{i->l} = softmax_i( w_l . RMSNorm_l(v_i) )

per token, where v_0 is the token embedding, v_i the output of sublayer i, and w_l a learned
pseudo-query. Attention and MLP count as one sublayer each; one more mixture is read at the output.
In the Block variant the sources are the embedding, the sums of finished blocks of S sublayers, and
the running sum of the present block; with S = 1 that is the Full variant.

The gain g_l of RMSNorm_l folds into the query exactly, w . (g * v/rms(v)) = ((w * g) . v) / rms(v),
so all later readers' logits for a source are one product, taken once when the source appears.

With gradient each source is a tensor of its own (`DepthStream`); without, all are in one tensor
(`DepthBuffer`), which a small batch mixes in one matrix product.

Source: Attention Residuals, arXiv 2603.15031 (queries start at zero).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RMS_EPS: Final = 1e-5  # dimensionless; keeps the slope of 1/rms bounded for a zero source
# Values of one source. Below, a matrix product per token mixes in 6 us what one `addcmul_` per
# source mixes in 57 us (13 sources, batch 1 at width 384); at batch 64 it takes 4 times as long.
_SMALL_SOURCE: Final = 32_768


@runtime_checkable
class ResidualStream(Protocol):
    """How the outputs of sublayers become the inputs of later ones, in one forward pass."""

    def append(self, output: Float[Tensor, "*b t d"]) -> None:
        """Add a sublayer's output."""

    def read(self) -> Float[Tensor, "*b t d"]:
        """Return the input of the next sublayer, or of the head's last projection."""


class DepthMixer(nn.Module):
    """The pseudo-queries and key gains of every reader of an attention-residual stream."""

    def __init__(self, width: int, num_sublayers: int, block_size: int):
        """Create one reader per sublayer and one for the output; all start as the plain mean.

        The outputs of `block_size` sublayers are summed into one source; 1 is the Full variant.
        """
        super().__init__()
        self.block_size = block_size
        self.query = nn.Parameter(torch.zeros(num_sublayers + 1, width))
        self.key_gain = nn.Parameter(torch.ones(num_sublayers + 1, width))

    def open(self, embedding: Float[Tensor, "b t d"]) -> ResidualStream:
        """Start a stream whose first source is the token embedding."""
        stream = DepthStream if torch.is_grad_enabled() else DepthBuffer
        return stream(self.folded_query(), self.block_size, embedding)

    def folded_query(self) -> Float[Tensor, "l d"]:
        """Return every reader's pseudo-query with the gain of its norm."""
        return self.query * self.key_gain


class ResidualSum(nn.Module):
    """The ordinary residual stream of a pre-norm transformer, for the control experiment."""

    def open(self, embedding: Float[Tensor, "*b t d"]) -> ResidualStream:
        return SumStream(embedding)


class SumStream:
    """One running sum; implements `ResidualStream`."""

    def __init__(self, embedding: Float[Tensor, "*b t d"]):
        self._sum = embedding

    def append(self, output: Float[Tensor, "*b t d"]) -> None:
        self._sum = self._sum + output

    def read(self) -> Float[Tensor, "*b t d"]:
        return self._sum


class DepthBuffer:
    """The sources so far in one tensor, without gradient; a `ResidualStream`."""

    def __init__(
        self,
        folded_query: Float[Tensor, "l d"],
        block_size: int,
        embedding: Float[Tensor, "b t d"],
    ):
        num_readers = len(folded_query)
        num_sources = 1 + math.ceil((num_readers - 1) / block_size)
        self._queries = folded_query.T
        self._block_size = block_size
        self._shape = embedding.shape
        tokens = embedding.flatten(end_dim=-2)
        # Under autocast, sources may be bfloat16 and their mixture must not be.
        dtype = torch.promote_types(embedding.dtype, folded_query.dtype)
        is_exact = not torch.is_autocast_enabled(embedding.device.type)
        self._is_small = is_exact and tokens.numel() <= _SMALL_SOURCE
        # Sources that are not there yet have weight 0, and 0 times what memory held may be NaN.
        shape = (num_sources, *tokens.shape)
        allocate = tokens.new_zeros if self._is_small else tokens.new_empty
        self._sources = allocate(shape, dtype=dtype)
        self._by_token = self._sources.transpose(0, 1)
        self._logits = self._sources.new_full((num_readers, len(tokens), num_sources), -math.inf)
        self._reader = 0
        self._newest = 0
        self._sources[0] = tokens
        self._score()

    def append(self, output: Float[Tensor, "b t d"]) -> None:
        if self._reader % self._block_size == 0:
            self._newest += 1
            self._sources[self._newest] = output.flatten(end_dim=-2)
        else:
            self._sources[self._newest] += output.flatten(end_dim=-2)
        self._reader += 1
        self._score()

    def read(self) -> Float[Tensor, "b t d"]:
        weights = self._logits[self._reader].softmax(dim=-1)
        if self._is_small:
            mixture = torch.bmm(weights[:, None], self._by_token)
        else:
            visible = self._newest + 1
            mixture = mix(weights.T[:visible, :, None], self._sources[:visible])
        return mixture.view(self._shape)

    def _score(self) -> None:
        source = self._sources[self._newest]
        logits = (source @ self._queries[:, self._reader :]) * inverse_root_mean_square(source)
        self._logits[self._reader :, :, self._newest] = logits.T


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
        self._reader += 1
        block_sum = output if self._block_sum is None else self._block_sum + output
        if self._reader % self._block_size == 0:
            self._finished.append(self._source(block_sum, last_reader=len(self._folded_query)))
            self._block_sum, self._open = None, []
        else:
            self._open = [self._source(block_sum, last_reader=self._reader + 1)]
            self._block_sum = block_sum

    def read(self) -> Float[Tensor, "b t d"]:
        sources = self._finished + self._open
        logits = [source.logits[..., self._reader - source.first_reader] for source in sources]
        weights = torch.stack(logits).softmax(dim=0)[..., None]
        # Under autocast, a source may have a lower precision than the mixture and its gradients;
        # these add up in the mixture's.
        dtype = torch.promote_types(weights.dtype, sources[0].tensor.dtype)
        tensors = [source.tensor.to(dtype) for source in sources]
        mixture: Tensor
        mixture, *tensors = _Mix.apply(weights, *tensors)  # type: ignore[no-untyped-call]
        for source, tensor in zip(sources, tensors, strict=True):
            source.tensor = tensor
        return mixture

    def _source(self, tensor: Tensor, last_reader: int) -> "_Source":
        queries = self._folded_query[self._reader : last_reader]
        logits = (tensor @ queries.T) * inverse_root_mean_square(tensor)
        return _Source(tensor, logits, self._reader)


@dataclass
class _Source:
    """A tensor that later readers mix."""

    tensor: Tensor
    """As the latest reader passed it on; see `_Mix`."""
    logits: Tensor
    """[b, t, readers], of the readers from `first_reader` on."""
    first_reader: int


def inverse_root_mean_square(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b 1"]:
    """Return 1 / rms(x) over the last axis, bounded for x near zero."""
    return torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + RMS_EPS)


def mix(weights: Float[Tensor, "s *b 1"], sources: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the weighted sum of sources [*b, d]; a list of them is not stacked, hence copied."""
    mixture = weights[0] * sources[0]
    for weight, source in zip(weights[1:], sources[1:], strict=True):
        mixture.addcmul_(weight, source)
    return mixture


class _Mix(torch.autograd.Function):
    """`mix`, which also passes every source on to the next reader.

    Every reader sends a gradient to every earlier source. If all read the same tensor, autograd
    makes a tensor of each of these gradients and then adds them up. Here each reader reads what the
    reader before it passed on, so that in the backward pass the gradient of all later readers
    arrives as one tensor, to which this reader adds its own in place. Nothing else may use what is
    passed on: that makes the tensor that arrives ours to change.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weights, *sources)
        return mix(weights, sources), *(source.view_as(source) for source in sources)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor | None, *later: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if gradient is None:  # of a mixture that did not reach the loss
            return None, *later
        weights, *sources = ctx.saved_tensors
        weight_gradients = [(gradient * source).sum(dim=-1, keepdim=True) for source in sources]
        source_gradients = [
            weight * gradient if total is None else total.addcmul_(weight, gradient)
            for weight, total in zip(weights, later, strict=True)
        ]
        return torch.stack(weight_gradients), *source_gradients
