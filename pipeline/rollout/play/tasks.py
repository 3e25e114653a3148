"""The episodes of several environments in a few processes, each with one environment built."""

from collections.abc import Callable, Collection, Iterable
from typing import Literal

import numpy as np
from jaxtyping import Float32

from pipeline.errors import ConfigError
from pipeline.rollout.envs.base import RobotEnv
from pipeline.rollout.play.episode import EpisodePlayer, Progress
from pipeline.training.run.folder import RunDescription
from policy.encoders.text import another_instruction

InstructionSource = Literal["own", "other", "empty"]


def instruction_for(
    env: RobotEnv, run: RunDescription, *, source: InstructionSource, words: str | None
) -> str:
    """Return the instruction of an environment's episodes; see `RolloutConfig`.

    Raises:
        AgentMismatchError: training had no other instruction.
        ConfigError: the policy takes instructions, and neither environment nor user has one.
    """
    if words is not None:
        return words
    if source == "empty":
        return ""
    if source == "other":
        return another_instruction(run.data.instructions, env.instruction)
    if run.config.agent.language is not None and not env.instruction:
        raise ConfigError(
            f"{env.name}: expected an instruction for a policy that takes one, found none; pass "
            f"--instruction, or write `instruction` into the environment's file"
        )
    return env.instruction


class TaskPlayer:
    """Plays episodes of several environments; builds one when its first episode begins."""

    def __init__(
        self,
        build: Callable[[str], EpisodePlayer],
        env: str = "",
        player: EpisodePlayer | None = None,
    ):
        """Prepare to build players; `player` is of an environment that is built already, `env`."""
        self._build = build
        self._env = env
        self._player = player

    def close(self) -> None:
        """Close the environment that is built."""
        if self._player is not None:
            self._player.close()

    def begin(self, env: str, seed: int, video: str) -> Progress:
        """Start an episode; see `EpisodePlayer.begin`.

        Raises:
            EnvError: the environment cannot be built.
            EpisodeError: the simulator fails before the policy has acted.
        """
        if self._player is None or env != self._env:
            self.close()
            self._player, self._env = None, ""  # nothing is held if building fails
            self._player, self._env = self._build(env), env
        return self._player.begin(seed, video)

    def act(self, chunk: Float32[np.ndarray, "n a"]) -> Progress:
        """Execute actions; see `EpisodePlayer.act`."""
        assert self._player is not None
        return self._player.act(chunk)


class Queue:
    """Episodes that have not begun: a process plays one environment to its end, then another."""

    def __init__(
        self, envs: Iterable[str], seeds: Iterable[int], done: Collection[tuple[str, int]]
    ):
        """List the seeds of each environment, except for pairs that are done."""
        seeds = list(seeds)
        left = {env: [seed for seed in seeds if (env, seed) not in done] for env in envs}
        self.has_several_envs = len(left) > 1
        self.total = len(left) * len(seeds)
        """Number of episodes, those that are done included."""
        self._waiting = {env: waiting for env, waiting in left.items() if waiting}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def next(self, env: str | None) -> tuple[str, int] | None:
        """Take the next episode; None where none is left.

        Args:
            env: built in the process that will play it; once its episodes have all begun, the
                environment with the most waiting is taken, which is one that no process plays if
                there is one.
        """
        if not self._waiting:
            return None
        if env not in self._waiting:
            env = max(self._waiting, key=lambda name: len(self._waiting[name]))
        seed = self._waiting[env].pop(0)
        if not self._waiting[env]:
            del self._waiting[env]
        return env, seed
