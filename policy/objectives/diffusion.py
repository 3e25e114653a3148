"""Denoising diffusion: the network predicts the noise in an action chunk, a scheduler removes it.

Step k of K reaches the network as time k / K, at h = 0; 0 is nearest to the data.

Ancestral sampling (`ddpm`) is DDIM with eta = 1 and the predicted noise derived again from the
clipped prediction: the posterior of DDPM, written differently (arXiv 2010.02502, section 4.1). So
the noise of every step is an argument, and a row's actions depend on that row alone.

Source: DDPM, arXiv 2006.11239; DDIM, arXiv 2010.02502; settings (squared cosine schedule, clipped
samples, noise prediction) of Diffusion Policy, arXiv 2303.04137; loss as in
real-stanford/diffusion_policy@4bf419a:diffusion_policy/policy/diffusion_transformer_lowdim_policy.py.
"""

from typing import Literal

import torch
from pydantic import Field

from policy.errors import AgentMismatchError, MissingExtraError, install_command
from policy.objectives.base import (
    ActionNetwork,
    Batch,
    Chunks,
    Loss,
    Noise,
    Objective,
    ObjectiveSettings,
    Predictor,
)


class DiffusionConfig(ObjectiveSettings):
    """Settings of diffusion; the defaults are Diffusion Policy's."""

    kind: Literal["diffusion"] = "diffusion"
    num_train_timesteps: int = Field(default=100, ge=10, multiple_of=10)
    """Steps between data and noise in training; `ddpm` takes them all by default."""
    sampler: Literal["ddpm", "ddim"] = "ddim"
    """`ddpm` draws new noise at every step, `ddim` only at the start and needs fewer steps."""
    timestep_spacing: Literal["leading", "trailing"] = "leading"
    """Which steps a sampler with fewer than `num_train_timesteps` takes: the steps that end at the
    first step, or those that start at the last, which 1 to 4 evaluations need to see pure noise
    (arXiv 2305.08891)."""


class Diffusion(Objective):
    """The objective; see the module docstring."""

    config: DiffusionConfig

    def __init__(self, config: DiffusionConfig):
        try:
            from diffusers.schedulers.scheduling_ddim import DDIMScheduler  # noqa: PLC0415 - optional
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"objective diffusion needs the module {error.name}, which is not installed; "
                f"{install_command('baselines')}"
            ) from error
        super().__init__(config)
        self._is_ancestral = config.sampler == "ddpm"
        # 10 DDIM steps are Diffusion Policy's on a robot, and what its successors compare with.
        self.default_evaluations = config.num_train_timesteps if self._is_ancestral else 10
        self._scheduler = DDIMScheduler(
            num_train_timesteps=config.num_train_timesteps,
            beta_schedule="squaredcos_cap_v2",
            clip_sample=True,
            set_alpha_to_one=True,
            steps_offset=0,
            prediction_type="epsilon",
            timestep_spacing=config.timestep_spacing,
        )
        # Where few steps start at pure noise, eta = 1 leaves 1 - alpha - sigma^2 near 1e-7: in
        # float32 it may round below 0, and its root is not a number.
        self._scheduler.alphas_cumprod = self._scheduler.alphas_cumprod.double()

    def check_evaluations(self, nfe: int) -> None:
        # Others would be spaced unevenly by the scheduler, as far as starting half way to the data.
        steps = self.config.num_train_timesteps
        if nfe < 1 or steps % nfe:
            divisors = ", ".join(str(n) for n in range(1, steps + 1) if steps % n == 0)
            raise AgentMismatchError(
                f"nfe={nfe}, but objective diffusion takes a divisor of "
                f"its {steps} training steps: {divisors}"
            )

    def num_noise_draws(self, nfe: int) -> int:
        return nfe if self._is_ancestral else 1  # the start, and every step but the last

    def loss(self, head: ActionNetwork, batch: Batch) -> Loss:
        num_steps = self.config.num_train_timesteps
        noise = batch.draw_noise()
        steps = torch.randint(num_steps, (len(noise),), generator=batch.generator)
        z = self._scheduler.add_noise(batch.actions, noise, steps)
        t = steps.to(noise) / num_steps
        predicted = head(z, t, torch.zeros_like(t), batch.condition)
        error = batch.mean_error(predicted, noise)
        return Loss(error, {"raw_mse": error.detach()})

    def _sample(self, network: Predictor, noise: Noise, nfe: int) -> Chunks:
        self._scheduler.set_timesteps(nfe)
        z = noise[:, 0]
        later_noise = [*noise[:, 1:].unbind(dim=1), torch.zeros_like(z)]  # none at the last step
        for index, step in enumerate(self._scheduler.timesteps.tolist()):
            t = z.new_full((len(z),), step / self.config.num_train_timesteps)
            predicted = network(z, t, torch.zeros_like(t))
            z = self._scheduler.step(
                predicted,
                step,
                z,
                eta=1.0 if self._is_ancestral else 0.0,
                use_clipped_model_output=self._is_ancestral,
                variance_noise=later_noise[index] if self._is_ancestral else None,
                return_dict=False,
            )[0]
        return z
