"""Record a scripted expert: one lossless HDF5 file a seed, several seeds at a time, resumable.

Knows environments by their protocol and episodes by `write_episode`; knows no encoder. The set of
recorded seeds is decided by the request alone, never by timing: the first N seeds, from
`first_seed` on, that the expert solves; or the first N, where failures are kept.
"""

import json
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from pipeline.datasets.hdf5.recording import ACTION_KEY, IMAGES_GROUP, STATE_KEY, read_label
from pipeline.datasets.manifest.model import Manifest, load_manifest
from pipeline.errors import ConfigError, DatasetError, EnvError
from pipeline.rollout.envs.base import DEFAULT_RENDER_SIZE, FIRST_ROLLOUT_SEED, ExpertEnv
from pipeline.rollout.envs.registry import make_expert_env
from pipeline.rollout.play.workers import CrewConfig, Worker, crew
from pipeline.storage.local import write_atomically, write_json

MANIFEST_NAME: Final = "manifest.toml"
FAILURES_NAME: Final = "failed_seeds.json"
ATTEMPTS_PER_EPISODE: Final = 3  # seeds tried at most, for each episode asked for
Keep = Literal["successes", "all"]


class RecordConfig(BaseModel):
    """What to record, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env: str
    """What `make_env` takes: `metaworld/drawer-open-v3`."""
    views: tuple[str, ...]
    """Cameras, at least one, in the order in which the policy will see them."""
    episodes: Annotated[int, Field(ge=1)]
    """Demonstrations wanted; a larger number later adds to the same folder."""
    out: Path
    """Folder of the recordings and of their `manifest.toml`; resumed when it exists."""
    keep: Keep = "successes"
    """`all` keeps episodes that the expert fails, up to the time limit, each marked in its file: to
    see what it gets wrong, not to imitate."""
    render_size: int = DEFAULT_RENDER_SIZE
    """Pixels, both sides, of the rendered pictures; recorded at 256x256, as rollouts see them."""
    first_seed: Annotated[int, Field(ge=0)] = 0
    """The first seed tried; all stay below the seeds of rollouts."""
    workers: Annotated[int, Field(ge=1)] = Field(default_factory=lambda: os.cpu_count() or 1)
    """Processes, each with its own simulator; changes the speed, never the recordings."""


@dataclass(frozen=True)
class RecordReport:
    """What a recording session did."""

    manifest: Path
    """The manifest to give to `vla-embed`."""
    episodes: int
    """Demonstrations in the folder."""
    recorded: int
    """Of these, recorded by this call."""
    steps: int
    """Control steps recorded by this call."""
    failed_seeds: tuple[int, ...]
    """Seeds that the expert did not solve; in the folder only where failures are kept."""
    seconds: float
    """Wall-clock time of this call."""

    def summary(self) -> str:
        """Say in one line what was recorded and what to do next."""
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
    kept; after Ctrl-C only the episodes in hand are lost, and the same call goes on.

    Raises:
        ConfigError: no camera is named, seeds would reach those of rollouts, or the folder holds
            recordings that this request would not make; nothing is written then.
        DatasetError: a recording in the folder is damaged, or the disk does not take a new one.
        EnvError: the environment cannot be built, or its expert fails on too many seeds.
    """
    started = time.monotonic()
    if not config.views:
        raise ConfigError(
            f"views: expected the name of at least one camera of {config.env}, found none; name "
            "those that the policy will see"
        )
    last_seed = config.first_seed + ATTEMPTS_PER_EPISODE * config.episodes - 1
    if last_seed >= FIRST_ROLLOUT_SEED:
        raise ConfigError(
            f"first_seed: expected all of {ATTEMPTS_PER_EPISODE} x {config.episodes} seeds below "
            f"{FIRST_ROLLOUT_SEED}, where rollouts begin, found up to {last_seed}; lower first_seed"
        )
    recorded, failed = _recorded_seeds(config)
    _refuse_other_seeds(config, recorded, failed)
    # Built here once to name its errors in this process, before anything is written.
    env = make_expert_env(config.env, config.views, config.render_size)
    manifest = manifest_of(env, keep=config.keep, render_size=config.render_size)
    env.close()
    manifest_file = config.out / MANIFEST_NAME
    earlier = load_manifest(manifest_file).manifest if manifest_file.exists() else manifest
    if earlier.to_dict() != manifest.to_dict():
        raise ConfigError(
            f"{manifest_file}: expected the manifest of {config.env} with views "
            f"{', '.join(config.views)}, keep={config.keep} and render size {config.render_size}, "
            "found another; record into another folder, or move it away"
        )
    num_before, steps = len(recorded), 0
    if num_before < config.episodes:
        config.out.mkdir(parents=True, exist_ok=True)
        steps = _record_missing(config, recorded, failed)
    if len(recorded) < config.episodes:
        raise EnvError(
            f"{config.env}: expected the expert to solve {config.episodes} of at most "
            f"{ATTEMPTS_PER_EPISODE * config.episodes} seeds, found {len(recorded)} solved and "
            f"{len(failed)} failed; ask for fewer episodes, or choose another first_seed and folder"
        )
    if not manifest_file.exists():
        write_atomically(manifest_file, manifest.to_toml().encode())
    return RecordReport(
        manifest=manifest_file,
        episodes=len(recorded),
        recorded=len(recorded) - num_before,
        steps=steps,
        failed_seeds=tuple(sorted(failed)),
        seconds=time.monotonic() - started,
    )


