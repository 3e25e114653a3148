"""Full Attention Residuals: every sublayer reads a learned mixture of all earlier outputs.

Knows tokens and depth; nothing about attention between tokens, actions or time. An ordinary
residual stream adds every sublayer's output to one running sum. Here the input of sublayer l is

    h_l = sum_{i <= l} alpha_{i->l} v_i,    alpha_{i->l} = softmax_i( w_l . RMSNorm_l(v_i) )

per token, where v_0 is the token embedding, v_i the output of sublayer i, and w_l a learned
pseudo-query. Attention and MLP count as one sublayer each; one more mixture is read at the output.

The gain g_l of RMSNorm_l folds into the query exactly, w . (g * v/rms(v)) = ((w * g) . v) / rms(v),
so all later readers' logits for a source are one product, taken once when the source appears.

Source: Attention Residuals, arXiv 2603.15031, sections 3 and 4 (Full variant, queries from zero).
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RMS_EPS: Final = 1e-5  # dimensionless; keeps the slope of 1/rms bounded for a zero source


class DepthMixer(nn.Module):
    """The pseudo-queries and key gains of every reader of one residual stream."""

    def __init__(self, width: int, num_sublayers: int):
        """Create one reader a sublayer and one for the output; all start as the plain mean."""
        super().__init__()
        self.num_readers = num_sublayers + 1
        self.query = nn.Parameter(torch.zeros(self.num_readers, width))
        self.key_gain = nn.Parameter(torch.ones(self.num_readers, width))

    def open(self, embedding: Float[Tensor, "b t d"]) -> "DepthStream":
        """Start a stream whose first source is the token embedding."""
        stream = DepthStream(self.query * self.key_gain)
        stream.append(embedding)
        return stream


class DepthStream:
    """The sources of one forward pass so far, and every later reader's logits for them."""

    def __init__(self, folded_query: Float[Tensor, "l d"]):
        self._folded_query = folded_query
        self._sources: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._gradients: list[Tensor | None] = []

    def append(self, source: Float[Tensor, "b t d"]) -> None:
        """Add a sublayer's output as the next source."""
        index = len(self._sources)
        inverse_rms = inverse_root_mean_square(source)
        self._logits.append((source @ self._folded_query[index:].T) * inverse_rms)
        if torch.is_grad_enabled():
            self._gradients.append(None)
            source = _Append.apply(source, self._gradients, index)  # type: ignore[no-untyped-call]
        self._sources.append(source)

    def read(self) -> Float[Tensor, "b t d"]:
        """Return the mixture of all sources for the next reader."""
        reader = len(self._sources) - 1
        # Source i has logits for the readers from i on: reader l stands at place l - i.
        logits = [logits[..., reader - i] for i, logits in enumerate(self._logits)]
        weights = torch.stack(logits, dim=-1).softmax(dim=-1)
        if torch.is_grad_enabled():
            mixed: Tensor = _Mix.apply(weights, self._gradients, *self._sources)  # type: ignore[no-untyped-call]
            return mixed
        return _mix(weights, self._sources)


def inverse_root_mean_square(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b 1"]:
    """Return 1 / rms(x) over the last axis, bounded for x near zero."""
    return torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + RMS_EPS)


def _mix(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum without stacking the sources, which would copy all of them."""
    mixture = weights[..., :1] * sources[0]
    for i, source in enumerate(sources[1:], start=1):
        mixture.addcmul_(weights[..., i : i + 1], source)
    return mixture


# Every reader sends a gradient to every earlier source. Autograd would make a tensor of each and
# then add them up; these two functions add in place instead: `_Mix` into the stream's list, from
# which `_Append` hands a source's sum on once all of its readers have run backward.


class _Append(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, gradients: list[Tensor | None], index: int) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.gradients, ctx.index = gradients, index
        return source.view_as(source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, None, None]:
        gradient = ctx.gradients[ctx.index]
        ctx.gradients[ctx.index] = None
        return gradient, None, None


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, gradients: list[Tensor | None], *sources: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        ctx.save_for_backward(weights, *sources)
        return _mix(weights, sources)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, *sources = ctx.saved_tensors
        weight_gradients = [(gradient * source).sum(dim=-1) for source in sources]
        for i in range(len(sources)):
            weight = weights[..., i : i + 1]
            held = ctx.gradients[i]
            if held is None:
                ctx.gradients[i] = weight * gradient
            else:
                held.addcmul_(weight, gradient)
        return torch.stack(weight_gradients, dim=-1), None, *(None for _ in sources)
