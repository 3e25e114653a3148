"""Which episodes of a store are held out of training."""

import torch
from jaxtyping import Bool
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.features.store.feature_store import FeatureStore


def validation_episodes(num_episodes: int, share: float, store: FeatureStore) -> Bool[Tensor, " e"]:
    """Choose the episodes of a store that are held out.

    Args:
        num_episodes: of the store.
        share: of the episodes, spread evenly over the store; any share above 0 holds out one
            episode or more, but never all. Where the manifest has a split, any share above 0 means
            the episodes of that split. 0 keeps none out, whatever the manifest says.
        store: whose manifest may have a split.

    Raises:
        StoreError: no episode would be left to train on, or a single one cannot be split.
    """
    is_validation = torch.isin(torch.arange(num_episodes), _chosen(num_episodes, share, store))
    if is_validation.all():
        raise StoreError(
            f"{store.path}: no step to train on, {int(is_validation.sum())} of {num_episodes} "
            f"episodes are held out; set validation_share=0, or train without this store"
        )
    return is_validation


def _chosen(num_episodes: int, share: float, store: FeatureStore) -> Tensor:
    if share == 0:
        return torch.empty(0, dtype=torch.int64)
    if store.attributes.validation is not None:
        return torch.tensor(store.attributes.validation, dtype=torch.int64)
    if num_episodes <= 1:
        raise StoreError(
            f"{store.path}: {num_episodes} episode, want 2 or more to hold one out; record more, "
            f"or set validation_share=0"
        )
    count = min(max(1, round(share * num_episodes)), num_episodes - 1)
    # The middle of each of `count` equal slices: recordings often drift from first to last.
    return ((torch.arange(count) + 0.5) * num_episodes / count).long()
