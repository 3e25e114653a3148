"""The episodes of several environments in a few processes, each with one environment built."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any


class OneAtATime:
    """What a process holds: an environment, or its player, until a call is for another one."""

    def __init__(self, build: Callable[[str], Any]):
        """Hold nothing yet; `build` takes an environment's name, its result has a `close`."""
        self._build = build
        self._env, self._held = "", None

    def get(self, env: str) -> Any:
        """Return what is held for an environment; build it first if it is not the last one."""
        if self._held is None or env != self._env:
            self.close()
            self._env, self._held = env, self._build(env)
        return self._held

    def call(self, env: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, or a method by its class, with what is held for an environment."""
        return function(self.get(env), *arguments)

    def close(self) -> None:
        """Close what is held."""
        if self._held is not None:
            self._held.close()
        self._held = None


class Queue:
    """Episodes that have not begun: a process plays one environment to its end, then another."""

    def __init__(self, seeds: Mapping[str, Iterable[int]]):
        """List the seeds of each environment, which may be none."""
        self._seeds = {env: list(waiting) for env, waiting in seeds.items()}
        self.has_several_envs = len(seeds) > 1

    def __len__(self) -> int:
        return sum(map(len, self._seeds.values()))

    def add(self, env: str, seed: int) -> None:
        """Add an episode of one of the environments."""
        self._seeds[env].append(seed)

    def next(self, env: str | None) -> tuple[str, int] | None:
        """Take the next episode of the environment that a process has built; None if none is left.

        Once they have all begun, it is of the environment with the most waiting, which is one that
        no process plays if there is one.
        """
        if not len(self):
            return None
        if env is None or not self._seeds[env]:
            env = max(self._seeds, key=lambda name: len(self._seeds[name]))
        return env, self._seeds[env].pop(0)
