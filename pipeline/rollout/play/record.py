"""Record a scripted expert: one lossless HDF5 file per seed, several at a time, resumable.

The set of recorded seeds depends on the request alone, never on timing: the first N seeds, from
`first_seed` on, that the expert solves.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import Field, ValidationError
from tqdm import tqdm

from pipeline.datasets.hdf5.recording import (
    ACT,
    LIBERO,
    RecordedEpisode,
    RecordingLayout,
    read_label,
    write_episode,
)
from pipeline.datasets.manifest.model import Manifest, load_manifest
from pipeline.errors import ConfigError, DatasetError, EnvError, EpisodeError
from pipeline.processes import AnyWorker, ready, workers
from pipeline.progress import Estimate
from pipeline.rollout.envs.base import DEFAULT_RENDER_SIZE, FIRST_ROLLOUT_SEED, ExpertEnv
from pipeline.rollout.envs.registry import envs_of, make_expert_env
from pipeline.rollout.play.tasks import OneAtATime, Queue
from pipeline.storage.local import write_atomically, write_json
from pipeline.storage.locks import sole_writer
from policy.errors import invalid_field
from policy.images import resize_images
from policy.spec import FrozenModel

logger = logging.getLogger(__name__)

MANIFEST_NAME: Final = "manifest.toml"
FAILURES_NAME: Final = "failed_seeds.json"
ATTEMPTS_PER_EPISODE: Final = 3  # seeds tried at most, per requested episode


class RecordConfig(FrozenModel):
    """What to record, and where."""

    env: str
    """What `make_env` takes, or a suite: `metaworld/drawer-open-v3`, `libero/libero_object`."""
    views: tuple[str, ...]
    """Cameras, at least one, in the order in which the policy will see them."""
    episodes: int = Field(ge=1)
    """Demonstrations to record, of each task; a larger number later adds to the same folder."""
    out: Path
    """Folder of the recordings (a suite's: one per task) and `manifest.toml`; may exist."""
    render_size: int = DEFAULT_RENDER_SIZE
    """Width and height in pixels of rendered images; recorded at 256x256, as rollouts see them."""
    first_seed: int = Field(default=0, ge=0)
    """The first seed tried; all stay below the seeds of rollouts."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
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
    """Seeds not solved by the expert, task by task."""
    seconds: float

    def summary(self) -> str:
        """Return in one line what was recorded and what to do next."""
        return (
            f"{self.episodes} episodes in {self.manifest.parent} ({self.recorded} new with "
            f"{self.steps} steps in {self.seconds:.0f} s; the expert failed "
            f"{len(self.failed_seeds)} seeds); next: vla-embed {self.manifest} --store my.zarr"
        )


def record_dataset(config: RecordConfig) -> RecordReport:
    """Record demonstrations of a scripted expert, and write their manifest when all are there.

    An episode ends with the step that first solves the task. Recordings already in the folder are
    kept; after Ctrl-C only the running episodes are lost, and the same call resumes.

    Raises:
        ConfigError: seeds would reach those of rollouts, or the folder holds recordings that this
            request would not make, or another call records into it; nothing is written then.
        DatasetError: a recording in the folder is damaged.
        OSError: a recording cannot be written.
        EnvError: the environment cannot be built, or its expert fails on too many seeds.
    """
    started = time.monotonic()
    last_seed = config.first_seed + ATTEMPTS_PER_EPISODE * config.episodes - 1
    if last_seed >= FIRST_ROLLOUT_SEED:
        raise ConfigError(
            f"first_seed: expected all of {ATTEMPTS_PER_EPISODE} x {config.episodes} seeds below "
            f"{FIRST_ROLLOUT_SEED}, where rollouts begin, found up to {last_seed}; lower first_seed"
        )
    tasks = {env: _open_task(env, config) for env in envs_of([config.env])}
    queue = Queue({env: task.missing() for env, task in tasks.items()})
    num_missing = len(queue)
    # Built here once to name its errors in this process, before anything is written.
    first, folders = next(iter(tasks)), [task.out for task in tasks.values()]
    with closing(make_expert_env(first, config.views, config.render_size)) as env:
        manifest = manifest_of(
            env,
            render_size=config.render_size,
            name=config.env,
            folders=[str(folder.relative_to(config.out)) for folder in folders],
        )
    path = config.out / MANIFEST_NAME
    if path.exists() and load_manifest(path).manifest.to_dict() != manifest.to_dict():
        raise ConfigError(
            f"{path}: expected the manifest of {config.env} with views {', '.join(config.views)} "
            f"and render size {config.render_size}, from this version of its simulator, found "
            "another; record into another folder, or move it away"
        )
    config.out.mkdir(parents=True, exist_ok=True)
    with sole_writer(config.out, ConfigError):
        steps = _record_missing(config, tasks, queue) if num_missing else 0
    for task in tasks.values():
        task.require_enough()
    if not path.exists():
        write_atomically(path, manifest.to_toml().encode())
    return RecordReport(
        manifest=path,
        episodes=sum(len(task.recorded) for task in tasks.values()),
        recorded=num_missing,
        steps=steps,
        failed_seeds=tuple(seed for task in tasks.values() for seed in sorted(task.failed)),
        seconds=time.monotonic() - started,
    )


class _Failures(FrozenModel):
    """`failed_seeds.json`: seeds that the expert did not solve."""

    env: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class _Task:
    """One environment of a recording."""

    env: str
    out: Path
    """Its own folder."""
    attempts: range
    """Seeds that may be tried."""
    recorded: set[int]
    """Seeds that are recorded; grows."""
    failed: set[int]
    """Seeds that the expert did not solve; grows."""

    @property
    def episodes(self) -> int:
        """How many make up the dataset."""
        return len(self.attempts) // ATTEMPTS_PER_EPISODE

    def planned(self) -> list[int]:
        """List the seeds that make up the dataset; fewer where too many failed."""
        return [seed for seed in self.attempts if seed not in self.failed][: self.episodes]

    def require_enough(self) -> None:
        """Refuse a dataset (EnvError) that the expert cannot complete."""
        if len(self.planned()) < self.episodes:
            raise EnvError(
                f"{self.env}: expected the expert to solve {self.episodes} of at most "
                f"{len(self.attempts)} seeds, found {len(self.recorded)} solved and "
                f"{len(self.failed)} failed; reduce --episodes, or choose another first_seed and "
                "folder"
            )

    def missing(self) -> list[int]:
        """List the seeds that are still to be recorded."""
        plan = self.planned()
        # The folder is the dataset: an episode beyond the request would be trained on.
        others = sorted(self.recorded.difference(plan))
        if others:
            raise ConfigError(
                f"{self.out}: expected only seeds of a recording of {self.episodes} episodes from "
                f"seed {self.attempts[0]}, found also {others[:5]} ({len(others)} in all); "
                "increase --episodes, or record into another folder"
            )
        return [seed for seed in plan if seed not in self.recorded]


def _open_task(env: str, config: RecordConfig) -> _Task:
    """Find what is recorded already and what the expert failed; refuse a folder of other things."""
    out = config.out if env == config.env else config.out / env.rpartition("/")[2]
    recorded = set()
    for path in sorted(out.glob("*.hdf5")):
        label = read_label(path)
        name = layout_of(env).file.format(label.seed)
        wanted = (env, config.views, config.render_size, True, name)
        if wanted != (label.env, label.views, label.render_size, label.success, path.name):
            raise ConfigError(
                f"{path}: expected {name}, a recording of {env} with views "
                f"{', '.join(config.views)} rendered at {config.render_size} pixels, found one of "
                f"{label.env} with {', '.join(label.views)} at {label.render_size}"
                f"{'' if label.success else ', that the expert fails'}; record into another folder"
            )
        recorded.add(label.seed)
    num_attempts = ATTEMPTS_PER_EPISODE * config.episodes
    attempts = range(config.first_seed, config.first_seed + num_attempts)
    return _Task(env, out, attempts, recorded, _read_failures(env, out / FAILURES_NAME))


def _read_failures(env: str, path: Path) -> set[int]:
    if not path.exists():
        return set()
    try:
        failures = _Failures.model_validate_json(path.read_bytes())
        if failures.env == env:
            return set(failures.seeds)
        found = f"those of {failures.env}"
    except ValidationError as error:
        found = invalid_field(error)
    raise DatasetError(
        f"{path}: expected the seeds that the expert of {env} fails, found {found}; record into "
        "another folder, or delete the file to try all seeds again"
    )


def _record_missing(config: RecordConfig, tasks: Mapping[str, _Task], queue: Queue) -> int:
    """Record the seeds of a queue, and others for those that the expert fails; return the steps."""
    total_steps, num_missing = 0, len(queue)
    num_workers = min(config.workers, num_missing)
    logger.info("recording %d episodes of %s, %d at once", num_missing, config.env, num_workers)
    estimate = Estimate(num_missing, "episode")
    for task in tasks.values():
        task.out.mkdir(parents=True, exist_ok=True)
    running: dict[AnyWorker, tuple[str, int]] = {}

    def begin(worker: AnyWorker, built: str | None = None) -> None:
        following = queue.next(built)
        if following is not None:
            env, seed = running[worker] = following
            worker.send("call", env, record_seed, seed, tasks[env].out)

    build = partial(make_expert_env, views=config.views, render_size=config.render_size)
    try:
        with (
            workers(partial(OneAtATime, build), num_workers) as started,
            tqdm(desc=config.env, total=num_missing, unit="episode", disable=None) as bar,
        ):
            for worker in started:
                begin(worker)
            while running:
                for done in ready(list(running)):
                    steps: int = done.receive()
                    env, seed = running.pop(done)
                    task = tasks[env]
                    if steps:
                        task.recorded.add(seed)
                        total_steps += steps
                        bar.update()
                        estimate.advance()
                    else:
                        task.failed.add(seed)
                        failures = _Failures(env=env, seeds=tuple(sorted(task.failed)))
                        write_json(task.out / FAILURES_NAME, failures.model_dump(mode="json"))
                        if len(plan := task.planned()) == task.episodes:
                            queue.add(env, plan[-1])
                    begin(done, env)
    finally:
        for task in tasks.values():
            for partial_file in task.out.glob(".*.partial"):  # of processes that were ended
                partial_file.unlink()
    return total_steps


def record_seed(env: ExpertEnv, seed: int, out: Path) -> int:
    """Record one seed to the step that solves it, into a folder; return the number of its steps.

    It is 0 where the expert fails: nothing is written then.
    """
    # Physics takes 1 ms per step and rendering 36 ms: render only episodes that will be kept.
    try:
        length = _solving_step(env, seed)
    except EpisodeError as error:  # at this seed each time: it must not end the recording
        logger.warning("%s; the seed counts as failed", error)
        return 0
    if not length:
        return 0
    env.reset(seed)
    layout, is_solved = layout_of(env.name), False
    images, actions = env.render(), []
    seen = [(resize_images(images), env.state())]
    for _ in range(length):
        actions.append(env.expert_action())
        is_solved = env.step(actions[-1]).success
        seen.append((resize_images(env.render()), env.state()))
    if not is_solved:
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
        render_size=images.shape[1],
        instruction=env.instruction,
        layout=layout,
    )
    write_episode(out / layout.file.format(seed), episode)
    return length


def _solving_step(env: ExpertEnv, seed: int) -> int:
    """Follow the expert without rendering; return the step that solves the task, 0 for none."""
    env.reset(seed)
    for step in range(1, env.max_steps + 1):
        if env.step(env.expert_action()).success:
            return step
    return 0


def layout_of(env: str) -> RecordingLayout:
    """Return the layout of an environment's recordings: that of its published ones, or ACT's."""
    return LIBERO if env.startswith("libero/") else ACT


def manifest_of(
    env: ExpertEnv,
    *,
    render_size: int = DEFAULT_RENDER_SIZE,
    name: str | None = None,
    folders: Sequence[str] = (".",),
) -> Manifest:
    """Describe recordings of an environment, or of a suite of this `name`, for `vla-embed`.

    `env` may be any of the suite's: what is described does not differ. `folders` are those of the
    recordings, relative to that of the manifest.
    """
    is_usual = render_size == DEFAULT_RENDER_SIZE
    rendered = "" if is_usual else f", rendered at {render_size}x{render_size} pixels"
    layout = layout_of(env.name)
    sources = [{"path": folder, "format": layout.format} for folder in folders]
    return Manifest.from_dict(
        {
            "name": (name or env.name).replace("/", "-"),
            "source": env.source,
            "revision": env.revision + rendered,
            "license": env.license,
            **(sources[0] if len(sources) == 1 else {"sources": sources}),
            "fps": env.control_hz,
            **({"action_shift": layout.action_shift} if layout.action_shift else {}),
            "views": [{"name": name, "key": layout.image_key(name)} for name in env.view_names],
            "state": {
                "key": list(layout.state) if len(layout.state) > 1 else layout.state[0],
                "units": env.state_units,
            },
            "action": {"key": layout.action, "units": env.action_units},
        }
    )
