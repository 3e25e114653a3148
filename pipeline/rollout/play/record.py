"""Record a scripted expert: one lossless HDF5 file per seed, several at a time, resumable.

The set of recorded seeds depends on the request alone, never on timing: the first N seeds, from
`first_seed` on, that the expert solves; or the first N, where failures are kept.
"""

import json
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field
from tqdm import tqdm

from pipeline.datasets.hdf5.recording import RecordedEpisode, read_label, write_episode
from pipeline.datasets.manifest.model import load_manifest
from pipeline.errors import ConfigError, DatasetError, EnvError
from pipeline.processes import AnyWorker, ready, workers
from pipeline.progress import Estimate
from pipeline.rollout.envs.base import DEFAULT_RENDER_SIZE, FIRST_ROLLOUT_SEED, ExpertEnv
from pipeline.rollout.envs.registry import envs_of, make_expert_env
from pipeline.rollout.play.manifest import layout_of, manifest_of
from pipeline.storage.local import write_atomically, write_json
from policy.images import resize_images
from policy.spec import FrozenModel

logger = logging.getLogger(__name__)

MANIFEST_NAME: Final = "manifest.toml"
FAILURES_NAME: Final = "failed_seeds.json"
ATTEMPTS_PER_EPISODE: Final = 3  # seeds tried at most, per requested episode
Keep = Literal["successes", "all"]


class RecordConfig(FrozenModel):
    """What to record, and where."""

    env: str
    """What `make_env` takes, or a suite: `metaworld/drawer-open-v3`, `libero/libero_object`."""
    views: tuple[str, ...]
    """Cameras, at least one, in the order in which the policy will see them."""
    episodes: Annotated[int, Field(ge=1)]
    """Demonstrations to record, of each task; a larger number later adds to the same folder."""
    out: Path
    """Folder of the recordings (a suite's: one per task) and `manifest.toml`; may exist."""
    keep: Keep = "successes"
    """`all` keeps episodes that the expert fails, up to the time limit, each marked in its file: to
    look at, not to imitate."""
    render_size: int = DEFAULT_RENDER_SIZE
    """Width and height in pixels of rendered images; recorded at 256x256, as rollouts see them."""
    first_seed: Annotated[int, Field(ge=0)] = 0
    """The first seed tried; all stay below the seeds of rollouts."""
    workers: Annotated[int, Field(ge=1)] = Field(default_factory=lambda: os.cpu_count() or 1)
    """Processes, each with its own simulator; changes the speed, never the recordings."""


@dataclass(frozen=True)
class RecordReport:
    """What a recording session did."""

    manifest: Path
    """The manifest for `vla-embed`."""
    episodes: int
    """Demonstrations in the folder."""
    recorded: int
    """Of these, recorded by this call."""
    steps: int
    """Control steps recorded by this call."""
    failed_seeds: tuple[int, ...]
    """Seeds not solved by the expert, task by task; in the folder only where failures are kept."""
    seconds: float

    def summary(self) -> str:
        """Return in one line what was recorded and what to do next."""
        failed = f", {len(self.failed_seeds)} seeds not solved by the expert" * bool(
            self.failed_seeds
        )
        return (
            f"{self.episodes} episodes in {self.manifest.parent} ({self.recorded} new with "
            f"{self.steps} steps in {self.seconds:.0f} s{failed}); next: vla-embed {self.manifest} "
            "--store my.zarr"
        )


def record_dataset(config: RecordConfig) -> RecordReport:
    """Record demonstrations of a scripted expert, and write their manifest when all are there.

    An episode ends with the step that first solves the task. Recordings already in the folder are
    kept; after Ctrl-C only the running episodes are lost, and the same call resumes.

    Raises:
        ConfigError: no camera is named, seeds would reach those of rollouts, or the folder holds
            recordings that this request would not make; nothing is written then.
        DatasetError: a recording in the folder is damaged.
        OSError: a recording cannot be written.
        EnvError: the environment cannot be built, or its expert fails on too many seeds.
    """
    started = time.monotonic()
    if not config.views:
        raise ConfigError(
            f"views: expected at least one camera of {config.env}, found none; list the "
            "cameras that the policy will see"
        )
    last_seed = config.first_seed + ATTEMPTS_PER_EPISODE * config.episodes - 1
    if last_seed >= FIRST_ROLLOUT_SEED:
        raise ConfigError(
            f"first_seed: expected all of {ATTEMPTS_PER_EPISODE} x {config.episodes} seeds below "
            f"{FIRST_ROLLOUT_SEED}, where rollouts begin, found up to {last_seed}; lower first_seed"
        )
    tasks = _tasks(config)
    for task in tasks:
        _refuse_other_seeds(task.config, task.recorded, task.failed)
    # Built here once to name their errors in this process, before anything is written.
    with closing(make_expert_env(tasks[0].config.env, config.views, config.render_size)) as env:
        manifest = manifest_of(
            env,
            has_failures=config.keep == "all",
            render_size=config.render_size,
            name=config.env,
            folders=[str(task.config.out.relative_to(config.out)) for task in tasks],
        )
    for task in tasks[1:]:
        if task.num_missing:
            make_expert_env(task.config.env, config.views, config.render_size).close()
    manifest_file = config.out / MANIFEST_NAME
    earlier = load_manifest(manifest_file).manifest if manifest_file.exists() else manifest
    if earlier.to_dict() != manifest.to_dict():
        raise ConfigError(
            f"{manifest_file}: expected the manifest of {config.env} with views "
            f"{', '.join(config.views)}, keep={config.keep} and render size {config.render_size}, "
            "found another; record into another folder, or move it away"
        )
    num_missing = sum(task.num_missing for task in tasks)
    steps = _record_missing(config, tasks) if num_missing else 0
    if not manifest_file.exists():
        write_atomically(manifest_file, manifest.to_toml().encode())
    return RecordReport(
        manifest=manifest_file,
        episodes=sum(len(task.recorded) for task in tasks),
        recorded=num_missing,
        steps=steps,
        failed_seeds=tuple(seed for task in tasks for seed in sorted(task.failed)),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, eq=False)
