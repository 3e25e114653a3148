"""How fast is the head, against its rivals on the same trunk? Ratios from one run.

    python -m tests.bench.head_speed

At the design's sizes (n_emb 384, n_layer 12), two threads, float32: one-step sampling at batch 1
against DDIM-10 and DDPM-100, which reuse the encoded condition too; a training step at batch 64
against flow matching, by du/dt and by jumps.
"""

import statistics
import time
from collections.abc import Callable

import torch

from policy.agent import AgentConfig, VLAAgent
from policy.network.ema import WeightAverage
from policy.objectives.diffusion import DiffusionConfig
from policy.objectives.flow_matching import FlowMatchingConfig
from policy.objectives.improved_meanflow_jump import ImprovedMeanFlowJumpConfig
from policy.objectives.meanflow import ImprovedMeanFlowConfig
from policy.spec import AgentSpec

SPEC = AgentSpec(
    view_names=("front", "top", "r_vis"),
    feature_shapes={"pooled": (768,)},
    state_dim=14,
    action_dim=14,
)
TRAIN_BATCH = 64


def agent(objective: object) -> VLAAgent:
    """Build an agent at the design's sizes."""
    torch.manual_seed(0)
    return VLAAgent(AgentConfig(objective=objective), SPEC)


def median_s(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Time several calls in turn, so that a drifting machine slows all alike; return medians."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, spent in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            spent.append(time.perf_counter() - started)
    return [statistics.median(spent) for spent in times]


def random_features(policy: VLAAgent, batch: int) -> dict[str, torch.Tensor]:
    """Draw each of the features that the policy reads."""
    shapes, steps = policy.spec.feature_shapes, policy.config.obs_horizon
    return {
        name: torch.randn(batch, steps, policy.spec.num_views, *shapes[name])
        for name in policy.config.readers
    }


def decide(policy: VLAAgent, nfe: int) -> Callable[[], object]:
    """Return a call that takes one decision at batch 1, as a rollout does."""
    spec, steps = policy.spec, policy.config.obs_horizon
    features = random_features(policy, 1)
    state = torch.randn(1, steps, spec.state_dim)
    noise = policy.noise(1, torch.Generator().manual_seed(0), nfe)
    policy.eval()
    return lambda: policy.predict(features, state, noise, nfe)


def train(policy: VLAAgent) -> Callable[[], object]:
    """Return a call that takes one training step without the optimizer."""
    features, state = random_features(policy, TRAIN_BATCH), torch.randn(TRAIN_BATCH, 2, 14)
    actions, valid = torch.randn(TRAIN_BATCH, 16, 14), torch.ones(TRAIN_BATCH, 16, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    teacher = WeightAverage(policy).mirror(policy) if policy.is_taught else None

    def step() -> None:
        policy.zero_grad(set_to_none=True)
        loss = policy.compute_loss(features, state, actions, valid, generator, teacher=teacher)
        loss.value.backward()

    return step


def main() -> None:
    """Print every ratio."""
    torch.set_num_threads(2)
    one_step = agent(ImprovedMeanFlowConfig())
    ddim = decide(agent(DiffusionConfig(sampler="ddim")), 10)
    ddpm = decide(agent(DiffusionConfig(sampler="ddpm")), 100)
    ours, ddim_s, ddpm_s = median_s([decide(one_step, 1), ddim, ddpm], repeats=9)
    print(f"one decision: one step {1e3 * ours:.1f} ms, DDIM-10 {ddim_s / ours:.1f} x, ", end="")
    print(f"DDPM-100 {ddpm_s / ours:.1f} x", flush=True)
    trained = one_step, agent(ImprovedMeanFlowJumpConfig()), agent(FlowMatchingConfig())
    meanflow, jumps, flow = median_s([train(policy) for policy in trained], repeats=5)
    print(
        f"training step, batch {TRAIN_BATCH}: improved MeanFlow {1e3 * meanflow:.0f} ms, "
        f"{meanflow / flow:.2f} x flow matching; by jumps {jumps / flow:.2f} x",
        flush=True,
    )


if __name__ == "__main__":
    main()
