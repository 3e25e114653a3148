"""How every command ends: one line and exit code 2 for a user's error, 130 for Ctrl-C.

Knows exit codes; nothing about what a command does.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from policy.errors import VlaError

USER_ERROR: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count


@contextmanager
def exit_on_vla_error(after_interrupt: str) -> Iterator[None]:
    """Turn a user's error into one line on stderr and an exit code; let our defects show.

    Args:
        after_interrupt: what Ctrl-C leaves behind and how to go on, in a few words.
    """
    logging.addLevelName(logging.INFO, "note")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)
    try:
        yield
    except VlaError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(USER_ERROR) from error
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or error
        advice = "want a place that can be read and written"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some room there, then run the same command again"
        typer.echo(f"error: {place}{reason}; {advice}", err=True)
        raise typer.Exit(USER_ERROR) from error
    except MemoryError as error:
        reason = " ".join(f"the memory is full: {error}".split()).removesuffix(":")
        typer.echo(f"error: {reason}; want more of it, or smaller frames and arrays", err=True)
        raise typer.Exit(USER_ERROR) from error
    except KeyboardInterrupt as interrupt:
        typer.echo(f"\ninterrupted; {after_interrupt}", err=True)
        raise typer.Exit(INTERRUPTED) from interrupt