def _planned_seeds(config: RecordConfig, failed: set[int]) -> list[int]:
    """List the seeds that make up the dataset, as far as failures are known."""
    if config.keep == "all":
        return [*range(config.first_seed, config.first_seed + config.episodes)]
    attempts = range(config.first_seed, config.first_seed + ATTEMPTS_PER_EPISODE * config.episodes)
    return [seed for seed in attempts if seed not in failed][: config.episodes]


def _record_missing(config: RecordConfig, recorded: set[int], failed: set[int]) -> int:
    """Record until the plan is met or cannot be; extend the two sets; return the new steps."""
    steps = 0
    num_workers = min(config.workers, config.episodes - len(recorded))
    in_hand: dict[Worker, int] = {}
    crew_config = CrewConfig(
        env=config.env,
        views=config.views,
        render_size=config.render_size,
        keeps_failures=config.keep == "all",
        out=config.out,
    )
    with (
        crew(crew_config, num_workers) as idle,
        tqdm(
            total=config.episodes,
            initial=len(recorded),
            desc=config.env,
            unit="episode",
            disable=None,
        ) as bar,
    ):
        while True:
            plan = _planned_seeds(config, failed)
            # Too many failures: finish what is in hand, and let the caller say so.
            wanted = plan if len(plan) == config.episodes else []
            busy = recorded.union(in_hand.values())
            for seed in [seed for seed in wanted if seed not in busy][: len(idle)]:
                worker = idle.pop()
                worker.begin(seed)
                in_hand[worker] = seed
            if not in_hand:
                return steps
            ready = wait([worker.connection for worker in in_hand])
            for worker in [worker for worker in in_hand if worker.connection in ready]:
                attempt = worker.finish()
                seed = in_hand.pop(worker)
                idle.append(worker)
                if not attempt.solved:
                    failed.add(seed)
                if attempt.steps:
                    recorded.add(seed)
                    steps += attempt.steps
                    bar.update()
                else:
                    content = {"env": config.env, "seeds": sorted(failed)}
                    write_json(config.out / FAILURES_NAME, content)


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
        if path.name != f"episode_{label.seed}.hdf5":
            raise ConfigError(
                f"{path}: expected episode_{label.seed}.hdf5 for a recording of seed {label.seed}, "
                "found another name; rename it back or move it away"
            )
        seeds.add(label.seed)
        if not label.success:
            failed.add(label.seed)
    if failed and config.keep == "successes":
        raise ConfigError(
            f"{config.out}: expected only episodes that the expert solves, found seeds "
            f"{sorted(failed)[:5]} that it fails; keep all, or record into another folder"
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
            "content; remove the file, and these seeds are tried again"
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
            f"seed {config.first_seed}, found also {others[:5]} ({len(others)} in all); ask "
            "for more episodes, or record into another folder"
        )


def manifest_of(
    env: ExpertEnv, *, keep: Keep = "successes", render_size: int = DEFAULT_RENDER_SIZE
) -> Manifest:
    """Describe recordings of an environment; `path` is the folder of the manifest itself."""
    rendered = f", rendered at {render_size}x{render_size} pixels" * (
        render_size != DEFAULT_RENDER_SIZE
    )
    return Manifest.from_dict(
        {
            "name": env.name.replace("/", "-"),
            "source": env.source + ", failures included" * (keep == "all"),
            "revision": env.revision + rendered,
            "license": env.license,
            "format": "aloha_hdf5",
            "path": ".",
            "fps": env.control_hz,
            "views": [{"name": name, "key": f"{IMAGES_GROUP}/{name}"} for name in env.view_names],
            "state": {"key": STATE_KEY, "units": env.state_units},
            "action": {"key": ACTION_KEY, "units": env.action_units},
        }
    )
