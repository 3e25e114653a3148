"""The live loop: render, encode with the training's own encoder, decide, act.

Results depend on seeds alone: a frame's features do not depend on the other frames of a batch, and
every episode has decisions of its own. So an interrupted rollout resumes with the missing episodes,
and its result equals that of an uninterrupted one, except for the measured times.
"""

import importlib.metadata
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from pipeline.errors import ConfigError, RunError
from pipeline.progress import Estimate
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED, RobotEnv
from pipeline.rollout.envs.registry import definition, make_env
from pipeline.rollout.gate.camera_check import CameraCheck
from pipeline.rollout.gate.camera_verdict import CameraCheckMode, CameraCheckResult, StartFinding
from pipeline.rollout.gate.checks import Gate, check_action_bounds, check_env, load_policy
from pipeline.rollout.play.decide import Episode, decide
from pipeline.rollout.play.episode import EpisodePlayer, Progress
from pipeline.rollout.play.journal import RESULT, FinishedEpisode, Journal
from pipeline.rollout.play.processes import AnyWorker, LocalWorker, ready, workers
from pipeline.rollout.play.result import (
    Disagreement,
    Latency,
    RolloutResult,
    wilson_interval,
)
from pipeline.rollout.play.video import require_encoder
from pipeline.storage.local import write_json
from pipeline.storage.locks import sole_writer
from pipeline.training.run.folder import RunDescription, run_hash
from policy.agent import VLAAgent
from policy.spec import FRAME_SIZE

logger = logging.getLogger(__name__)


class RolloutConfig(BaseModel):
    """What to roll out, where, and how often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Path
    """Folder of a training run."""
    env: str
    """Environment, as `metaworld/drawer-open-v3`."""
    out: Path
    """Folder for `result.json`, `eval_info.json`, `episodes.jsonl`, `videos` and `paths`."""
    episodes: int = Field(default=50, ge=1)
    """Episodes, each with its own seed."""
    first_seed: int = FIRST_ROLLOUT_SEED
    """Seed of the first episode; recordings only use smaller ones than the default."""
    num_envs: int = Field(default=1, ge=1)
    """Environments at once, each in a process of its own; changes the speed, never the results."""
    render_size: int = FRAME_SIZE[0]
    """Width and height in pixels of rendered images, before they are resized for the encoder."""
    checkpoint: str = "latest"
    """`latest`, `best` or a step."""
    nfe: int | None = Field(default=None, ge=1)
    """Number of function evaluations per decision; None is the objective's own."""
    max_steps: int | None = Field(default=None, ge=1)
    """Control steps until an episode counts as failed; None is the simulator's own limit."""
    videos: Literal["all", "failed", "none"] | Annotated[int, Field(ge=0)] = 1
    """Which episodes have a video: a number is that many of the first."""
    camera_check: CameraCheckMode = "refuse"
    """What to do where the cameras do not show what training showed."""
    override_gate: bool = False
    """Continue with another encoder or control rate; the result lists it as an alarm."""
    encoder: str | None = None
    """Path or name of the encoder; None is the name the run was trained with."""
    device: str = "auto"
    """Where encoder and head run: `auto`, or torch's name of a device."""

    def video(self, seed: int) -> str:
        """Return the argument of `EpisodePlayer.begin` for an episode."""
        if isinstance(self.videos, int):
            return "all" if seed - self.first_seed < self.videos else "none"
        return self.videos


def roll_out(config: RolloutConfig) -> RolloutResult:
    """Run every episode and write `result.json`, which appears only when all are done.

    Finished episodes are written at once, to `episodes.jsonl`. The same rollout in the same folder
    resumes after them if it was interrupted; any other rollout, and the same one after it was
    complete, starts anew.

    Raises:
        RunError, EncoderLoadError, EncoderMismatchError: the policy cannot be loaded faithfully,
            or another rollout writes to the same folder.
        EnvError: the simulator cannot be built, does not fit the policy, fails before the policy
            has acted, or its process ended.
        ConfigError: a seed may have been seen in training.
        AgentMismatchError: the policy's objective cannot take that NFE.
        CameraMismatchError: see `play_episodes`.
        MissingExtraError: videos are requested and cannot be made.
    """
    if config.first_seed < FIRST_ROLLOUT_SEED:
        raise ConfigError(
            f"--seed: expected {FIRST_ROLLOUT_SEED} or more, found {config.first_seed}, which a "
            f"recording may have used"
        )
    if config.videos not in ("none", 0):
        require_encoder()
    config.out.mkdir(parents=True, exist_ok=True)
    with sole_writer(config.out, RunError):
        return _roll_out(config)


