"""Attention Residuals, against the formula written out without folding and in plain autograd."""

import pytest
import torch
from torch import Tensor

from policy.network.attention_residuals import RMS_EPS, DepthMixer

WIDTH, SUBLAYERS = 12, 5


def naive_read(mixer: DepthMixer, embedding: Tensor, outputs: list[Tensor]) -> Tensor:
    """softmax_i(w . (g * v_i / rms(v_i))) over stacked sources: the paper's equation, unfolded."""
    reader, stacked = len(outputs), torch.stack([embedding, *outputs])
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
    mixer, (embedding, *outputs) = random_mixer(), random_sources(SUBLAYERS + 1)
    with torch.set_grad_enabled(with_gradient):
        stream = mixer.open(embedding)
        torch.testing.assert_close(stream.read(), naive_read(mixer, embedding, []))
        for count, output in enumerate(outputs, start=1):
            stream.append(output)
            expected = naive_read(mixer, embedding, outputs[:count])
            torch.testing.assert_close(stream.read(), expected)


@pytest.mark.parametrize("num_tokens", [3, 3_000])
def test_small_and_large_batches_mix_alike_without_gradient(num_tokens):
    """Small ones are mixed by a matrix product, large ones source by source."""
    mixer = random_mixer()
    generator = torch.Generator().manual_seed(1)
    embedding, *outputs = torch.randn(
        SUBLAYERS + 1, 1, num_tokens, WIDTH, generator=generator, dtype=torch.float64
    )
    with torch.no_grad():
        stream = mixer.open(embedding)
        for count, output in enumerate(outputs, start=1):
            stream.append(output)
            expected = naive_read(mixer, embedding, outputs[:count])
            torch.testing.assert_close(stream.read(), expected)


@pytest.mark.parametrize("trained", [False, True])
def test_mixtures_are_not_rounded_under_autocast(trained):
    """Sources are outputs of layers, in bfloat16."""
    mixer, sources = random_mixer().float(), [source.bfloat16() for source in random_sources(3)]
    with torch.set_grad_enabled(trained), torch.autocast("cpu", dtype=torch.bfloat16):
        stream = mixer.open(sources[0])
        for source in sources[1:]:
            stream.append(source)
        mixture = stream.read()
    assert mixture.dtype == torch.float32
    # Logits are rounded to bfloat16 under autocast, weights and sources are not.
    first, *others = (source.float() for source in sources)
    expected = naive_read(mixer, first, others)
    assert not torch.equal(mixture, mixture.bfloat16().float())
    torch.testing.assert_close(mixture, expected, rtol=0, atol=0.05)


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
        outputs: list[Tensor] = []
        for _ in range(SUBLAYERS):
            outputs.append(torch.tanh(naive_read(mixer, first, outputs) * 1.5))
        return naive_read(mixer, first, outputs)

    for ours, expected in zip(run(folded), run(naive), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_second_pass_sends_the_same_gradients():
    """Nothing of a pass may be left over in the next one."""
    mixer, first = random_mixer(), random_sources(1)[0]
    gradients = []
    for _ in range(2):
        mixer.zero_grad()
        stream = mixer.open(first)
        for _ in range(SUBLAYERS):
            stream.append(torch.tanh(stream.read()))
        stream.read().sum().backward()
        gradients.append(mixer.query.grad.clone())
    assert torch.equal(*gradients)


def test_a_graph_that_is_kept_sends_the_same_gradients_twice():
    mixer, first = random_mixer(), random_sources(1)[0]
    stream = mixer.open(first)
    for _ in range(SUBLAYERS):
        stream.append(torch.tanh(stream.read()))
    loss = stream.read().sum()
    once, again = (torch.autograd.grad(loss, mixer.query, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again)
