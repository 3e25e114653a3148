"""What commands share: options of one wording, configurations from options, and how they end."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Final, NoReturn, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError, FailedUnitsError
from pipeline.progress import show_notes
from policy.errors import VlaError

USER_ERROR: Final = 2
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
DISK_FIXES: Final = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; free some space, then run it again"),
    **dict.fromkeys((errno.EACCES, errno.EROFS), "; choose a path that you can read and write"),
    errno.ENOTDIR: "; expected a folder above it, found a file",
}

DATASET: Final = "Dataset: folder, file, hf://owner/name, hf://owner/name@commit; or its manifest."
LOCATION: Final = ": a folder, s3://bucket/path or gs://bucket/path."  # ends the help of a store

CheckpointOption = Annotated[str, typer.Option(help="Checkpoint: latest, best or a step.")]
EncoderOption = Annotated[
    str | None, typer.Option(help="Path or name of the encoder, if it has moved.")
]
DeviceOption = Annotated[
    str, typer.Option(help="Torch device: auto (a GPU if available), cpu, cuda, cuda:N.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other field as field=value; an unknown name lists all fields."),
]

Config = TypeVar("Config", bound=BaseModel)


def build_config(
    model: type[Config], settings: Sequence[str] | None, *, group: str = "", **options: object
) -> Config:
    """Build a configuration from a command's options and from `field=value` for other fields.

    `group`, as in `--set group.field=value`, is what was cut off these settings.

    Raises:
        ConfigError: a setting names no other field, or a value is out of range.
    """
    fields, group = dict(options), group and f"{group}."
    for setting in settings or ():
        name, separator, value = setting.partition("=")
        known = [field for field in model.model_fields if field not in options]
        if not separator or name not in known:
            names = ", ".join(f"{group}{field}" for field in known)
            raise ConfigError(f"--set {group}{setting}: expected field=value with one of {names}")
        fields[name] = value
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][:1]))
        option = f"--{field} " if field in options else f"--set {group}{field}="
        raise ConfigError(f"{option}{first['input']}: {first['msg']}") from error


@contextmanager
def exit_on_vla_error(after_interrupt: str) -> Iterator[None]:
    """Turn a user's error into one line on stderr and an exit code; let our defects show.

    Args:
        after_interrupt: what Ctrl-C leaves behind and how to resume, in a few words.
    """
    show_notes()
    try:
        yield
    except VlaError as error:
        for reason in error.reasons if isinstance(error, FailedUnitsError) else ():
            typer.echo(reason, err=True)
        _exit(str(error), error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fix = DISK_FIXES.get(error.errno or 0, "")
        _exit(f"{where}{error.strerror or error}{fix}", error)
    except MemoryError as error:
        reason = f"out of memory: {error}".removesuffix(": ")
        _exit(f"{reason}; use a machine with more memory, or smaller frames and arrays", error)
    except KeyboardInterrupt as interrupt:
        typer.echo(f"\ninterrupted; {after_interrupt}", err=True)
        raise typer.Exit(INTERRUPTED) from interrupt


def _exit(line: str, cause: Exception) -> NoReturn:
    typer.echo(f"error: {' '.join(line.split())}", err=True)
    raise typer.Exit(USER_ERROR) from cause