def _roll_out(config: RolloutConfig) -> RolloutResult:
    gate = Gate(is_overridden=config.override_gate)
    description, agent, step = load_policy(
        config.run,
        encoder=config.encoder,
        device=config.device,
        checkpoint=config.checkpoint,
        gate=gate,
    )
    nfe = agent.evaluations(config.nfe)
    encoder = agent.encoder
    assert encoder is not None
    check = None
    if config.camera_check != "off":
        check = CameraCheck.from_run(config.run, description)
    fit = description.data.fit
    build_env = partial(make_env, config.env, description.spec.view_names, config.render_size, fit)
    env = build_env()
    try:
        check_env(description, env, gate)
        check_action_bounds(agent, env)
        max_steps = min(config.max_steps or env.max_steps, env.max_steps)
        journal = Journal(config.out, _identity(config, description, agent, step, max_steps))
        player = partial(
            EpisodePlayer,
            obs_horizon=agent.config.obs_horizon,
            max_steps=max_steps,
            out=config.out,
            fit=fit,
        )
        # Nothing was refused: the files of another rollout are replaced.
        kept = {episode.result.seed for episode in journal.episodes}
        journal.begin()
        _clear(config.out, kept)
        if kept:
            logger.warning("%s: resuming after %d finished episodes", config.out, len(kept))
        started = time.monotonic()
        count = min(config.num_envs, config.episodes - len(kept))
        logger.info(
            "rolling out %s (step %d) in %s: %d episodes of at most %d steps, on %s",
            config.run,
            step,
            config.env,
            config.episodes - len(kept),
            max_steps,
            agent.device,
        )
        with (
            nullcontext([LocalWorker(player(env))])  # spares a process
            if count == 1
            else workers(partial(_build_player, player, build_env), count)
        ) as players:
            for episode in play_episodes(agent, players, config, nfe=nfe, done=kept, check=check):
                journal.append(episode)
        result = RolloutResult(
            env=config.env,
            run=config.run.resolve().name,
            checkpoint_step=step,
            nfe=nfe,
            max_steps=max_steps,
            encoder=encoder.identity,
            dataset=description.data.name,
            store_digest=description.data.store_digest,
            code_version=importlib.metadata.version("frozen-vla"),
            render_size=config.render_size,
            num_envs=config.num_envs,
            gate_overridden=tuple(gate.overridden),
            **_sum_up(journal.episodes, config.camera_check),
        )
        _write(result, config.out, seconds=time.monotonic() - started)
    finally:
        env.close()
    return result


def _build_player(
    player: Callable[[RobotEnv], EpisodePlayer], build_env: Callable[[], RobotEnv]
) -> EpisodePlayer:
    return player(build_env())


def _sum_up(episodes: Sequence[FinishedEpisode], mode: CameraCheckMode) -> dict[str, Any]:
    """Return the fields of a result that sum up its episodes, in the order of their seeds."""
    finished = sorted(episodes, key=lambda episode: episode.result.seed)
    solved = sum(episode.result.success for episode in finished)
    return {
        "episodes": tuple(episode.result for episode in finished),
        "success_rate": solved / len(finished),
        "success_interval": wilson_interval(solved, len(finished)),
        "render_s": Latency.of([s for episode in finished for s in episode.render_s]),
        "encode_s": Latency.of([s for episode in finished for s in episode.encode_s]),
        "head_s": Latency.of([s for episode in finished for s in episode.head_s]),
        "disagreement": Disagreement.of([d for episode in finished for d in episode.disagreement]),
        "camera_check": CameraCheckResult(
            mode=mode,
            starts=tuple(episode.start for episode in finished if episode.start is not None),
        ),
    }


