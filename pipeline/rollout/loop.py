"""The live loop: render, encode through the training's own encoder, decide, act.

Knows environments and a loaded policy; nothing about how either was made. Views are rendered only
at the observation steps that a decision reads.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from pipeline.errors import ConfigError
from pipeline.files import write_json
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED, RobotEnv
from pipeline.rollout.envs.registry import make_env
from pipeline.rollout.gate import check_env, load_policy
from pipeline.rollout.result import (
    Disagreement,
    EpisodeResult,
    Latency,
    RolloutResult,
    wilson_interval,
)
from pipeline.training.windows import seeded_generator
from policy.agent import VLAAgent
from policy.preprocess import resize_frames


class RolloutConfig(BaseModel):
    """What to roll out, where, and how often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Path
    """Folder of a training run."""
    env: str
    """Environment, as `metaworld/drawer-open-v3`."""
    out: Path
    """Folder for `result.json`."""
    episodes: int = Field(default=50, ge=1)
    """Episodes, each with its own seed."""
    first_seed: int = FIRST_ROLLOUT_SEED
    """Seed of the first episode; recordings only use smaller ones than the default."""
    num_evaluations: int | None = Field(default=None, ge=1)
    """Passes through the head a decision; None is the objective's own number."""
    max_steps: int | None = Field(default=None, ge=1)
    """Control steps until an episode counts as failed; None is the simulator's own limit."""
    backbone: str | None = None
    """Where the encoder lies now; None takes the name the run was trained with."""


@dataclass
class DecisionLog:
    """What every decision took, in seconds, and showed."""

    render: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)
    disagreement: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Observation:
    """What one control step showed."""

    frames: Tensor
    """uint8 [v, 256, 256, 3]."""
    state: Tensor
    """float32 [s]."""


def roll_out(config: RolloutConfig) -> RolloutResult:
    """Run every episode and write `result.json`, which appears only when all are done.

    Raises:
        RunError, EncoderLoadError, EncoderMismatchError: the policy cannot be loaded faithfully.
        EnvError: the simulator cannot be built or does not fit the policy.
        ConfigError: a seed may have been seen in training.
        AgentMismatchError: the policy's objective cannot take that many passes through the head.
    """
    if config.first_seed < FIRST_ROLLOUT_SEED:
        raise ConfigError(
            f"seed {config.first_seed}: recordings may have used it, want {FIRST_ROLLOUT_SEED} or "
            f"more"
        )
    config.out.mkdir(parents=True, exist_ok=True)  # before hours of episodes, not after
    description, agent, step = load_policy(config.run, backbone=config.backbone)
    num_evaluations = agent.evaluations(config.num_evaluations)
    env = make_env(config.env, description.spec.view_names)
    try:
        check_env(description, env)
        max_steps = min(config.max_steps or env.max_steps, env.max_steps)
        log = DecisionLog()
        episodes = []
        seeds = range(config.first_seed, config.first_seed + config.episodes)
        with tqdm(seeds, desc="roll out", unit="episode", disable=None) as progress:
            for seed in progress:
                episode = run_episode(
                    agent,
                    env,
                    seed,
                    max_steps=max_steps,
                    num_evaluations=num_evaluations,
                    log=log,
                )
                episodes.append(episode)
                solved = sum(episode.success for episode in episodes)
                progress.set_postfix(solved=f"{solved}/{len(episodes)}")
    finally:
        env.close()
    result = RolloutResult(
        env=env.name,
        run=config.run.resolve().name,
        checkpoint_step=step,
        num_evaluations=num_evaluations,
        max_steps=max_steps,
        encoder=description.data.encoder,
        store_digest=description.data.store_digest,
        episodes=tuple(episodes),
        success_rate=solved / len(episodes),
        success_interval=wilson_interval(solved, len(episodes)),
        render_s=Latency.of(log.render),
        encode_s=Latency.of(log.encode),
        head_s=Latency.of(log.head),
        disagreement=Disagreement.of(log.disagreement),
    )
    write_json(config.out / "result.json", result.model_dump(mode="json"))
    return result


def run_episode(
    agent: VLAAgent,
    env: RobotEnv,
    seed: int,
    *,
    max_steps: int,
    num_evaluations: int,
    log: DecisionLog,
) -> EpisodeResult:
    """Run one episode from its seed to success or time limit; the same seed gives the same one."""
    obs_horizon = agent.config.obs_horizon
    env.reset(seed)
    observations: deque[Observation] = deque(maxlen=obs_horizon)
    render_s = 0.0
    steps, total_reward, decision = 0, 0.0, 0
    while True:
        started = time.perf_counter()
        observations.append(_observe(env))
        log.render.append(render_s + time.perf_counter() - started)
        noise = agent.noise(1, seeded_generator(seed, "decision", decision), num_evaluations)
        chunk = decide(agent, list(observations), noise, num_evaluations, log)
        decision += 1
        render_s = 0.0
        for index, action in enumerate(chunk):
            # The next decision sees only a chunk's last steps; its first one is observed above.
            if index > max(0, len(chunk) - obs_horizon):
                started = time.perf_counter()
                observations.append(_observe(env))
                render_s += time.perf_counter() - started
            outcome = env.step(action)
            steps += 1
            total_reward += outcome.reward
            if outcome.success or outcome.truncated or steps >= max_steps:
                return EpisodeResult(
                    seed=seed, success=outcome.success, steps=steps, reward=total_reward
                )


def decide(
    agent: VLAAgent,
    observations: list[Observation],
    noise: Tensor,
    num_evaluations: int,
    log: DecisionLog,
) -> Float32[np.ndarray, "n a"]:
    """Return the next `num_action_steps` actions, in the manifest's units.

    How far the head disagrees with itself is measured after the clock has stopped: it takes three
    more passes, which no robot would need.

    Args:
        agent: a policy that holds its encoder.
        observations: the latest steps, the current one last; where the episode is younger than
            `obs_horizon`, its first step is repeated, as in the training windows.
        noise: [1, draws, horizon, a], from `VLAAgent.noise`.
        num_evaluations: passes through the head.
        log: takes the durations and the disagreement.
    """
    missing = agent.config.obs_horizon - len(observations)
    padded = [observations[0]] * missing + observations
    started = time.perf_counter()
    features = agent.encode_views(torch.stack([seen.frames for seen in observations])).float()
    features = torch.cat([features[:1].expand(missing, -1, -1), features])
    encoded = time.perf_counter()
    state = torch.stack([seen.state for seen in padded])
    chunk = agent.predict(features[None], state[None], noise, num_evaluations)[0]
    log.encode.append(encoded - started)
    log.head.append(time.perf_counter() - encoded)
    residual = agent.additivity_residual(features[None], state[None], noise)
    if residual is not None:
        log.disagreement.append(residual.item())
    return chunk[: agent.config.num_action_steps].numpy()


def _observe(env: RobotEnv) -> Observation:
    return Observation(
        frames=resize_frames(torch.from_numpy(env.render())),
        state=torch.from_numpy(env.state()),
    )
