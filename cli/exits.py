"""How every command ends: one line and exit code 2 for a user's error, 130 for Ctrl-C."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from pipeline.progress import show_notes
from policy.errors import VlaError

USER_ERROR: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
DISK_FIXES: Final = {
    errno.ENOSPC: "; free some space, then run the same command again",
    errno.EDQUOT: "; free some space, then run the same command again",
    errno.EACCES: "; choose a path that you can read and write",
    errno.EROFS: "; choose a path that you can read and write",
    errno.ENOTDIR: "; expected a folder above it, found a file",
}


@contextmanager
def exit_on_vla_error(after_interrupt: str) -> Iterator[None]:
    """Turn a user's error into one line on stderr and an exit code; let our defects show.

    Args:
        after_interrupt: what Ctrl-C leaves behind and how to resume, in a few words.
    """
    show_notes()
    cause: Exception
    try:
        yield
        return
    except VlaError as error:
        line, cause = str(error), error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fix = DISK_FIXES.get(error.errno or 0, "")
        line, cause = f"{where}{error.strerror or error}{fix}", error
    except MemoryError as error:
        reason = f"out of memory: {error}".removesuffix(": ")
        line, cause = (
            f"{reason}; use a machine with more memory, or smaller frames and arrays",
            error,
        )
    except KeyboardInterrupt as interrupt:
        typer.echo(f"\ninterrupted; {after_interrupt}", err=True)
        raise typer.Exit(INTERRUPTED) from interrupt
    typer.echo(f"error: {' '.join(line.split())}", err=True)
    raise typer.Exit(USER_ERROR) from cause
