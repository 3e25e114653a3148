"""From a name such as `metaworld/drawer-open-v3` to an environment; simulators are optional."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.errors import EnvError
from pipeline.rollout.envs.base import DEFAULT_RENDER_SIZE, ExpertEnv, RobotEnv
from pipeline.rollout.envs.guard import GuardedEnv, GuardedExpertEnv
from policy.errors import VlaError, install_command, one_line
from policy.spec import Fit

SIMULATORS: Final = ("metaworld", "aloha", "libero", "planar")
GYMNASIUM: Final = "gymnasium"
MIN_RENDER_SIZE: Final = 64  # pixels: a quarter of what the encoder takes
MAX_RENDER_SIZE: Final = 2048  # pixels: a frame of 12 MB


def make_env(
    name: str,
    views: tuple[str, ...],
    render_size: int = DEFAULT_RENDER_SIZE,
    fit: Fit = "stretch",
) -> RobotEnv:
    """Build an environment; see `GuardedEnv` for what its calls may raise.

    Args:
        name: `<simulator>/<task>`: `metaworld/drawer-open-v3`, `aloha/transfer-cube`,
            `libero/libero_object/0`; or `gymnasium:<file>` with a configuration as
            `gymnasium_config.py` describes it.
        views: its cameras, in the order in which the policy sees them.
        render_size: width and height in pixels of the images that `render` returns.
        fit: how a Gymnasium environment's images become square; simulators render squares.

    Raises:
        ConfigError: the file of a Gymnasium environment is wrong.
        EnvError: the simulator, the task or a camera is unknown, the simulator is not installed, or
            cannot render in that size.
        RenderingError: the simulator cannot render on this machine.
    """
    if not MIN_RENDER_SIZE <= render_size <= MAX_RENDER_SIZE:
        raise EnvError(
            f"{name}: expected images of {MIN_RENDER_SIZE} to {MAX_RENDER_SIZE} pixels, found "
            f"render size {render_size}; choose another"
        )
    is_gymnasium = name.startswith(f"{GYMNASIUM}:")
    simulator, separator, task = name.partition(":" if is_gymnasium else "/")
    if not is_gymnasium and (simulator not in SIMULATORS or not separator):
        close = difflib.get_close_matches(simulator, SIMULATORS, n=1, cutoff=0.5)
        example = f"{close[0]}/{task or 'drawer-open-v3'}" if close else f"{SIMULATORS[0]}/{name}"
        raise EnvError(
            f"{name}: expected <simulator>/<task> with one of the simulators "
            f"{', '.join(SIMULATORS)}, "
            f"or {GYMNASIUM}:<file>.toml, found {simulator!r}; did you mean {example}?"
        )
    with _installed(name):
        build = _builder(simulator, fit)
    try:
        env = build(task, views, render_size)
    except VlaError:
        raise
    except Exception as error:  # a simulator raises anything
        raise EnvError(
            f"{name}: expected an environment that can be built and reset, found "
            f"{type(error).__name__}: {one_line(error)}; check that its simulator works on its own"
        ) from error
    return GuardedExpertEnv(env) if isinstance(env, ExpertEnv) else GuardedEnv(env)


def envs_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return environments and those of suites, each once.

    Args:
        names: as `make_env` takes them; or suites: `libero/libero_object`, `metaworld/mt10`.

    Raises:
        EnvError: the suite is unknown or incomplete, or its simulator is not installed. The name of
            an environment is not examined.
    """
    found: list[str] = []
    for name in names:
        simulator, _, suite = name.partition("/")
        tasks: Iterable[str] = ()
        with _installed(name):
            if simulator == "metaworld":
                from pipeline.rollout.envs.metaworld import SUITES  # noqa: PLC0415

                tasks = SUITES.get(suite, ())
            elif simulator == "libero" and "/" not in suite:
                from pipeline.rollout.envs.libero_tasks import suite_tasks  # noqa: PLC0415

                tasks = [f"{suite}/{task}" for task in suite_tasks(suite)]
        found += [f"{simulator}/{task}" for task in tasks] or [name]
    return tuple(dict.fromkeys(found))


@contextmanager
def _installed(name: str) -> Iterator[None]:
    """Name the extra of an environment's simulator where a module is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        simulator = name.partition("/")[0].partition(":")[0]
        raise EnvError(
            f"{name}: expected the simulator {simulator} to be installed, found no module "
            f"{error.name}; {install_command(simulator)}"
        ) from error


def definition(name: str) -> str:
    """Return what defines an environment: the content of a Gymnasium one's file, else its name."""
    kind, _, file = name.partition(":")
    return Path(file).read_text() if kind == GYMNASIUM else name


def _builder(simulator: str, fit: Fit) -> Callable[[str, tuple[str, ...], int], RobotEnv]:
    """Import a simulator here, so that all are optional."""
    if simulator == "metaworld":
        from pipeline.rollout.envs.metaworld import MetaWorldEnv  # noqa: PLC0415

        return MetaWorldEnv
    if simulator == "aloha":
        from pipeline.rollout.envs.aloha import make_aloha_env  # noqa: PLC0415

        return make_aloha_env
    if simulator == "libero":
        from pipeline.rollout.envs.libero import make_libero_env  # noqa: PLC0415

        return make_libero_env
    if simulator == "planar":
        from pipeline.rollout.envs.planar import TwoWaysEnv  # noqa: PLC0415

        return TwoWaysEnv
    from pipeline.rollout.envs.gymnasium_env import GymnasiumEnv  # noqa: PLC0415

    return partial(GymnasiumEnv, fit=fit)


def make_expert_env(
    name: str, views: tuple[str, ...], render_size: int = DEFAULT_RENDER_SIZE
) -> ExpertEnv:
    """Build an environment that ships a scripted expert; arguments as in `make_env`.

    Raises:
        EnvError: as in `make_env`, or the environment has no expert.
    """
    env = make_env(name, views, render_size)
    if not isinstance(env, ExpertEnv):
        env.close()
        raise EnvError(
            f"{name}: expected an environment with a scripted expert, found none; record its "
            "demonstrations with your own tool and describe them in a manifest"
        )
    return env