class _Task:
    """One environment of a recording."""

    config: RecordConfig
    """Of this environment alone, in its own folder."""
    recorded: set[int]
    """Seeds that are recorded; grows."""
    failed: set[int]
    """Seeds that the expert did not solve; grows."""

    @property
    def num_missing(self) -> int:
        """Episodes still to record."""
        return self.config.episodes - len(self.recorded)


def _tasks(config: RecordConfig) -> list[_Task]:
    """Return the environments of a recording, each of a suite in a folder of its own."""
    found = []
    for env in envs_of([config.env]):
        out = config.out if env == config.env else config.out / env.rpartition("/")[2]
        own = config.model_copy(update={"env": env, "out": out})
        found.append(_Task(own, *_recorded_seeds(own)))
    return found


def _planned_seeds(config: RecordConfig, failed: set[int]) -> list[int]:
    """List the seeds that make up the dataset, as far as failures are known."""
    if config.keep == "all":
        return [*range(config.first_seed, config.first_seed + config.episodes)]
    attempts = range(config.first_seed, config.first_seed + ATTEMPTS_PER_EPISODE * config.episodes)
    return [seed for seed in attempts if seed not in failed][: config.episodes]


def _record_missing(config: RecordConfig, tasks: Sequence[_Task]) -> int:
    """Record until each plan is met or cannot be, which is an error; return the new steps."""
    steps = 0
    num_missing = sum(task.num_missing for task in tasks)
    num_workers = min(config.workers, num_missing)
    logger.info("recording %d episodes of %s, %d at once", num_missing, config.env, num_workers)
    estimate = Estimate(num_missing, "episode")
    total = config.episodes * len(tasks)
    start = total - num_missing
    for task in tasks:
        task.config.out.mkdir(parents=True, exist_ok=True)
    running: dict[AnyWorker, tuple[_Task, int]] = {}
    built: dict[AnyWorker, _Task] = {}
    with (
        _no_partial_files([task.config.out for task in tasks]),
        workers(Recorder, num_workers) as started,
        tqdm(desc=config.env, total=total, initial=start, unit="episode", disable=None) as bar,
    ):
        while True:
            for worker in [worker for worker in started if worker not in running]:
                following = _next_episode(tasks, running.values(), built.get(worker))
                if following is not None:
                    running[worker] = following
                    built[worker], seed = following
                    worker.send("record", built[worker].config, seed)
            if not running:
                break
            for done in ready(list(running)):
                attempt: Attempt = done.receive()
                task, seed = running.pop(done)
                if not attempt.solved:
                    task.failed.add(seed)
                if attempt.steps:
                    task.recorded.add(seed)
                    steps += attempt.steps
                    bar.update()
                    estimate.advance()
                else:
                    content = {"env": task.config.env, "seeds": sorted(task.failed)}
                    write_json(task.config.out / FAILURES_NAME, content)
    for task in tasks:
        if task.num_missing:
            raise EnvError(
                f"{task.config.env}: expected the expert to solve {task.config.episodes} of at "
                f"most {ATTEMPTS_PER_EPISODE * task.config.episodes} seeds, found "
                f"{len(task.recorded)} solved and {len(task.failed)} failed; reduce --episodes, or "
                "choose another first_seed and folder"
            )
    return steps


def _next_episode(
    tasks: Iterable[_Task], running: Collection[tuple[_Task, int]], built: _Task | None
) -> tuple[_Task, int] | None:
    """Return the next episode of the task that a process has built, or of that with the most."""
    waiting = {}
    for task in tasks:
        plan = _planned_seeds(task.config, task.failed)
        seeds = [seed for seed in plan if seed not in task.recorded and (task, seed) not in running]
        # Too many failures: the running episodes finish, then an error is raised.
        if seeds and len(plan) == task.config.episodes:
            waiting[task] = seeds
    if not waiting:
        return None
    task = built if built in waiting else max(waiting, key=lambda task: len(waiting[task]))
    return task, waiting[task][0]


@contextmanager
def _no_partial_files(folders: Iterable[Path]) -> Iterator[None]:
    """Remove what processes that were ended have left."""
    try:
        yield
    finally:
        for folder in folders:
            for partial_file in folder.glob(".*.partial"):
                partial_file.unlink()


