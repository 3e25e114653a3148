"""The encoders: a name, and the module that loads it on request."""

from importlib import import_module
from typing import Final

from policy.encoders.base import EncoderSettings, ImageEncoder
from policy.encoders.environment import reuse_freed_memory
from policy.encoders.text import TextEncoder, TextSettings
from policy.errors import EncoderLoadError

DEFAULT_ENCODER: Final = "google/siglip2-base-patch16-256"
CHECKPOINTS: Final = "policy.encoders.siglip2"  # loads what is not listed: repositories and folders
ENCODERS: Final[dict[str, str]] = {
    "efficientnet-lite0": "policy.encoders.efficientnet",
    "stand-in": "policy.encoders.stand_in",
}
"""Each module has a function `load`, from settings to the encoder."""
TEXT_CHECKPOINTS: Final = "policy.encoders.siglip2_text"
TEXT_ENCODERS: Final[dict[str, str]] = {"all-minilm-l6-v2": "policy.encoders.minilm"}


def load_encoder(settings: EncoderSettings) -> ImageEncoder:
    """Load the encoder of that name; never another one instead.

    Raises:
        EncoderLoadError: there is no such encoder or no such feature of it, the hub is unreachable,
            a file is missing, or weights or preprocessing are not what the encoder needs.
        MissingExtraError: the encoder needs a package that is not installed.
    """
    name, revision = settings.name, settings.revision
    if revision is not None and name in ENCODERS:
        raise EncoderLoadError(f"{name}: expected no revision (it is built in), found {revision!r}")
    if settings.device.type == "cpu":
        reuse_freed_memory()
    module = import_module(ENCODERS.get(name, CHECKPOINTS))
    encoder: ImageEncoder = module.load(settings)
    return encoder


def load_text_encoder(settings: TextSettings) -> TextEncoder:
    """Load the text encoder of that name; errors as in `load_encoder`."""
    module = import_module(TEXT_ENCODERS.get(settings.name, TEXT_CHECKPOINTS))
    encoder: TextEncoder = module.load(settings)
    return encoder
