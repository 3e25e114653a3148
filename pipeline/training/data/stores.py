"""Feature stores as the data of one run: in what they must agree, and which episodes validate.

Features of two stores may meet in a batch only if one encoder made both, from the same views, for a
robot of the same widths and rate.
"""

import hashlib
import logging
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from pipeline.errors import ConfigError, StoreError
from pipeline.features.identity.probe import SYNTHETIC, relative_l2
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.steps import StepArrays

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


def check_agreement(stores: Sequence[FeatureStore], features: Sequence[str]) -> None:
    """Refuse stores whose rows cannot be one run's data, for a policy that reads these features.

    Raises:
        ConfigError: a store lacks a feature.
        StoreError: two stores differ in a field that decides rows or features, or are the same.
    """
    for store in stores:
        lacking = [name for name in features if name not in store.encoder.feature_names]
        if lacking:
            raise ConfigError(
                f"{store.path}: expected feature `{lacking[0]}` of agent.readers, found "
                f"{', '.join(store.encoder.feature_names)}; choose a preset that reads these, or "
                f"embed with --features"
            )
    first, *others = stores
    if not others:
        return
    expected = _deciding_fields(first, features)
    seen = {first.digest(): first}
    for store in others:
        for (field, ours, shown), (_, theirs, expected_shown) in zip(
            _deciding_fields(store, features), expected, strict=True
        ):
            if ours != theirs:
                raise StoreError(
                    f"{store.path}: {field}: expected {expected_shown} as in {first.path}, found "
                    f"{shown}; embed both stores with the same settings, or train on one of them"
                )
        _check_probes(store, first, features)
        # The same episode in training and validation would make the validation error too small.
        twin = seen.setdefault(store.digest(), store)
        if twin is not store:
            raise StoreError(
                f"{store.path}: has the same content as {twin.path}; to sample a store more "
                f"often, pass it once and increase its weight (--set data.weights)"
            )


def validation_episodes(num_episodes: int, share: float, store: FeatureStore) -> Bool[Tensor, " e"]:
    """Choose the validation episodes of a store.

    Args:
        num_episodes: of the store.
        share: of the episodes, spread evenly, one or more but never all. If the manifest has a
            split, any share above 0 means the episodes of that split. 0 means none.
        store: whose manifest may have a split.

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


def _deciding_fields(store: FeatureStore, features: Sequence[str]) -> list[tuple[str, object, str]]:
    """Return name, value and text of every field in which stores of a run must agree."""
    held, steps = store.attributes, store.read_steps()
    encoder = held.encoder.only(features)
    made_by = f"{encoder.name}, {encoder.compute_dtype} ({encoder.fingerprint[:12]})"
    state_dim, action_dim = steps.state.shape[1], steps.action.shape[1]
    return [
        ("encoder", encoder.fingerprint, made_by),
        ("views", held.view_names, ", ".join(held.view_names)),
        ("variants", held.num_variants, str(held.num_variants)),
        ("state width", state_dim, str(state_dim)),
        ("action width", action_dim, str(action_dim)),
        ("control rate in Hz", held.fps, f"{held.fps:g}"),
        ("fit of frames", held.fit, held.fit),
    ]


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
            where = other if differences else "the same environment"
            raise StoreError(
                f"{store.path}: feature `{name}` of the probe is {distance:.2g} (relative L2) from "
                f"that in {first.path}, expected at most {allowed:.2g} in {where}; embed one of "
                f"them again"
            )