def _write(result: RolloutResult, out: Path, *, seconds: float) -> None:
    names = [f"videos/seed_{episode.seed}.mp4" for episode in result.episodes]
    videos = [out / name for name in names if (out / name).exists()]
    write_json(out / "eval_info.json", result.eval_info(videos, seconds))
    write_json(out / RESULT, result.model_dump(mode="json"))


def _identity(
    config: RolloutConfig, description: RunDescription, agent: VLAAgent, step: int, max_steps: int
) -> dict[str, object]:
    """Return all that decides the episodes of a rollout, as JSON has it."""
    assert agent.encoder is not None
    return {
        "config": config.model_dump(mode="json", exclude={"run", "out", "num_envs", "device"}),
        "run": run_hash(config.run),
        "checkpoint_step": step,
        "max_steps": max_steps,
        "encoder": agent.encoder.identity.fingerprint,
        "environment": agent.encoder.environment.digest(),
        "env": definition(config.env),
        "code_version": importlib.metadata.version("frozen-vla"),
    }


def _clear(out: Path, kept: Collection[int]) -> None:
    """Remove an earlier rollout's files from a folder, except videos and paths of some seeds."""
    for name in (RESULT, "eval_info.json"):
        (out / name).unlink(missing_ok=True)
    for path in out.glob("videos/.seed_*.partial"):
        path.unlink()
    for pattern in ("videos/seed_*.mp4", "paths/seed_*.png"):
        for path in out.glob(pattern):
            if path.stem not in {f"seed_{seed}" for seed in kept}:
                path.unlink()


def play_episodes(
    agent: VLAAgent,
    players: Sequence[AnyWorker],
    config: RolloutConfig,
    *,
    nfe: int,
    done: Collection[int] = (),
    check: CameraCheck | None = None,
) -> Iterator[FinishedEpisode]:
    """Play every episode of a rollout, as many at once as there are players.

    Args:
        agent: a policy that holds its encoder.
        players: workers that each hold an `EpisodePlayer`.
        config: of the rollout.
        nfe: number of function evaluations per decision.
        done: seeds that were played before.
        check: compares an episode's first frames with the training's; None compares nothing.

    Yields:
        Each episode when it has finished.

    Raises:
        CameraMismatchError: what the cameras show at an episode's start is not what they showed
            in training, and `config` refuses that; no action of it was taken.
        EnvError: a simulator fails before the policy has acted, or its process ended.
    """
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    waiting = iter([seed for seed in seeds if seed not in done])
    solved = played = 0
    playing: dict[AnyWorker, Episode] = {}

    def begin(player: AnyWorker) -> None:
        seed = next(waiting, None)
        if seed is None:
            playing.pop(player, None)
            return
        playing[player] = Episode(seed)
        player.send("begin", seed, config.video(seed))

    for player in players:
        begin(player)
    estimate = Estimate(config.episodes - len(done), "episode")
    with tqdm(
        total=config.episodes, initial=len(done), desc="roll out", unit="episode", disable=None
    ) as progress_bar:
        while playing:
            undecided: list[tuple[AnyWorker, Progress]] = []
            for player in ready(list(playing)):
                progress: Progress = player.receive()
                if progress.result is None:
                    episode = playing[player]
                    if check is not None and episode.decisions == 0:
                        frames = progress.observations[-1].frames
                        verdict = check.admit(frames, config.camera_check)
                        episode.start = StartFinding(seed=episode.seed, verdict=verdict)
                    undecided.append((player, progress))
                    continue
                if progress.result.failure is not None:
                    logger.warning("%s; the episode counts as not solved", progress.result.failure)
                solved, played = solved + progress.result.success, played + 1
                progress_bar.update()
                estimate.advance()
                progress_bar.set_postfix(solved=f"{solved}/{played}")
                yield playing[player].finished(progress.result)
                begin(player)
            if not undecided:
                continue
            chunks = decide(
                agent,
                [progress for _, progress in undecided],
                [playing[player] for player, _ in undecided],
                nfe=nfe,
            )
            for (player, _), chunk in zip(undecided, chunks, strict=True):
                player.send("act", chunk)
