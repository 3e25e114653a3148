"""The live loop: look, encode through the training's own encoder, decide, act.

Knows players and a loaded policy; nothing about how either was made. Results depend on seeds
alone: features of a frame are the same in any company, and every episode has decisions of its own.
"""

import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from pipeline.errors import ConfigError
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED
from pipeline.rollout.envs.registry import make_env
from pipeline.rollout.gate.camera_check import CameraCheck
from pipeline.rollout.gate.camera_verdict import CameraCheckMode, CameraCheckResult, StartFinding
from pipeline.rollout.gate.checks import Gate, check_env, load_policy
from pipeline.rollout.play.episode import Observation, Progress
from pipeline.rollout.play.eval_info import eval_info
from pipeline.rollout.play.players import Player, PlayerConfig, players, ready
from pipeline.rollout.play.result import (
    Disagreement,
    EpisodeResult,
    Latency,
    RolloutResult,
    wilson_interval,
)
from pipeline.rollout.play.video import require_encoder
from pipeline.storage.local import write_json
from pipeline.training.data.sampling import seeded_generator
from policy.agent import VLAAgent
from policy.spec import FRAME_SIZE


class RolloutConfig(BaseModel):
    """What to roll out, where, and how often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Path
    """Folder of a training run."""
    env: str
    """Environment, as `metaworld/drawer-open-v3`."""
    out: Path
    """Folder for `result.json`, `eval_info.json`, `videos` and `paths`."""
    episodes: int = Field(default=50, ge=1)
    """Episodes, each with its own seed."""
    first_seed: int = FIRST_ROLLOUT_SEED
    """Seed of the first episode; recordings only use smaller ones than the default."""
    num_envs: int = Field(default=1, ge=1)
    """Environments at once, each in a process of its own; changes the speed, never the results."""
    render_size: int = FRAME_SIZE[0]
    """Width and height in pixels of the pictures, before they are brought to the encoder's size."""
    checkpoint: str = "latest"
    """`latest`, `best` or a step."""
    num_evaluations: int | None = Field(default=None, ge=1)
    """Passes through the head a decision; None is the objective's own number."""
    max_steps: int | None = Field(default=None, ge=1)
    """Control steps until an episode counts as failed; None is the simulator's own limit."""
    videos: Literal["all", "failed", "none"] | Annotated[int, Field(ge=0)] = 1
    """Which episodes are filmed: a number means that many of the first."""
    camera_check: CameraCheckMode = "refuse"
    """What follows where the cameras do not show what training showed."""
    override_gate: bool = False
    """Go on with another encoder or control rate; the result says so."""
    encoder: str | None = None
    """Where the encoder is now; None takes the name the run was trained with."""
    device: str = "auto"
    """Where encoder and head run: `auto`, or torch's name of a device."""

    def film(self, seed: int) -> str:
        """Return what `EpisodePlayer.begin` is told about an episode."""
        if isinstance(self.videos, int):
            return "all" if seed - self.first_seed < self.videos else "none"
        return self.videos


@dataclass
class DecisionLog:
    """What every decision took, in seconds, and showed."""

    render: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)
    disagreement: list[float] = field(default_factory=list)
    starts: list[StartFinding] = field(default_factory=list)


@dataclass
class Episode:
    """One that is being played."""

    seed: int
    decisions: int = 0


