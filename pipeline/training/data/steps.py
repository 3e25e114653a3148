"""Training windows: what of the stores always lies in memory, and which rows a window holds.

Knows states, actions and episode borders; where features lie is its subclasses' business. The rows
of several stores follow one another, and so do their episodes. A window is named by its current
step: it holds the `obs_horizon` steps that end there and the `pred_horizon` actions that start
there. Observations before an episode's first step repeat that step; actions after its last step
repeat that one and are marked invalid, so that they do not count in the loss; so no window leaves
its episode.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int64
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.features.store.attributes import SourceShare
from pipeline.features.store.feature_store import FeatureStore
from pipeline.training.config import TrainConfig
from pipeline.training.data.sampling import SourceDraws, source_draws
from pipeline.training.data.stores import check_agreement, check_weights, find_leaks
from pipeline.training.distributed import Ranks
from policy.network.normalizer import DataStatistics
from policy.spec import AgentSpec

RANGE_ROWS: Final = 8_192  # rows of states and actions looked at at once


@dataclass(frozen=True)
class Windows:
    """A batch of training windows."""

    rows: Int64[Tensor, " b"]
    """Their current steps."""
    features: Float[Tensor, "b t v 768"]
    """Of the observation steps, the last one current; float32."""
    state: Float[Tensor, "b t s"]
    """Of the same steps, in the manifest's units."""
    actions: Float[Tensor, "b horizon a"]
    """From the current step on, in the manifest's units."""
    valid: Bool[Tensor, "b horizon"]
    """False where the episode had ended."""

    def to(self, device: torch.device) -> "Windows":
        """Return the batch on another device; to a GPU it is copied while this thread goes on."""
        tensors = [getattr(self, field.name) for field in fields(self)]
        if device.type == "cuda":
            tensors = [t if t.is_cuda else t.pin_memory() for t in tensors]
        return type(self)(*(tensor.to(device, non_blocking=True) for tensor in tensors))


class Batches(ABC):
    """The batch of every step, as far as this process has a share in it."""

    @abstractmethod
    def parts(self, step: int) -> Iterator[Windows]:
        """Give this process's parts of the batch of optimiser step `step`, counted from 0."""


class StepData(ABC):
    """States, actions and episodes of stores, split into training and held-out ones."""

    def __init__(
        self, stores: Sequence[FeatureStore], *, heldout_share: float, weights: Sequence[float]
    ):
        """Load all of complete stores but their features.

        Args:
            stores: one or more that agree.
            heldout_share: share of each store's episodes kept out of training, spread evenly over
                it; any share above 0 holds out one episode or more, but never all. Where the
                manifest has a split, any share above 0 means the episodes of that split. 0 keeps
                none out, whatever the manifest says.
            weights: how often a step of each store is drawn, against the others; a source inside
                a store has its own weight times the store's. Empty: all alike.

        Raises:
            StoreError: a store is damaged, disagrees with the first, or is too small to hold an
                episode out and train on another.
            ConfigError: the weights do not fit the stores.
        """
        weights = check_weights(weights, len(stores))
        check_agreement(stores)
        self.num_variants = stores[0].attributes.num_variants
        steps = [store.read_steps() for store in stores]
        self.state = _joined([held.state for held in steps])
        self.action = _joined([held.action for held in steps])
        counts = [len(held.episode_ends) for held in steps]
        lengths = _joined([np.diff(held.episode_ends, prepend=0) for held in steps])
        self.episode_of: Int64[Tensor, " n"] = torch.repeat_interleave(
            torch.arange(len(lengths)), lengths
        )
        ends = lengths.cumsum(0)
        self.first_rows: Int64[Tensor, " e"] = ends - lengths
        """First row of every episode."""
        self._last_rows = ends - 1
        self.spec = AgentSpec(
            view_names=stores[0].attributes.view_names,
            state_dim=self.state.shape[1],
            action_dim=self.action.shape[1],
        )
        heldout = [
            _is_heldout(count, heldout_share, store)
            for count, store in zip(counts, stores, strict=True)
        ]
        self.leaks = find_leaks(stores, steps, heldout)
        """Held-out episodes that are trained on too, and under which names."""
        self.is_heldout: Bool[Tensor, " e"] = torch.cat(heldout)
        """Which episodes are held out."""
        is_heldout = self.is_heldout[self.episode_of]
        self.train_rows: Int64[Tensor, " n"] = torch.nonzero(~is_heldout)[:, 0]
        self.heldout_rows: Int64[Tensor, " n"] = torch.nonzero(is_heldout)[:, 0]
        sources = _weighted_sources(stores, counts, weights)
        self.draws: tuple[SourceDraws, ...] = self._draws(sources)
        """How an epoch draws from each source; empty where all weights are equal."""

    @property
    @abstractmethod
    def features_from(self) -> str:
        """Where each batch takes its features from, in words."""

    @abstractmethod
    def statistics(self) -> DataStatistics:
        """Return the statistics of the training episodes alone, of the frames as recorded."""

    @abstractmethod
    def batches(self, config: TrainConfig, ranks: Ranks) -> Batches:
        """Return the batches of a run.

        Args:
            config: of the run.
            ranks: this process among those that share every batch.
        """

    @abstractmethod
    def observed_features(
        self, observed: Int64[Tensor, "b t"], variants: Int64[Tensor, "b v"] | None
    ) -> Float[Tensor, "b t v 768"]:
        """Return the features of the rows `observed`, each view in its variant; see `gather`."""

    def gather(
        self,
        rows: Int64[Tensor, " b"],
        *,
        obs_horizon: int,
        pred_horizon: int,
        variants: Int64[Tensor, "b v"] | None = None,
    ) -> Windows:
        """Return the windows whose current steps are `rows`.

        Args:
            rows: current steps.
            obs_horizon: observation steps, the last one current.
            pred_horizon: actions.
            variants: which variant of its frames each view shows, the same in all observation
                steps; 0 and None are the frames as they were recorded.
        """
        observed = self.observed_rows(rows, obs_horizon)
        features = self.observed_features(observed, variants)
        return self.assemble(observed, features, pred_horizon)

    def observed_rows(self, rows: Int64[Tensor, " b"], obs_horizon: int) -> Int64[Tensor, "b t"]:
        """Return the observation steps of the windows whose current steps are `rows`."""
        past = torch.arange(1 - obs_horizon, 1)
        return torch.maximum(rows[:, None] + past, self.first_rows[self.episode_of[rows]][:, None])

    def assemble(
        self,
        observed: Int64[Tensor, "b t"],
        features: Float[Tensor, "b t v 768"],
        pred_horizon: int,
    ) -> Windows:
        """Join the features of windows with their states and actions; see `observed_rows`."""
        rows = observed[:, -1]
        executed = rows[:, None] + torch.arange(pred_horizon)
        last = self._last_rows[self.episode_of[rows]][:, None]
        return Windows(
            rows=rows,
            features=features.float(),
            state=self.state[observed],
            actions=self.action[torch.minimum(executed, last)],
            valid=executed <= last,
        )

    def draw_variants(
        self, num_windows: int, generator: torch.Generator
    ) -> Int64[Tensor, "b v"] | None:
        """Draw a variant for every view of some windows; None where the store keeps none."""
        if not self.num_variants:
            return None
        shape = (num_windows, self.spec.num_views)
        return torch.randint(0, self.num_variants + 1, shape, generator=generator)

    def statistics_with(
        self, mean: Float[Tensor, "v d"], std: Float[Tensor, "v d"]
    ) -> DataStatistics:
        """Return the statistics of the training episodes, given those of their features."""
        state_min, state_max = _range(self.state, self.train_rows)
        action_min, action_max = _range(self.action, self.train_rows)
        return DataStatistics(
            feature_mean=mean.float(),
            feature_std=std.float(),
            state_min=state_min,
            state_max=state_max,
            action_min=action_min,
            action_max=action_max,
        )

    def _draws(self, sources: Sequence[SourceShare]) -> tuple[SourceDraws, ...]:
        weights = [source.weight for source in sources]
        if len(set(weights)) == 1:
            return ()
        counts_of = torch.tensor([source.num_episodes for source in sources])
        source_of = torch.repeat_interleave(torch.arange(len(sources)), counts_of)[self.episode_of]
        rows = [self.train_rows[source_of[self.train_rows] == i] for i in range(len(sources))]
        return source_draws(rows, weights)


