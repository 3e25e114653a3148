"""From a name such as `metaworld/drawer-open-v3` to an environment; simulators are optional."""

import difflib
from typing import Final, Protocol, runtime_checkable

from pipeline.errors import EnvError
from pipeline.rollout.envs.base import RobotEnv, ScriptedExpert

SIMULATORS: Final = ("metaworld",)


@runtime_checkable
class ExpertEnv(RobotEnv, ScriptedExpert, Protocol):
    """An environment that can be recorded: it ships an expert and says what its numbers mean."""

    source: str
    """Where recordings come from, in words."""
    revision: str
    """Versions of what decides the recordings."""
    licence: str
    """Terms of the recordings."""
    state_units: str
    """Columns of `state`, with units."""
    action_units: str
    """Columns of the action, with units."""


def make_env(name: str, views: tuple[str, ...]) -> RobotEnv:
    """Build an environment.

    Args:
        name: `<simulator>/<task>`: `metaworld/drawer-open-v3`.
        views: its cameras, in the order in which the policy sees them.

    Raises:
        EnvError: the simulator, the task or a camera is unknown, or the simulator is not installed.
        RenderingError: the simulator cannot render on this machine.
    """
    simulator, slash, task = name.partition("/")
    if simulator not in SIMULATORS or not slash:
        close = difflib.get_close_matches(simulator, SIMULATORS, n=1, cutoff=0.5)
        example = f"{close[0]}/{task or 'drawer-open-v3'}" if close else f"{SIMULATORS[0]}/{name}"
        raise EnvError(
            f"{name}: expected <simulator>/<task> with a simulator out of {', '.join(SIMULATORS)}, "
            f"found {simulator!r}; did you mean {example}?"
        )
    try:
        from pipeline.rollout.envs.metaworld import MetaWorldEnv  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        raise EnvError(
            f"{name}: expected the simulator {simulator} to be installed, found no module "
            f"{error.name}; run `pip install frozen-vla[metaworld]`"
        ) from error
    return MetaWorldEnv(task, views)


def make_expert_env(name: str, views: tuple[str, ...]) -> ExpertEnv:
    """Build an environment that ships a scripted expert; arguments as in `make_env`.

    Raises:
        EnvError: as in `make_env`, or the environment has no expert.
    """
    env = make_env(name, views)
    if not isinstance(env, ExpertEnv):
        env.close()
        raise EnvError(
            f"{name}: expected an environment with a scripted expert, found none; record its "
            "demonstrations with your own tool and describe them in a manifest"
        )
    return env
