"""The refusals that all environments share, so that they read alike.

Knows names and numbers; knows no simulator.
"""

from collections.abc import Collection

import numpy as np

from pipeline.errors import EnvError


def require_views(name: str, views: tuple[str, ...], offered: Collection[str]) -> None:
    """Refuse views that an environment does not have, none at all, and one that is named twice.

    Raises:
        EnvError: they are; the message lists the views that `name` offers.
    """
    if not views or len(set(views)) < len(views) or not set(views).issubset(offered):
        raise EnvError(
            f"{name}: expected different views out of {', '.join(offered)}, found "
            f"{', '.join(views) or 'none'}; correct the views"
        )


def require_seed(name: str, seed: int) -> None:
    """Refuse a seed that no random generator of a simulator takes.

    Raises:
        EnvError: it is negative or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise EnvError(f"{name}: expected a seed from 0 to 2^32 - 1, found {seed}; choose one")


def require_action(name: str, action: np.ndarray, width: int) -> None:
    """Refuse an action of another width, and one that is not finite.

    Raises:
        EnvError: it is.
    """
    if action.shape != (width,) or not np.isfinite(action).all():
        raise EnvError(
            f"{name}: expected {width} finite numbers as action, found {action}; check the "
            "policy's action width and its training"
        )


def require_episode(name: str, *, is_open: bool, has_begun: bool) -> None:
    """Refuse to go on where no episode runs.

    Raises:
        EnvError: the environment is closed, or `reset` was not called.
    """
    if not is_open:
        raise EnvError(f"{name}: expected an open environment, found it closed; build one")
    if not has_begun:
        raise EnvError(f"{name}: expected reset(seed) first, found no episode; call reset")


def require_time_left(name: str, *, is_over: bool, max_steps: int) -> None:
    """Refuse a step after the last one.

    Raises:
        EnvError: the episode is over, by its time limit or by the simulator's own end.
    """
    if is_over:
        raise EnvError(
            f"{name}: expected a step of an episode, at most {max_steps}, found that it is over; "
            "reset first"
        )
