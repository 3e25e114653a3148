"""Several feature stores as the data of one run: what must agree, and how often each is drawn.

Knows stores; nothing about windows or runs. Features of two stores may meet in a batch only where
one encoder made both, from the same views, for a robot of the same widths and rate.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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


@contextmanager
def unreplaced(stores: Sequence[FeatureStore]) -> Iterator[tuple[str, ...]]:
    """Give the digests of complete stores; see `FeatureStore.unreplaced`.

    Raises:
        StoreError: a store was replaced or written meanwhile.
    """
    with ExitStack() as held:
        yield tuple(held.enter_context(store.unreplaced()) for store in stores)


def check_weights(weights: Sequence[float], num_stores: int) -> tuple[float, ...]:
    """Return a weight a store; none given means 1 for each.

    Raises:
        ConfigError: there are more or fewer than stores, or one is not positive and finite.
    """
    if not weights:
        return (1.0,) * num_stores
    if len(weights) != num_stores or not all(0 < w < math.inf for w in weights):
        raise ConfigError(
            f"weights {', '.join(f'{weight:g}' for weight in weights)}: want {num_stores}, a "
            f"positive number a store, in the order of the stores"
        )
    return tuple(map(float, weights))


def check_agreement(stores: Sequence[FeatureStore], features: Sequence[str]) -> None:
    """Refuse stores whose rows cannot be one run's data.

    Args:
        stores: of the run.
        features: names of those that its policy reads.

    Raises:
        ConfigError: a store lacks a feature; the message lists what it has.
        StoreError: a store differs from the first in a field that decides rows or features, or two
            hold the same content; the message names both and the field.
    """
    for store in stores:
        lacking = [name for name in features if name not in store.encoder.feature_names]
        if lacking:
            raise ConfigError(
                f"{store.path}: has no feature `{lacking[0]}`, which agent.readers names; it has "
                f"{', '.join(store.encoder.feature_names)}; choose a preset that reads these, or "
                f"embed with --features"
            )
    first, *others = stores
    if not others:
        return
    expected = _deciding_fields(first, features)
    seen = {first.digest(): first}
    for store in others:
        for (field, ours, said), (_, theirs, asked) in zip(
            _deciding_fields(store, features), expected, strict=True
        ):
            if ours != theirs:
                raise StoreError(
                    f"{store.path}: {field} is {said}, in {first.path} it is {asked}; stores of "
                    f"one run must agree, so embed both alike, or train on one of them"
                )
        _check_probes(store, first, features)
        # The same episode in training and held out would make the validation error a lie.
        twin = seen.setdefault(store.digest(), store)
        if twin is not store:
            raise StoreError(
                f"{store.path}: content is that of {twin.path}; to draw a store more often, name "
                f"it once and raise its weight (--weights)"
            )


def find_leaks(
    stores: Sequence[FeatureStore],
    steps: Sequence[StepArrays],
    is_validation: Sequence[Bool[Tensor, " _"]],
) -> tuple[tuple[str, str], ...]:
    """Find validation episodes that are trained on too: by another store, or another number.

    Two episodes count as one where their states and actions are equal, bit for bit.

    Args:
        stores: of the run.
        steps: of each store.
        is_validation: which of its episodes are held out.

    Returns:
        What names such an episode, and what names an equal one among the training's.
    """
    if not any(map(torch.any, is_validation)):
        return ()
    trained: dict[bytes, str] = {}
    validation: list[tuple[bytes, str]] = []
    for store, arrays, is_out in zip(stores, steps, is_validation, strict=True):
        for episode, (start, stop) in enumerate(pairwise([0, *arrays.episode_ends])):
            hashed = hashlib.sha256(arrays.state[start:stop].tobytes())
            hashed.update(arrays.action[start:stop].tobytes())
            digest, place = hashed.digest(), f"episode {episode} of {store.path}"
            if is_out[episode]:
                validation.append((digest, place))
            else:
                trained.setdefault(digest, place)
    return tuple((place, trained[digest]) for digest, place in validation if digest in trained)


def warn_of_leaks(leaks: Sequence[tuple[str, str]]) -> None:
    """Say if there are any of those that `find_leaks` finds."""
    if leaks:
        told = (
            "%d validation episodes are trained on too (%s is %s, by its states and actions), and "
            "validation errors flatter; leave one out, or name both under splits.validation"
        )
        logger.warning(told, len(leaks), *leaks[0])


def _deciding_fields(store: FeatureStore, features: Sequence[str]) -> list[tuple[str, object, str]]:
    """Return name, value and words of every field in which stores of a run must agree."""
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
            f"{store.path}: frames of the probe are drawn or resized another way than in "
            f"{first.path}; embed both with one version of this program"
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
                f"that in {first.path}, want at most {allowed:.2g} in {where}; embed one of them "
                f"again"
            )
