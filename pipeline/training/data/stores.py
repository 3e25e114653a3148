"""Feature stores as the data of one run: in what they must agree, and which episodes validate.

Features of two stores may meet in a batch only if one encoder made both, from the same views, for a
robot of the same widths and rate.
"""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pipeline.errors import ConfigError, StoreError
from pipeline.features.identity.probe import SYNTHETIC, relative_l2
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.steps import StepArrays
from policy.spec import EncoderIdentity

logger = logging.getLogger(__name__)


def check_weights(weights: Sequence[float], num_stores: int) -> tuple[float, ...]:
    """Return a weight per store, 1 if none is given (ConfigError: a number or a value is wrong)."""
    if not weights:
        return (1.0,) * num_stores
    if len(weights) != num_stores or not all(0 < w < math.inf for w in weights):
        raise ConfigError(
            f"data.weights: expected {num_stores} positive numbers, one per store in their order, "
            f"found {', '.join(f'{weight:g}' for weight in weights)}"
        )
    return tuple(map(float, weights))


def check_agreement(
    stores: Sequence[FeatureStore],
    steps: Sequence[StepArrays],
    features: Sequence[str],
    *,
    has_language: bool,
) -> None:
    """Refuse stores whose rows cannot be one run's data, for a policy that reads these features.

    Raises:
        ConfigError: a store lacks a feature, or vectors of its instructions where these are needed.
        StoreError: two stores differ in a field that decides rows or features, or are the same.
    """
    first = stores[0]
    expected = _deciding_fields(first, steps[0], features, has_language)
    paths: dict[str, object] = {}
    for store, arrays in zip(stores, steps, strict=True):
        found = _deciding_fields(store, arrays, features, has_language)
        for field, (value, shown) in found.items():
            if value != expected[field][0]:
                raise StoreError(
                    f"{store.path}: {field}: expected {expected[field][1]} as in {first.path}, "
                    f"found {shown}; embed both with the same settings, or train on one of them"
                )
        if store is not first:
            _check_probes(store, first, features)
        # The same episode in training and validation would make the validation error too small.
        digest = store.digest()
        if digest in paths:
            raise StoreError(
                f"{store.path}: has the same content as {paths[digest]}; to sample a store more "
                f"often, pass it once and increase its weight (--set data.weights)"
            )
        paths[digest] = store.path


def validation_episodes(num_episodes: int, share: float, store: FeatureStore) -> Bool[Tensor, " e"]:
    """Choose the validation episodes of a store.

    They are a share of the episodes, spread evenly, one or more but never all. If the manifest has
    a split, any share above 0 means the episodes of that split. 0 means none.

    Raises:
        StoreError: no episode would be left to train on, or a single one cannot be split.
    """
    chosen = torch.empty(0, dtype=torch.int64)
    if share and store.attributes.validation is not None:
        chosen = torch.tensor(store.attributes.validation, dtype=torch.int64)
    elif share:
        if num_episodes <= 1:
            raise StoreError(
                f"{store.path}: expected 2 or more episodes, one for validation, found 1; record "
                f"more, or set validation_share=0"
            )
        count = min(max(1, round(share * num_episodes)), num_episodes - 1)
        # The middle of each of `count` equal slices: recordings often drift from first to last.
        chosen = ((torch.arange(count) + 0.5) * num_episodes / count).long()
    is_validation = torch.isin(torch.arange(num_episodes), chosen)
    if is_validation.all():
        raise StoreError(
            f"{store.path}: expected episodes to train on, found all {num_episodes} in the "
            f"validation split; set validation_share=0, or train without this store"
        )
    return is_validation


