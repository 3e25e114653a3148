"""The encoder that made some features, loaded again, or nothing.

Knows encoders by their identity and probe; nothing about stores, runs or simulators.
"""

import torch

from pipeline.errors import EncoderMismatchError
from policy.encoders.siglip2 import STAND_IN, FrozenSiglip2, load_backbone
from policy.spec import EncoderIdentity


def load_same_encoder(
    made_by: EncoderIdentity, name: str | None, *, where: str, device: torch.device | None = None
) -> FrozenSiglip2:
    """Load an encoder and refuse it unless its fingerprint is `made_by`'s.

    Args:
        made_by: the encoder of the features.
        name: hub repository, local folder or `stand-in`; None takes `made_by`'s own name.
        where: what holds the features, for the message.
        device: where the tower runs; None is the CPU.

    Raises:
        EncoderLoadError: the encoder cannot be loaded.
        EncoderMismatchError: it is another encoder.
    """
    if name is None and made_by.revision == "local":
        raise EncoderMismatchError(
            f"{where}: features come from the local folder {made_by.name}; name it with --backbone"
        )
    encoder = load_backbone(
        name or made_by.name,
        revision=revision_to_load(made_by, name),
        compute_dtype=made_by.compute_dtype,
        device=device,
    )
    if encoder.identity.fingerprint != made_by.fingerprint:
        raise EncoderMismatchError(
            f"{where}: features come from {made_by.name} (fingerprint {made_by.fingerprint[:12]}), "
            f"{encoder.identity.name} is another encoder ({encoder.identity.fingerprint[:12]}); "
            f"name the right one with --backbone"
        )
    return encoder


def revision_to_load(made_by: EncoderIdentity, name: str | None) -> str | None:
    """Return the commit to ask the hub for; None where it is not the hub that is asked."""
    return made_by.revision if name is None and made_by.name != STAND_IN else None
