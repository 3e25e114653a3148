"""Diffusion, against diffusers' own DDPM scheduler, the papers' formulas and Gaussian data."""

import math

import pytest
import torch
from torch import Tensor

from policy.objectives.base import Batch, bind
from policy.objectives.diffusion import Diffusion, DiffusionConfig
from tests.policy.objectives.analytic import NO_CONDITION, JvpNetwork
from tests.policy.objectives.objective_contract import (
    ACTION_DIM,
    HORIZON,
    generator,
    random_actions,
    random_condition,
    small_head,
)

STEPS = 100


def squared_cosine() -> Tensor:
    """Nichol & Dhariwal's signal left after each step, arXiv 2102.09672, eq. 17, beta <= 0.999."""

    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = [1 - min(1 - signal((k + 1) / STEPS) / signal(k / STEPS), 0.999) for k in range(STEPS)]
    return torch.tensor(kept, dtype=torch.float64).cumprod(dim=0)


def sequential_noise(batch: int, draws: int) -> Tensor:
    """Noise in the order in which a scheduler with a generator draws it."""
    stream = generator(6)
    shape = (batch, HORIZON, ACTION_DIM)
    drawn = [torch.randn(shape, generator=stream, dtype=torch.float64) for _ in range(draws)]
    return torch.stack(drawn, dim=1)


@pytest.mark.parametrize(
    ("evaluations", "spacing"),
    [(100, "leading"), (20, "leading"), (4, "leading")]
    + [(number, "trailing") for number in (20, 10, 4, 2, 1)],
)
def test_ancestral_steps_equal_diffusers_ddpm(spacing, evaluations):
    from diffusers import DDPMScheduler

    objective = Diffusion(DiffusionConfig(sampler="ddpm", timestep_spacing=spacing))
    head = small_head(objective, torch.float64)
    condition = random_condition(head, 3)
    noise = sequential_noise(3, objective.num_noise_draws(evaluations))

    drawn = objective.sample(bind(head, condition), noise, evaluations)

    scheduler = DDPMScheduler(
        num_train_timesteps=STEPS,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(evaluations)
    stream = generator(6)
    z = torch.randn(noise[:, 0].shape, generator=stream, dtype=torch.float64)
    with torch.no_grad():
        for step in scheduler.timesteps:
            t = torch.full((3,), float(step) / STEPS, dtype=torch.float64)
            predicted = head(z, t, torch.zeros_like(t), condition)
            z = scheduler.step(predicted, step, z, generator=stream).prev_sample
    # diffusers' coefficients are float32.
    torch.testing.assert_close(drawn, z, rtol=0, atol=1e-4)


def test_ddim_equals_its_formula():
    """arXiv 2010.02502, eq. 12 with sigma = 0, the predicted sample clipped to [-1, 1]."""
    objective = Diffusion(DiffusionConfig(sampler="ddim"))
    head = small_head(objective, torch.float64)
    condition = random_condition(head, 3)
    noise = sequential_noise(3, 1)

    drawn = objective.sample(bind(head, condition), noise, 10)

    kept = squared_cosine()
    z = noise[:, 0]
    with torch.no_grad():
        for step in range(90, -1, -10):
            t = torch.full((3,), step / STEPS, dtype=torch.float64)
            predicted = head(z, t, torch.zeros_like(t), condition)
            now, after = kept[step], kept[step - 10] if step else torch.tensor(1.0)
            clean = ((z - (1 - now).sqrt() * predicted) / now.sqrt()).clamp(-1, 1)
            z = after.sqrt() * clean + (1 - after).sqrt() * predicted
    torch.testing.assert_close(drawn, z, rtol=0, atol=1e-4)


def test_trailing_steps_start_at_pure_noise():
    seen = []

    def network(z, t, h):
        seen.append(float(t[0]))
        return torch.zeros_like(z)

    objective = Diffusion(DiffusionConfig(timestep_spacing="trailing"))
    objective.sample(network, torch.zeros(1, 1, HORIZON, ACTION_DIM), 4)
    assert seen == pytest.approx([0.99, 0.74, 0.49, 0.24])


def test_training_mixes_as_the_schedule_says():
    actions, valid = random_actions(64)
    seen = {}

    @JvpNetwork
    def network(z, t, h):
        seen.update(z=z, t=t, h=h)
        return torch.zeros_like(z)

    batch = Batch(actions, valid, NO_CONDITION, generator())
    loss = Diffusion(DiffusionConfig()).loss(network, batch)

    noise = torch.randn(actions.shape, generator=generator())
    kept = squared_cosine()[(seen["t"] * STEPS).round().long()].float()[:, None, None]
    torch.testing.assert_close(
        seen["z"], kept.sqrt() * actions + (1 - kept).sqrt() * noise, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(loss.value, noise.square().mean())
    assert not seen["h"].any()
    assert 0 <= float(seen["t"].min()) < 0.2
    assert 0.8 < float(seen["t"].max()) < 1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_exact_noise_prediction_samples_the_gaussian(sampler):
    """E[e | z] for x ~ N(mean, spread^2); wide of [-1, 1], so that clipping hardly matters."""
    mean, spread, num = 0.3, 0.15, 20_000
    kept = squared_cosine()

    def network(z, t, h):
        now = kept[(t * STEPS).round().long()][:, None, None]
        variance = now * spread**2 + 1 - now
        return (1 - now).sqrt() * (z - now.sqrt() * mean) / variance

    objective = Diffusion(DiffusionConfig(sampler=sampler))
    noise = torch.randn(
        num, objective.num_noise_draws(STEPS), 1, 1, generator=generator(), dtype=torch.float64
    )
    drawn = objective.sample(network, noise, STEPS)
    # 20,000 draws leave 0.15 / sqrt(20,000) = 0.001; 100 steps leave about 0.01.
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.02)
    assert float(drawn.std()) == pytest.approx(spread, abs=0.02)
