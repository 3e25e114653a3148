"""The encoder that made some features, loaded again, or an error."""

from collections.abc import Mapping

import numpy as np
import torch

from pipeline.errors import EncoderMismatchError
from policy.encoders.base import EncoderSettings, ImageEncoder
from policy.encoders.environment import ComputeEnvironment
from policy.encoders.registry import ENCODERS, TEXT_ENCODERS, load_encoder, load_text_encoder
from policy.encoders.text import TextEncoder, TextSettings
from policy.spec import EncoderIdentity


def load_like(
    made_by: EncoderIdentity,
    environment: ComputeEnvironment,
    bases: Mapping[str, np.ndarray],
    *,
    name: str | None,
    where: str,
    device: torch.device,
    compiled: bool = False,
) -> ImageEncoder:
    """Load an encoder, set up to make the features of `made_by`, with as many images per pass.

    `name` is a repository, local folder or registered encoder, None `made_by`'s own name; `where`
    is what holds the features, for the message.

    Raises:
        EncoderLoadError: it cannot be loaded, or makes no such features.
        EncoderMismatchError: it is another one, or comes from a local folder and no name is given.
    """
    name, revision = _name_and_revision(made_by, name, where, "--encoder")
    encoder = load_encoder(
        EncoderSettings(
            name=name,
            images_per_pass=environment.images_per_pass,
            features=made_by.feature_names,
            revision=revision,
            compute_dtype=made_by.compute_dtype,
            device=device,
            compiled=compiled,
            bases=bases,
        )
    )
    refuse_other_encoder(encoder, made_by, where=where)
    return encoder


def load_text_like(
    made_by: EncoderIdentity, *, name: str | None, where: str, option: str = "--text-encoder"
) -> TextEncoder:
    """Load the text encoder that made the vectors of some instructions.

    `name` and `where` as in `load_like`; `option` is how the user names one, for the message.

    Raises:
        EncoderLoadError: it cannot be loaded.
        EncoderMismatchError: it is another one, or comes from a local folder and no name is given.
    """
    name, revision = _name_and_revision(made_by, name, where, option)
    encoder = load_text_encoder(TextSettings(name=name, revision=revision))
    found = encoder.identity
    if found.fingerprint != made_by.fingerprint:
        raise EncoderMismatchError(
            f"{where}: expected the text encoder {made_by.name} ({made_by.fingerprint[:12]}), "
            f"found {found.name} ({found.fingerprint[:12]}); pass the right one with {option}"
        )
    return encoder


def _name_and_revision(
    made_by: EncoderIdentity, name: str | None, where: str, option: str
) -> tuple[str, str | None]:
    """Return what to load; the revision of a repository on the hub, None of others."""
    if name is not None:
        return name, None
    if made_by.revision == "local":
        raise EncoderMismatchError(
            f"{where}: features come from the local folder {made_by.name}; pass its path with "
            f"{option}"
        )
    is_on_hub = made_by.name not in {*ENCODERS, *TEXT_ENCODERS}
    return made_by.name, made_by.revision if is_on_hub else None


def refuse_other_encoder(encoder: ImageEncoder, made_by: EncoderIdentity, *, where: str) -> None:
    """Refuse another encoder than `made_by`, or other features of it (EncoderMismatchError)."""
    found = encoder.identity
    if found.fingerprint == made_by.fingerprint:
        return
    if found.weights != made_by.weights:
        differs = "weights, preprocessing or dtype"
    else:
        held = set(found.features)
        names = [f"`{feature.name}`" for feature in made_by.features if feature not in held]
        differs = f"layer, pooling or basis of {' and '.join(names)}"
    raise EncoderMismatchError(
        f"{where}: expected the encoder {made_by.name} ({made_by.compute_dtype}, fingerprint "
        f"{made_by.fingerprint[:12]}), found {found.name} ({found.compute_dtype}, "
        f"{found.fingerprint[:12]}) with different {differs}; pass the right one with --encoder"
    )
