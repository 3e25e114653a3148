"""The recorder's processes: one simulator each, a seed at a time, deaf to Ctrl-C.

Knows environments by their protocol and episodes by `write_episode`; which seeds to record is the
recorder's decision.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from pipeline.datasets.hdf5.recording import RecordedEpisode, write_episode
from pipeline.errors import DatasetError, EnvError
from pipeline.rollout.envs.base import ExpertEnv
from pipeline.rollout.envs.registry import make_expert_env
from pipeline.rollout.play.processes import Spawned, spawned
from policy.errors import VlaError
from policy.images import resize_images


@dataclass(frozen=True)
class CrewConfig:
    """What every worker records, where, and which episodes it keeps."""

    env: str
    """What `make_expert_env` takes."""
    views: tuple[str, ...]
    """Cameras, in order."""
    render_size: int
    """Pixels, both sides, of the pictures before they are brought to the encoder's size."""
    keeps_failures: bool
    """Write episodes that the expert does not solve, too."""
    out: Path
    """Folder of the recordings; temporary files in it are removed at the end."""


@dataclass(frozen=True)
class Attempt:
    """How a seed went."""

    solved: bool
    """The expert solved it."""
    steps: int
    """Control steps recorded; 0 where the episode was not kept."""


@dataclass(frozen=True, eq=False)
class Worker:
    """One recording process, seen from the recorder."""

    spawned: Spawned
    """Takes seeds and gives answers."""

    @property
    def connection(self) -> Connection:
        """Ready when a seed is done or the process has ended."""
        return self.spawned.connection

    def begin(self, seed: int) -> None:
        """Hand a seed to the process; `finish` tells how it went."""
        self.spawned.tell(seed)

    def finish(self) -> Attempt:
        """Wait for the seed in hand, and tell how it went.

        Raises:
            VlaError: what the process raised, or that it ended by itself.
        """
        attempt: Attempt = self.spawned.answer(
            "recording worker: expected an episode, found that the process ended with code "
            "{code}; -9 means out of memory: use fewer workers. The same call goes on where this "
            "one stopped"
        )
        return attempt


@contextmanager
def crew(config: CrewConfig, num_workers: int) -> Iterator[list[Worker]]:
    """Start worker processes; end them at once if the block is left by an error or Ctrl-C."""
    try:
        with spawned(_work, (config,), num_workers) as processes:
            yield [Worker(process) for process in processes]
    finally:
        for partial in config.out.glob(".*.partial"):
            partial.unlink()


def _work(config: CrewConfig, connection: Connection) -> None:
    """Record the seeds that arrive, until the pipe closes; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Mesa's software renderer starts a thread a core in each process; set before OpenGL loads.
    os.environ["LP_NUM_THREADS"] = "1"
    with suppress(EOFError, ConnectionError):  # the recording process has ended or is done
        try:
            env = make_expert_env(config.env, config.views, config.render_size)
            try:
                while True:
                    seed = connection.recv()
                    connection.send(_record_seed(env, seed, config))
            finally:
                env.close()
        except ConnectionError:
            raise
        except VlaError as error:
            connection.send(error)
        except OSError as error:
            connection.send(
                DatasetError(
                    f"{config.out}: expected to write a recording, found {error}; make room or "
                    "choose another folder, and repeat the call"
                )
            )


def _record_seed(env: ExpertEnv, seed: int, config: CrewConfig) -> Attempt:
    """Record one seed to the step that solves it, or to the time limit; write it if it is kept."""
    # Physics takes 1 ms a step and rendering 36 ms: look first whether there is anything to render.
    solved, length = _try(env, seed)
    if not solved and not config.keeps_failures:
        return Attempt(solved=False, steps=0)
    env.reset(seed)
    frames, states, actions, is_solved = [], [], [], False
    for _ in range(length):
        frames.append(resize_images(env.render()))
        states.append(env.state())
        actions.append(env.expert_action())
        is_solved = env.step(actions[-1]).success
    if is_solved != solved:
        raise EnvError(
            f"{env.name}: expected seed {seed} to end alike twice at step {length}, found that the "
            "same seed gave another episode; report this, the simulator is not deterministic here"
        )
    episode = RecordedEpisode(
        frames={
            view: np.stack([shot[index] for shot in frames])
            for index, view in enumerate(env.view_names)
        },
        state=np.stack(states),
        action=np.stack(actions),
        env=env.name,
        seed=seed,
        fps=env.control_hz,
        render_size=config.render_size,
        success=solved,
    )
    write_episode(config.out / f"episode_{seed}.hdf5", episode)
    return Attempt(solved=solved, steps=length)


def _try(env: ExpertEnv, seed: int) -> tuple[bool, int]:
    """Follow the expert without looking; tell whether and at which step it ended."""
    env.reset(seed)
    for step in range(1, env.max_steps + 1):
        outcome = env.step(env.expert_action())
        if outcome.success or outcome.truncated:
            return outcome.success, step
    raise AssertionError("an environment truncates its last step")
