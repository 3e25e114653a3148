"""What several commands share: options of one wording, and configurations from options."""

from collections.abc import Sequence
from typing import Annotated, Final, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError

DATASET: Final = "A dataset: folder, file, hf://owner/name[@revision]; or its manifest."
LOCATION: Final = ": a folder, s3://bucket/path or gs://bucket/path."  # ends the help of a store

CheckpointOption = Annotated[str, typer.Option(help="latest, best or a step.")]
EncoderOption = Annotated[
    str | None, typer.Option(help="Path or name of the run's encoder, if it moved.")
]
DeviceOption = Annotated[
    str, typer.Option(help="Where networks run: auto (a GPU if there is one), cpu, cuda, cuda:N.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other field, as field=value; a wrong name lists them all."),
]

Config = TypeVar("Config", bound=BaseModel)


def build_config(model: type[Config], settings: Sequence[str] | None, **options: object) -> Config:
    """Build a configuration from a command's options and from `field=value` for other fields.

    Raises:
        ConfigError: a setting names no other field, or a value is out of range.
    """
    fields = dict(options)
    for setting in settings or ():
        name, separator, value = setting.partition("=")
        known = [field for field in model.model_fields if field not in options]
        if not separator or name not in known:
            raise ConfigError(f"--set {setting}: want field=value, known: {', '.join(known)}")
        fields[name] = value
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"][:1]))
        option = f"--{field} " if field in options else f"--set {field}="
        raise ConfigError(f"{option}{first['input']}: {first['msg']}") from error