def find_leaks(
    stores: Sequence[FeatureStore],
    steps: Sequence[StepArrays],
    is_validation: Sequence[Bool[Tensor, " _"]],
) -> tuple[tuple[str, str], ...]:
    """Find validation episodes that are also trained on, in another store or under another number.

    Two episodes are the same if their states and actions are equal, bit for bit. Return pairs of
    names: of the validation episode, and of the same one among the training's.
    """
    if not any(map(torch.any, is_validation)):
        return ()
    trained: dict[bytes, str] = {}
    validation: list[tuple[bytes, str]] = []
    for store, arrays, is_out in zip(stores, steps, is_validation, strict=True):
        for episode, (start, stop) in enumerate(pairwise([0, *arrays.episode_ends])):
            hashed = hashlib.sha256(arrays.state[start:stop].tobytes())
            hashed.update(arrays.action[start:stop].tobytes())
            digest, name = hashed.digest(), f"episode {episode} of {store.path}"
            if is_out[episode]:
                validation.append((digest, name))
            else:
                trained.setdefault(digest, name)
    return tuple((name, trained[digest]) for digest, name in validation if digest in trained)


def warn_of_leaks(leaks: Sequence[tuple[str, str]]) -> None:
    """Log a warning about what `find_leaks` has found."""
    if leaks:
        warning = (
            "%d validation episodes are also in the training data (%s equals %s in states and "
            "actions), so validation errors are too low; remove one, or list both in "
            "splits.validation"
        )
        logger.warning(warning, len(leaks), *leaks[0])


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
    """Join the instructions of stores that agree, of so many episodes each."""
    rows: dict[str, np.ndarray | None] = {}
    of_episode = []
    for store, count in zip(stores, counts, strict=True):
        held = store.attributes
        words = held.instructions or ("",)
        vectors = list(store.read_instructions()) if with_vectors else [None] * len(words)
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


def _deciding_fields(
    store: FeatureStore, steps: StepArrays, features: Sequence[str], has_language: bool
) -> dict[str, tuple[object, str]]:
    """Return value and text of every field in which stores of a run must agree."""
    held = store.attributes
    lacking = [name for name in features if name not in held.encoder.feature_names]
    if lacking:
        raise ConfigError(
            f"{store.path}: expected feature `{lacking[0]}` of agent.readers, found "
            f"{', '.join(held.encoder.feature_names)}; choose a preset that reads these, or "
            f"embed with --features"
        )
    encoders = {"encoder": held.encoder.only(features)}
    if has_language:
        if held.text_encoder is None:
            raise ConfigError(
                f"{store.path}: expected vectors of its instructions for agent.language, found "
                f"none; run the same vla-embed command with --text-encoder, which encodes nothing "
                f"else"
            )
        encoders["text encoder"] = held.text_encoder
    numbers = {
        "variants": held.num_variants,
        "state width": steps.state.shape[1],
        "action width": steps.action.shape[1],
        "control rate in Hz": held.fps,
    }
    made_by = {
        field: (one.fingerprint, f"{one.name}, {one.compute_dtype} ({one.fingerprint[:12]})")
        for field, one in encoders.items()
    }
    return {
        **made_by,
        "views": (held.view_names, ", ".join(held.view_names)),
        **{field: (number, f"{number:g}") for field, number in numbers.items()},
        "fit of frames": (held.fit, held.fit),
    }


def _check_probes(store: FeatureStore, first: FeatureStore, features: Sequence[str]) -> None:
    """Compare the features of the frames that every probe draws, as fingerprints cannot."""
    ours, theirs = store.read_probe(), first.read_probe()
    drawn = slice(len(SYNTHETIC))
    if not np.array_equal(ours.frames[drawn], theirs.frames[drawn]):
        raise StoreError(
            f"{store.path}: probe frames are generated or resized differently than in "
            f"{first.path}; embed both with the same version of frozen-vla"
        )
    differences = theirs.environment.differences(ours.environment)
    allowed = theirs.tolerance if differences else 0.0
    for name in features:
        distance = relative_l2(ours.features[name][drawn], theirs.features[name][drawn]).max()
        if distance > allowed:
            other = f"another environment ({'; '.join(differences)})"
            raise StoreError(
                f"{store.path}: feature `{name}` of the probe is {distance:.2g} (relative L2) from "
                f"that in {first.path}, expected at most {allowed:.2g} in "
                f"{other if differences else 'the same environment'}; embed one of them again"
            )
