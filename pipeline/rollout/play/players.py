"""Episode players, in this process or one a process; the rollout speaks to both alike.

Knows processes and players; nothing about policies. What a player does depends on what it is told
alone, so that results do not depend on how many there are.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from pipeline.errors import EnvError
from pipeline.rollout.envs.base import RobotEnv
from pipeline.rollout.envs.registry import make_env
from pipeline.rollout.play.episode import EpisodePlayer, Progress
from pipeline.rollout.play.processes import Spawned, spawned
from policy.errors import VlaError
from policy.spec import Fit


@dataclass(frozen=True)
class PlayerConfig:
    """What every player is built from."""

    env: str
    """What `make_env` takes."""
    views: tuple[str, ...]
    """Cameras, in order."""
    render_size: int
    """Pixels, both sides, of the pictures before they are brought to the encoder's size."""
    obs_horizon: int
    """Observation steps of a decision."""
    max_steps: int
    """Control steps until an episode counts as failed."""
    out: Path
    """Folder of the rollout."""
    fit: Fit = "stretch"
    """How pictures that are not square become so, as in training."""


@runtime_checkable  # the test run checks types
class Player(Protocol):
    """Somebody who plays; an answer is awaited after each `begin` and `act`."""

    def begin(self, seed: int, film: str) -> None:
        """Start an episode; see `EpisodePlayer.begin`."""

    def act(self, chunk: Float32[np.ndarray, "n a"]) -> None:
        """Execute actions; see `EpisodePlayer.act`."""

    def answer(self) -> Progress:
        """Wait for what came of it.

        Raises:
            VlaError: what the environment raised, or that its process ended.
        """


class HerePlayer:
    """A player in this process."""

    def __init__(self, player: EpisodePlayer):
        self._player = player
        self._progress: Progress | None = None

    def begin(self, seed: int, film: str) -> None:
        """Start an episode; see `Player`."""
        self._progress = self._player.begin(seed, film)

    def act(self, chunk: Float32[np.ndarray, "n a"]) -> None:
        """Execute actions; see `Player`."""
        self._progress = self._player.act(chunk)

    def answer(self) -> Progress:
        """Return what came of it; see `Player`."""
        assert self._progress is not None
        return self._progress


class RemotePlayer:
    """A player in a process of its own."""

    def __init__(self, spawned_process: Spawned):
        self._spawned = spawned_process

    @property
    def connection(self) -> Connection:
        """Ready when an answer is there or the process has ended."""
        return self._spawned.connection

    def begin(self, seed: int, film: str) -> None:
        """Start an episode; see `Player`."""
        self._spawned.tell(("begin", seed, film))

    def act(self, chunk: Float32[np.ndarray, "n a"]) -> None:
        """Execute actions; see `Player`."""
        self._spawned.tell(("act", chunk))

    def answer(self) -> Progress:
        """Wait for what came of it; see `Player`."""
        progress: Progress = self._spawned.answer(
            "simulator process: expected an episode, found that it ended with code {code}; -9 "
            "means out of memory: use fewer --envs. The same rollout resumes after its finished "
            "episodes"
        )
        return progress


@contextmanager
def players(config: PlayerConfig, env: RobotEnv, count: int) -> Iterator[Sequence[Player]]:
    """Provide players; their processes end with the block.

    Args:
        config: of all.
        env: plays if one is enough, which spares a process.
        count: how many.
    """
    if count == 1:
        yield [HerePlayer(_player(config, env))]
        return
    with spawned(_play, (config,), count) as processes:
        yield [RemotePlayer(process) for process in processes]


def ready(playing: Sequence[Player]) -> list[Player]:
    """Wait until one of some players has an answer; return all that have."""
    remote = {player.connection: player for player in playing if isinstance(player, RemotePlayer)}
    if len(remote) < len(playing):
        return list(playing)
    found = set(wait(list(remote)))
    return [player for connection, player in remote.items() if connection in found]


def _player(config: PlayerConfig, env: RobotEnv) -> EpisodePlayer:
    return EpisodePlayer(
        env,
        obs_horizon=config.obs_horizon,
        max_steps=config.max_steps,
        out=config.out,
        fit=config.fit,
    )


def _play(config: PlayerConfig, connection: Connection) -> None:
    """Play as told, until the pipe closes; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Mesa's software renderer starts a thread a core in each process; set before OpenGL loads.
    os.environ["LP_NUM_THREADS"] = "1"
    with suppress(EOFError, ConnectionError):  # the rollout has ended or is done
        try:
            env = make_env(config.env, config.views, config.render_size, config.fit)
            try:
                player = _player(config, env)
                while True:
                    what, *words = connection.recv()
                    play = player.begin if what == "begin" else player.act
                    connection.send(play(*words))
            finally:
                env.close()
        except ConnectionError:
            raise
        except VlaError as error:
            connection.send(error)
        except OSError as error:
            connection.send(
                EnvError(
                    f"{config.out}: a simulator process failed ({error}); make room or choose "
                    "another --out"
                )
            )
