"""The live loop: render, encode with the training's own encoder, decide, act.

Results depend on seeds alone: a frame's features do not depend on the other frames of a batch, and
every episode has decisions of its own. So an interrupted rollout resumes with the missing episodes,
and its result equals that of an uninterrupted one, except for the measured times.
"""

import importlib.metadata
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from tqdm import tqdm

from pipeline.errors import ConfigError, RunError
from pipeline.processes import AnyWorker, LocalWorker, ready, workers
from pipeline.progress import Estimate
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED, RobotEnv
from pipeline.rollout.envs.registry import definition, envs_of, make_env
from pipeline.rollout.gate.camera_check import CameraCheck
from pipeline.rollout.gate.camera_verdict import CameraCheckMode, CameraCheckResult, StartFinding
from pipeline.rollout.gate.checks import (
    Gate,
    PolicyConfig,
    check_action_bounds,
    check_env,
    load_policy,
)
from pipeline.rollout.play.decide import Episode, decide
from pipeline.rollout.play.episode import EpisodePlayer, Progress
from pipeline.rollout.play.journal import RESULT, FinishedEpisode, Journal
from pipeline.rollout.play.result import (
    Disagreement,
    EpisodeResult,
    Latency,
    RolloutResult,
    success_fields,
)
from pipeline.rollout.play.tasks import InstructionSource, Queue, TaskPlayer, instruction_for
from pipeline.rollout.play.video import require_encoder
from pipeline.storage.local import write_json
from pipeline.storage.locks import sole_writer
from pipeline.training.run.folder import RunDescription, run_hash
from policy.agent import VLAAgent
from policy.spec import FRAME_SIZE

logger = logging.getLogger(__name__)


class RolloutConfig(PolicyConfig):
    """What to roll out, where, and how often."""

    envs: tuple[str, ...] = Field(min_length=1)
    """Environments and suites: `metaworld/drawer-open-v3`, `libero/libero_object`."""
    out: Path
    """Folder for `result.json`, `eval_info.json`, `episodes.jsonl`, `videos` and `paths`."""
    episodes: int = Field(default=50, ge=1)
    """Episodes of each environment, each with its own seed."""
    first_seed: int = FIRST_ROLLOUT_SEED
    """Seed of the first episode; recordings only use smaller ones than the default."""
    num_envs: int = Field(default=1, ge=1)
    """Environments at once, each in a process of its own; changes the speed, never the results."""
    render_size: int = FRAME_SIZE[0]
    """Width and height in pixels of rendered images, before they are resized for the encoder."""
    max_steps: int | None = Field(default=None, ge=1)
    """Control steps until an episode counts as failed; None is the simulator's own limit."""
    videos: Literal["all", "failed", "none"] | Annotated[int, Field(ge=0)] = 1
    """Which episodes have a video: a number is that many of the first of each environment."""
    override_gate: bool = False
    """Continue with another encoder or control rate; the result lists it as an alarm."""
    instruction_source: InstructionSource = "own"
    """Each environment's own instruction, that of another task of the training, or an empty one."""
    instruction: str | None = None
    """These words instead."""

    @property
    def seeds(self) -> range:
        """The seeds of each environment."""
        return range(self.first_seed, self.first_seed + self.episodes)

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
            has acted.
        WorkerLostError: a simulator's process ended.
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
    description, agent, step = load_policy(config, gate)
    nfe, words = agent.evaluations(config.nfe), config.instruction
    if agent.language is None and (config.instruction_source, config.instruction) != ("own", None):
        raise ConfigError(f"{config.run}: expected no instruction: the policy takes none")
    encoder = agent.encoder
    assert encoder is not None
    check = None
    if config.camera_check != "off":
        check = CameraCheck.from_run(config.run, description)
    tasks = _Tasks(config, description, agent.config.obs_horizon, envs_of(config.envs))
    env = tasks.build_env(tasks.names[0])
    try:
        max_steps = tasks.admit(env, agent, gate)
        for suite in config.envs[1:]:
            with closing(tasks.build_env(envs_of([suite])[0])) as other:
                max_steps = max(max_steps, tasks.admit(other, agent, gate))
        journal = Journal(config.out, _identity(config, agent, step))
        # Nothing was refused: the files of another rollout are replaced.
        journal.begin()
        kept = [episode.result for episode in journal.episodes]
        _clear(config.out, {result.file for result in kept})
        if kept:
            logger.warning("%s: resuming after %d finished episodes", config.out, len(kept))
        done = {(tasks.env(result), result.seed) for result in kept}
        queue = Queue(tasks.names, config.seeds, done)
        started = time.monotonic()
        count = min(config.num_envs, len(queue))
        logger.info(
            "rolling out %s (step %d) in %s: %d episodes of at most %d steps, on %s",
            config.run,
            step,
            ", ".join(config.envs),
            len(queue),
            max_steps,
            agent.device,
        )
        with (
            nullcontext([LocalWorker(TaskPlayer(tasks.build, env.name, tasks.player(env)))])
            if count == 1  # spares a process
            else workers(partial(TaskPlayer, tasks.build), count)
        ) as players:
            for episode in play_episodes(agent, players, queue, config, nfe=nfe, check=check):
                journal.append(episode)
        finished = sorted(
            journal.episodes, key=lambda e: (tasks.names.index(tasks.env(e.result)), e.result.seed)
        )
        result = RolloutResult(
            env=", ".join(config.envs),
            instruction_source=config.instruction_source if words is None else words,
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
            **_sum_up(finished, config.camera_check),
        )
        _write(result, config.out, seconds=time.monotonic() - started)
    finally:
        env.close()
    return result