@dataclass(frozen=True)
class Attempt:
    """The outcome of one seed."""

    solved: bool
    steps: int
    """Control steps recorded; 0 where the episode was not kept."""


class Recorder:
    """Records a seed at a time, usually in a process of its own; holds one simulator at a time."""

    def __init__(self) -> None:
        self._env: ExpertEnv | None = None

    def record(self, config: RecordConfig, seed: int) -> Attempt:
        """Record a seed; see `record_seed`. The simulator is built if it is not the last one."""
        if self._env is None or self._env.name != config.env:
            self.close()
            self._env = None  # nothing is held if building fails
            self._env = make_expert_env(config.env, config.views, config.render_size)
        return record_seed(self._env, seed, config)

    def close(self) -> None:
        """Close the environment."""
        if self._env is not None:
            self._env.close()


def record_seed(env: ExpertEnv, seed: int, config: RecordConfig) -> Attempt:
    """Record one seed to the step that solves it, or to the time limit; write it if it is kept."""
    # Physics takes 1 ms per step and rendering 36 ms: render only episodes that will be kept.
    solved, length = _try(env, seed)
    if not solved and config.keep == "successes":
        return Attempt(solved=False, steps=0)
    env.reset(seed)
    layout, is_solved = layout_of(env.name), False
    seen, actions = [(resize_images(env.render()), env.state())], []
    for _ in range(length):
        actions.append(env.expert_action())
        is_solved = env.step(actions[-1]).success
        seen.append((resize_images(env.render()), env.state()))
    if is_solved != solved:
        raise EnvError(
            f"{env.name}: expected seed {seed} to give the same episode twice, found another "
            f"outcome at step {length}; please report this: the simulator is not deterministic"
        )
    # Of one more observation than actions, the first or the last belongs to no step.
    frames, states = zip(*(seen[1:] if layout.action_shift else seen[:-1]), strict=True)
    episode = RecordedEpisode(
        frames=dict(zip(env.view_names, np.stack(frames, axis=1), strict=True)),
        state=np.stack(states),
        action=np.stack(actions),
        env=env.name,
        seed=seed,
        fps=env.control_hz,
        render_size=config.render_size,
        success=solved,
        instruction=env.instruction,
        layout=layout,
    )
    write_episode(config.out / layout.file.format(seed), episode)
    return Attempt(solved=solved, steps=length)


def _try(env: ExpertEnv, seed: int) -> tuple[bool, int]:
    """Follow the expert without rendering; return whether it solves the task, and the last step."""
    env.reset(seed)
    for step in range(1, env.max_steps + 1):
        outcome = env.step(env.expert_action())
        if outcome.success or outcome.truncated:
            return outcome.success, step
    raise AssertionError("an environment truncates its last step")


def _recorded_seeds(config: RecordConfig) -> tuple[set[int], set[int]]:
    """Find what is recorded already and what the expert failed; refuse a folder of other things."""
    seeds, failed = set(), set()
    for path in sorted(config.out.glob("*.hdf5")):
        label = read_label(path)
        wanted = (config.env, config.views, config.render_size)
        if (label.env, label.views, label.render_size) != wanted:
            raise ConfigError(
                f"{path}: expected a recording of {config.env} with views "
                f"{', '.join(config.views)} rendered at {config.render_size} pixels, found one of "
                f"{label.env} with {', '.join(label.views)} at {label.render_size}; record into "
                "another folder"
            )
        name = layout_of(config.env).file.format(label.seed)
        if path.name != name:
            raise ConfigError(
                f"{path}: expected {name} for a recording of seed {label.seed}, "
                "found another name; rename it back or move it away"
            )
        seeds.add(label.seed)
        if not label.success:
            failed.add(label.seed)
    if failed and config.keep == "successes":
        raise ConfigError(
            f"{config.out}: expected only episodes that the expert solves, found seeds "
            f"{sorted(failed)[:5]} that it fails; use --keep all, or record into another folder"
        )
    return seeds, failed if config.keep == "all" else _read_failures(config)


def _read_failures(config: RecordConfig) -> set[int]:
    path = config.out / FAILURES_NAME
    if not path.exists():
        return set()
    try:
        content = json.loads(path.read_text())
        env, seeds = str(content["env"]), {int(seed) for seed in content["seeds"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{path}: expected the environment and the seeds that its expert failed, found other "
            "content; delete the file to try these seeds again"
        ) from error
    if env != config.env:
        raise ConfigError(
            f"{path}: expected failures of {config.env}, found those of {env}; record into another "
            "folder"
        )
    return seeds


def _refuse_other_seeds(config: RecordConfig, recorded: set[int], failed: set[int]) -> None:
    """The folder is the dataset: an episode beyond the request would be trained on."""
    others = sorted(recorded.difference(_planned_seeds(config, failed)))
    if others:
        raise ConfigError(
            f"{config.out}: expected only seeds of a recording of {config.episodes} episodes from "
            f"seed {config.first_seed}, found also {others[:5]} ({len(others)} in all); increase "
            "--episodes, or record into another folder"
        )
