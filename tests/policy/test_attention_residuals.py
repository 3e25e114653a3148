"""Attention Residuals, against the formula written out without folding and in plain autograd."""

import pytest
import torch
from torch import Tensor

from policy.attention_residuals import RMS_EPS, DepthMixer

WIDTH, SUBLAYERS = 12, 5


def naive_read(mixer: DepthMixer, sources: list[Tensor]) -> Tensor:
    """softmax_i(w . (g * v_i / rms(v_i))) over stacked sources: the paper's equation, unfolded."""
    reader = len(sources) - 1
    stacked = torch.stack(sources)
    keys = stacked / (stacked.square().mean(-1, keepdim=True) + RMS_EPS).sqrt()
    logits = (keys * mixer.key_gain[reader]) @ mixer.query[reader]
    return (logits.softmax(dim=0)[..., None] * stacked).sum(dim=0)


def random_mixer() -> DepthMixer:
    mixer = DepthMixer(WIDTH, SUBLAYERS).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mixer.query.copy_(torch.randn(mixer.query.shape, generator=generator))
        mixer.key_gain.copy_(torch.rand(mixer.key_gain.shape, generator=generator) + 0.5)
    return mixer


def random_sources(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, 3, WIDTH, generator=generator, dtype=torch.float64) for _ in range(count)
    ]


def test_mixture_starts_as_the_mean_of_its_sources():
    sources = random_sources(4)
    stream = DepthMixer(WIDTH, SUBLAYERS).double().open(sources[0])
    for source in sources[1:]:
        stream.append(source)
    torch.testing.assert_close(stream.read(), torch.stack(sources).mean(dim=0))


@pytest.mark.parametrize("with_gradient", [True, False])
def test_folded_logits_equal_the_naive_formula(with_gradient):
    mixer, sources = random_mixer(), random_sources(SUBLAYERS + 1)
    with torch.set_grad_enabled(with_gradient):
        stream = mixer.open(sources[0])
        for count in range(1, len(sources)):
            torch.testing.assert_close(stream.read(), naive_read(mixer, sources[:count]))
            stream.append(sources[count])
        torch.testing.assert_close(stream.read(), naive_read(mixer, sources))


def test_gradients_equal_those_of_the_naive_formula():
    """The in-place sums of the backward pass must be invisible: sources feed many readers."""

    def run(read) -> list[Tensor]:
        mixer = random_mixer()
        first = random_sources(1)[0].requires_grad_()
        read(mixer, first).square().sum().backward()
        return [first.grad, mixer.query.grad, mixer.key_gain.grad]

    def folded(mixer: DepthMixer, first: Tensor) -> Tensor:
        stream = mixer.open(first)
        for _ in range(SUBLAYERS):
            stream.append(torch.tanh(stream.read() * 1.5))
        return stream.read()

    def naive(mixer: DepthMixer, first: Tensor) -> Tensor:
        sources = [first]
        for _ in range(SUBLAYERS):
            sources.append(torch.tanh(naive_read(mixer, sources) * 1.5))
        return naive_read(mixer, sources)

    for ours, expected in zip(run(folded), run(naive), strict=True):
        torch.testing.assert_close(ours, expected)