@dataclass(frozen=True)
class _Tasks:
    """Builds the environments of a rollout, here or in another process."""

    config: RolloutConfig
    description: RunDescription
    obs_horizon: int
    names: tuple[str, ...]

    def build_env(self, name: str) -> RobotEnv:
        config, data = self.config, self.description
        return make_env(name, data.spec.view_names, config.render_size, data.data.fit)

    def admit(self, env: RobotEnv, agent: VLAAgent, gate: Gate) -> int:
        """Refuse an environment that does not fit; return the control steps of its episodes."""
        check_env(self.description, env, gate)
        check_action_bounds(agent, env)
        return self._max_steps(env)

    def build(self, name: str) -> EpisodePlayer:
        env = self.build_env(name)
        check_env(self.description, env, Gate(is_overridden=self.config.override_gate))
        return self.player(env)

    def player(self, env: RobotEnv) -> EpisodePlayer:
        words = self.config.instruction
        return EpisodePlayer(
            env,
            obs_horizon=self.obs_horizon,
            max_steps=self._max_steps(env),
            out=self.config.out,
            fit=self.description.data.fit,
            task=env.name if len(self.names) > 1 else "",
            instruction=instruction_for(
                env, self.description, source=self.config.instruction_source, words=words
            ),
        )

    def env(self, result: EpisodeResult) -> str:
        """Return the environment of an episode."""
        return result.task or self.names[0]

    def _max_steps(self, env: RobotEnv) -> int:
        return min(self.config.max_steps or env.max_steps, env.max_steps)


def _sum_up(finished: Sequence[FinishedEpisode], mode: CameraCheckMode) -> dict[str, Any]:
    """Return the fields of a result that sum up its episodes."""
    episodes = tuple(episode.result for episode in finished)
    return {
        "episodes": episodes,
        **success_fields(episodes),
        "render_s": Latency.of([s for episode in finished for s in episode.render_s]),
        "encode_s": Latency.of([s for episode in finished for s in episode.encode_s]),
        "head_s": Latency.of([s for episode in finished for s in episode.head_s]),
        "disagreement": Disagreement.of([d for episode in finished for d in episode.disagreement]),
        "camera_check": CameraCheckResult(
            mode=mode,
            starts=tuple(
                episode.start.model_copy(update={"task": episode.result.task})
                for episode in finished
                if episode.start is not None
            ),
        ),
    }


def _write(result: RolloutResult, out: Path, *, seconds: float) -> None:
    write_json(out / "eval_info.json", result.eval_info(out, seconds))
    write_json(out / RESULT, result.model_dump(mode="json"))


def _identity(config: RolloutConfig, agent: VLAAgent, step: int) -> dict[str, object]:
    """Return all that decides the episodes of a rollout, as JSON has it."""
    assert agent.encoder is not None
    return {
        "config": config.model_dump(mode="json", exclude={"run", "out", "num_envs", "device"}),
        "run": run_hash(config.run),
        "checkpoint_step": step,
        "encoder": agent.encoder.identity.fingerprint,
        "environment": agent.encoder.environment.digest(),
        "envs": [definition(env) for env in config.envs],
        "code_version": importlib.metadata.version("frozen-vla"),
    }


def _clear(out: Path, kept: Collection[Path]) -> None:
    """Remove an earlier rollout's files from a folder, except videos and paths of some episodes."""
    for name in (RESULT, "eval_info.json"):
        (out / name).unlink(missing_ok=True)
    for folder, kind in (("videos", ".mp4"), ("paths", ".png")):
        for pattern in ("", "*/"):  # of one environment, and of several
            for path in (out / folder).glob(f"{pattern}.seed_*.partial"):
                path.unlink()
            for path in (out / folder).glob(f"{pattern}seed_*{kind}"):
                if path.relative_to(out / folder).with_suffix("") not in kept:
                    path.unlink()


def play_episodes(
    agent: VLAAgent,
    players: Sequence[AnyWorker],
    queue: Queue,
    config: RolloutConfig,
    *,
    nfe: int,
    check: CameraCheck | None = None,
) -> Iterator[FinishedEpisode]:
    """Play the episodes of a queue, as many at once as there are players, each with a `TaskPlayer`.

    `check` compares an episode's first frames with the training's; None compares nothing.

    Yields:
        Each episode when it has finished.

    Raises:
        CameraMismatchError: what the cameras show at an episode's start is not what they showed
            in training, and `config` refuses that; no action of it was taken.
        EnvError: a simulator fails before the policy has acted.
        WorkerLostError: a simulator's process ended.
    """
    solved = played = 0
    playing: dict[AnyWorker, Episode] = {}
    built: dict[AnyWorker, str] = {}

    def begin(player: AnyWorker) -> None:
        following = queue.next(built.get(player))
        if following is None:
            playing.pop(player, None)
            return
        built[player], seed = following
        playing[player] = Episode(seed)
        player.send("begin", built[player], seed, config.video(seed))

    waiting = len(queue)
    for player in players:
        begin(player)
    estimate = Estimate(waiting, "episode")
    with tqdm(
        total=queue.total,
        initial=queue.total - waiting,
        desc="roll out",
        unit="episode",
        disable=None,
    ) as progress_bar:
        while playing:
            undecided: list[tuple[AnyWorker, Progress]] = []
            for player in ready(list(playing)):
                progress: Progress = player.receive()
                if progress.result is None:
                    episode = playing[player]
                    if check is not None and episode.decisions == 0:
                        frames = progress.observations[-1].frames
                        verdict = check.admit(
                            frames, config.camera_check, scenes_differ=queue.has_several_envs
                        )
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