def roll_out(config: RolloutConfig) -> RolloutResult:
    """Run every episode and write `result.json`, which appears only when all are done.

    Raises:
        RunError, EncoderLoadError, EncoderMismatchError: the policy cannot be loaded faithfully.
        EnvError: the simulator cannot be built, does not fit the policy, or its process ended.
        ConfigError: a seed may have been seen in training.
        AgentMismatchError: the policy's objective cannot take that many passes through the head.
        CameraMismatchError: see `play_episodes`.
        MissingExtraError: films are asked for and cannot be made.
    """
    if config.first_seed < FIRST_ROLLOUT_SEED:
        raise ConfigError(
            f"seed {config.first_seed}: recordings may have used it, want {FIRST_ROLLOUT_SEED} or "
            f"more"
        )
    if config.videos not in ("none", 0):
        require_encoder()
    config.out.mkdir(parents=True, exist_ok=True)  # before hours of episodes, not after
    gate = Gate(is_overridden=config.override_gate)
    description, agent, step = load_policy(
        config.run,
        encoder=config.encoder,
        device=config.device,
        checkpoint=config.checkpoint,
        gate=gate,
    )
    num_evaluations = agent.evaluations(config.num_evaluations)
    encoder = agent.encoder
    assert encoder is not None
    check = None
    if config.camera_check != "off":
        check = CameraCheck.from_run(config.run, description)
    env = make_env(config.env, description.spec.view_names, config.render_size)
    try:
        check_env(description, env, gate)
        max_steps = min(config.max_steps or env.max_steps, env.max_steps)
        log = DecisionLog()
        player_config = PlayerConfig(
            env=config.env,
            views=description.spec.view_names,
            render_size=config.render_size,
            obs_horizon=agent.config.obs_horizon,
            max_steps=max_steps,
            out=config.out,
        )
        _clear(config.out)  # nothing was refused: what was here before is replaced
        started = time.monotonic()
        with players(player_config, env, min(config.num_envs, config.episodes)) as crew:
            episodes = play_episodes(
                agent, crew, config, num_evaluations=num_evaluations, log=log, check=check
            )
        seconds = time.monotonic() - started
    finally:
        env.close()
    solved = sum(episode.success for episode in episodes)
    result = RolloutResult(
        env=config.env,
        run=config.run.resolve().name,
        checkpoint_step=step,
        num_evaluations=num_evaluations,
        max_steps=max_steps,
        encoder=encoder.identity,
        dataset=description.data.name,
        store_digest=description.data.store_digest,
        code_version=importlib.metadata.version("frozen-vla"),
        render_size=config.render_size,
        num_envs=config.num_envs,
        gate_overridden=tuple(gate.overridden),
        episodes=tuple(episodes),
        success_rate=solved / len(episodes),
        success_interval=wilson_interval(solved, len(episodes)),
        render_s=Latency.of(log.render),
        encode_s=Latency.of(log.encode),
        head_s=Latency.of(log.head),
        disagreement=Disagreement.of(log.disagreement),
        camera_check=CameraCheckResult(
            mode=config.camera_check,
            starts=tuple(sorted(log.starts, key=lambda start: start.seed)),
        ),
    )
    names = [f"videos/seed_{episode.seed}.mp4" for episode in episodes]
    videos = [config.out / name for name in names if (config.out / name).exists()]
    write_json(config.out / "eval_info.json", eval_info(result, videos, seconds))
    write_json(config.out / "result.json", result.model_dump(mode="json"))
    return result


def _clear(out: Path) -> None:
    """Take away what an earlier rollout left in a folder."""
    for name in ("result.json", "eval_info.json"):
        (out / name).unlink(missing_ok=True)
    for pattern in ("videos/seed_*.mp4", "videos/.seed_*.partial", "paths/seed_*.png"):
        for path in out.glob(pattern):
            path.unlink()


