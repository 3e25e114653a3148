"""From a name such as `metaworld/drawer-open-v3` to an environment; simulators are optional."""

import pkgutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pipeline.errors import EnvError
from pipeline.rollout.envs.base import DEFAULT_RENDER_SIZE, ExpertEnv, RobotEnv
from pipeline.rollout.envs.guard import GuardedEnv, GuardedExpertEnv
from policy.errors import VlaError, install_command, one_line
from policy.spec import Fit

# What builds an environment from task, views and render size; imported when it is used.
SIMULATORS: Final = {
    "metaworld": "pipeline.rollout.envs.metaworld:MetaWorldEnv",
    "aloha": "pipeline.rollout.envs.aloha:make_aloha_env",
    "libero": "pipeline.rollout.envs.libero:make_libero_env",
    "planar": "pipeline.rollout.envs.planar:TwoWaysEnv",
}
GYMNASIUM: Final = "gymnasium"
_GYMNASIUM_ENV: Final = "pipeline.rollout.envs.gymnasium_env:GymnasiumEnv"
RENDER_SIZES: Final = (64, 2048)  # pixels: a quarter of what the encoder takes; frames of 12 MB


def make_env(
    name: str, views: tuple[str, ...], render_size: int = DEFAULT_RENDER_SIZE, fit: Fit = "stretch"
) -> RobotEnv:
    """Build an environment; see `GuardedEnv` for what its calls may raise.

    Args:
        name: `<simulator>/<task>`: `metaworld/drawer-open-v3`, `aloha/transfer-cube`,
            `libero/libero_object/0`; or `gymnasium:<file>` with a configuration as
            `gymnasium_env.py` describes it.
        views: its cameras, in the order in which the policy sees them.
        render_size: width and height in pixels of the images that `render` returns.
        fit: how a Gymnasium environment's images become square; simulators render squares.

    Raises:
        ConfigError: the file of a Gymnasium environment is wrong.
        EnvError: the simulator, the task or a camera is unknown, the simulator is not installed, or
            cannot render in that size.
        RenderingError: the simulator cannot render on this machine.
    """
    low, high = RENDER_SIZES
    if not low <= render_size <= high:
        raise EnvError(f"{name}: expected {low} to {high} pixels, found render size {render_size}")
    is_gymnasium = name.startswith(f"{GYMNASIUM}:")
    simulator, separator, task = name.partition(":" if is_gymnasium else "/")
    if not is_gymnasium and (simulator not in SIMULATORS or not separator):
        raise EnvError(
            f"{name}: expected <simulator>/<task> with one of the simulators "
            f"{', '.join(SIMULATORS)}, as metaworld/reach-v3, or {GYMNASIUM}:<file>.toml"
        )
    options = {"fit": fit} if is_gymnasium else {}
    with _installed(name):
        build = pkgutil.resolve_name(_GYMNASIUM_ENV if is_gymnasium else SIMULATORS[simulator])
        try:
            env: RobotEnv = build(task, views, render_size, **options)
        except (VlaError, ImportError):
            raise
        except Exception as error:  # a simulator raises anything
            raise EnvError(
                f"{name}: expected an environment that can be built and reset, found "
                f"{type(error).__name__}: {one_line(error)}; check that its simulator works alone"
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
    """Name the extra of an environment's simulator where a part of it is missing."""
    try:
        yield
    except ImportError as error:
        simulator = name.partition("/")[0].partition(":")[0]
        raise EnvError(
            f"{name}: expected the simulator {simulator} to be installed, found "
            f"{one_line(error)}; {install_command(simulator)}"
        ) from error


def definition(name: str) -> str:
    """Return what defines an environment: the content of a Gymnasium one's file, else its name."""
    kind, _, file = name.partition(":")
    return Path(file).read_text() if kind == GYMNASIUM else name


def make_expert_env(
    name: str, views: tuple[str, ...], render_size: int = DEFAULT_RENDER_SIZE
) -> ExpertEnv:
    """Build an environment as `make_env` does (EnvError: it ships no scripted expert)."""
    env = make_env(name, views, render_size)
    if not isinstance(env, ExpertEnv):
        env.close()
        raise EnvError(
            f"{name}: expected an environment with a scripted expert, found none; record its "
            "demonstrations with your own tool and describe them in a manifest"
        )
    return env