def select_features(
    features: Float16[Tensor, "n s d"],
    places: Int64[Tensor, "b t"],
    variants: Int64[Tensor, "b v"] | None,
    num_views: int,
) -> Float16[Tensor, "b t v d"]:
    """Copy out the features at some places of an array, each view in its variant."""
    if variants is None:
        return features[places, :num_views]
    slots = variants * num_views + torch.arange(num_views)
    return features[places[:, :, None], slots[:, None, :]]


def _joined(arrays: Sequence[np.ndarray]) -> Tensor:
    """Join the stores' arrays; that of a single store is not copied."""
    return torch.from_numpy(np.concatenate(arrays) if len(arrays) > 1 else arrays[0])


def _range(values: Tensor, rows: Int64[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    chunks = torch.split(rows, RANGE_ROWS)
    lowest = torch.stack([values[chunk].amin(dim=0) for chunk in chunks]).amin(dim=0)
    highest = torch.stack([values[chunk].amax(dim=0) for chunk in chunks]).amax(dim=0)
    return lowest, highest


def _weighted_sources(
    stores: Sequence[FeatureStore], counts: Sequence[int], weights: Sequence[float]
) -> list[SourceShare]:
    """Return the sources of all stores in order, each with its weight times its store's."""
    sources = []
    for store, count, weight in zip(stores, counts, weights, strict=True):
        held = store.attributes.sources
        if sum(source.num_episodes for source in held) != count:
            raise StoreError(
                f"{store.path}: expected sources of {count} episodes in all, found {held}; "
                "embed the dataset into another --store"
            )
        sources += [
            SourceShare(num_episodes=source.num_episodes, weight=source.weight * weight)
            for source in held
        ]
    return sources


def _is_heldout(num_episodes: int, share: float, store: FeatureStore) -> Bool[Tensor, " e"]:
    """Say which episodes of a store are held out, and refuse to hold out all."""
    heldout = _heldout_episodes(num_episodes, share, store)
    is_heldout = torch.isin(torch.arange(num_episodes), heldout)
    if is_heldout.all():
        raise StoreError(
            f"{store.path}: no step to train on, {int(is_heldout.sum())} of {num_episodes} "
            f"episodes are held out; set heldout_share=0, or train without this store"
        )
    return is_heldout


def _heldout_episodes(num_episodes: int, share: float, store: FeatureStore) -> Tensor:
    if share == 0:
        return torch.empty(0, dtype=torch.int64)
    if store.attributes.heldout is not None:
        return torch.tensor(store.attributes.heldout, dtype=torch.int64)
    if num_episodes <= 1:
        raise StoreError(
            f"{store.path}: {num_episodes} episode, want 2 or more to hold one out; record more, "
            f"or set heldout_share=0"
        )
    count = min(max(1, round(share * num_episodes)), num_episodes - 1)
    # The middle of each of `count` equal stretches: recordings often drift from first to last.
    return ((torch.arange(count) + 0.5) * num_episodes / count).long()
