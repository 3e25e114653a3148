"""The instruction of each episode of a run's stores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.errors import ConfigError, StoreError
from pipeline.features.store.feature_store import FeatureStore
from policy.spec import EncoderIdentity


@dataclass(frozen=True)
class InstructionTable:
    """The distinct instructions of a run's stores, and which episode had which."""

    words: tuple[str, ...]
    """In the order of their first store; a single empty one if there are none."""
    of_episode: Int64[Tensor, " e"]
    """Position of each episode's; the episodes of the stores follow one another."""
    vectors: Float[Tensor, "k d"] | None = None
    """Of the words, as the text encoder made them; None for a policy without instructions."""
    encoder: EncoderIdentity | None = None


def join_instructions(
    stores: Sequence[FeatureStore], counts: Sequence[int], *, with_vectors: bool
) -> InstructionTable:
    """Join the instructions of some stores of so many episodes.

    Raises:
        ConfigError: a store has no vectors, and they are needed.
        StoreError: two stores have vectors of different text encoders, or one is damaged.
    """
    rows: dict[str, np.ndarray | None] = {}
    of_episode = []
    for store, count in zip(stores, counts, strict=True):
        held = store.attributes
        vectors: list[np.ndarray | None] = [None] * max(1, len(held.instructions))
        if with_vectors:
            _require_vectors(store, stores[0])
            vectors = list(store.read_instructions())
        words = held.instructions or ("",)
        for word, vector in zip(words, vectors, strict=True):
            rows.setdefault(word, vector)
        positions = torch.tensor([list(rows).index(word) for word in words])
        of_episode.append(positions[torch.tensor(held.instruction_of or (0,) * count)])
    found = [vector for vector in rows.values() if vector is not None]
    return InstructionTable(
        words=tuple(rows),
        of_episode=torch.cat(of_episode),
        vectors=torch.from_numpy(np.stack(found)) if found else None,
        encoder=stores[0].attributes.text_encoder if with_vectors else None,
    )


def _require_vectors(store: FeatureStore, first: FeatureStore) -> None:
    found, expected = store.attributes.text_encoder, first.attributes.text_encoder
    if found is None:
        raise ConfigError(
            f"{store.path}: expected vectors of its instructions for agent.language, found none; "
            f"run the same vla-embed command with --text-encoder, which encodes nothing else"
        )
    if expected is not None and found.fingerprint != expected.fingerprint:
        raise StoreError(
            f"{store.path}: text encoder: expected {expected.name} ({expected.fingerprint[:12]}) "
            f"as in {first.path}, found {found.name} ({found.fingerprint[:12]}); embed both stores "
            f"with the same --text-encoder"
        )