def play_episodes(
    agent: VLAAgent,
    crew: Sequence[Player],
    config: RolloutConfig,
    *,
    num_evaluations: int,
    log: DecisionLog,
    check: CameraCheck | None = None,
) -> list[EpisodeResult]:
    """Play every episode of a rollout, as many at once as there are players; in seed order.

    Raises:
        CameraMismatchError: what the cameras show at an episode's start is not what they showed
            in training, and `config` says to refuse that; no action of it was taken.
        EnvError: a simulator's process ended.
    """
    waiting = iter(range(config.first_seed, config.first_seed + config.episodes))
    found: dict[int, EpisodeResult] = {}
    playing: dict[Player, Episode] = {}

    def begin(player: Player) -> None:
        seed = next(waiting, None)
        if seed is None:
            playing.pop(player, None)
            return
        playing[player] = Episode(seed)
        player.begin(seed, config.film(seed))

    for player in crew:
        begin(player)
    with tqdm(total=config.episodes, desc="roll out", unit="episode", disable=None) as progress_bar:
        while playing:
            answers = {player: player.answer() for player in ready(list(playing))}
            undecided: list[tuple[Player, Progress]] = []
            for player, progress in answers.items():
                if progress.result is None:
                    _check_start(playing[player], progress, config.camera_check, check, log)
                    undecided.append((player, progress))
                    continue
                found[progress.result.seed] = progress.result
                progress_bar.update()
                solved = sum(result.success for result in found.values())
                progress_bar.set_postfix(solved=f"{solved}/{len(found)}")
                begin(player)
            if not undecided:
                continue
            chunks = decide(
                agent,
                [progress for _, progress in undecided],
                [playing[player] for player, _ in undecided],
                num_evaluations=num_evaluations,
                log=log,
            )
            for (player, _), chunk in zip(undecided, chunks, strict=True):
                playing[player].decisions += 1
                player.act(chunk)
    return [found[seed] for seed in sorted(found)]


def decide(
    agent: VLAAgent,
    seen: list[Progress],
    episodes: list[Episode],
    *,
    num_evaluations: int,
    log: DecisionLog,
) -> list[Float32[np.ndarray, "n a"]]:
    """Return the next `num_action_steps` actions of some episodes, in the manifest's units.

    Views are encoded together, and what one decision waits for is the time of all. The head
    decides on each alone: its last bits depend on how many rows a product has. How far it
    disagrees with itself is measured after the clock has stopped: it takes three more passes,
    which no robot would need.

    Args:
        agent: a policy that holds its encoder.
        seen: the latest observation steps of each episode.
        episodes: whose they are; seed and number of the decision decide the noise.
        num_evaluations: passes through the head.
        log: takes the durations and the disagreement.
    """
    observations = [observation for progress in seen for observation in progress.observations]
    frames = np.stack([observation.frames for observation in observations])
    started = time.perf_counter()
    encoded = agent.encode_views(frames)
    encode_s = time.perf_counter() - started
    chunks = []
    first = 0
    for progress, episode in zip(seen, episodes, strict=True):
        steps = slice(first, first := first + len(progress.observations))
        features = {name: rows[steps] for name, rows in encoded.items()}
        draw = seeded_generator(episode.seed, "decision", episode.decisions)
        noise = agent.noise(1, draw, num_evaluations).to(agent.device)
        started = time.perf_counter()
        window = _window(agent, features, progress.observations)
        chunk = agent.predict(*window, noise, num_evaluations)[0]
        log.head.append(time.perf_counter() - started)
        log.encode.append(encode_s)
        log.render.append(progress.render_s)
        residual = agent.additivity_residual(*window, noise)
        if residual is not None:
            log.disagreement.append(residual.item())
        chunks.append(chunk[: agent.config.num_action_steps].cpu().numpy())
    return chunks


def _check_start(
    episode: Episode,
    progress: Progress,
    mode: CameraCheckMode,
    check: CameraCheck | None,
    log: DecisionLog,
) -> None:
    if check is None or episode.decisions > 0:
        return
    verdict = check.admit(progress.observations[-1].frames, mode)
    log.starts.append(StartFinding(seed=episode.seed, verdict=verdict))


def _window(
    agent: VLAAgent, features: dict[str, Tensor], observations: tuple[Observation, ...]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return features and state as a batch of one; a young episode's first step is repeated.

    As in the training windows.
    """
    missing = agent.config.obs_horizon - len(observations)
    state = torch.from_numpy(np.stack([observation.state for observation in observations]))

    def padded(steps: Tensor) -> Tensor:
        return torch.cat([steps[:1].expand(missing, *steps.shape[1:]), steps])[None]

    window = {name: padded(steps) for name, steps in features.items()}
    return window, padded(state.to(agent.device))
