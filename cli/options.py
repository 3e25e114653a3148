"""What several commands share: options of one wording, and configurations from options."""

from collections.abc import Sequence
from typing import Annotated, Final, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError

DATASET: Final = "A dataset: folder, file, hf://owner/name[@revision]; or its manifest."
LOCATION: Final = ": a folder, s3://bucket/path or gs://bucket/path."  # ends the help of a store

CheckpointOption = Annotated[str, typer.Option(help="Checkpoint: latest, best or a step.")]
EncoderOption = Annotated[
    str | None, typer.Option(help="Path or name of the run's encoder, if it has moved.")
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
