"""Training windows as index gathers on feature stores that lie in memory whole.

Knows the stores' arrays and episode borders; nothing about the agent. The rows of several stores
follow one another, and so do their episodes. A window is named by its current step: it holds the
`obs_horizon` steps that end there and the `pred_horizon` actions that start there. Observations
before an episode's first step repeat that step; actions after its last step repeat that one and
are marked invalid, so that they do not count in the loss; so no window leaves its episode.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int64
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.features.attributes import SourceShare
from pipeline.features.store import FeatureStore
from pipeline.training.stores import check_agreement, check_weights
from policy.normalizer import DataStatistics
from policy.spec import FEATURE_DIM, AgentSpec

logger = logging.getLogger(__name__)

STATISTICS_ROWS: Final = 8_192  # rows of features summed at once in float64: 150 MB
TRAINING_BYTES: Final = 4 * 2**30  # of a GPU, left to weights, optimiser and one step's activations


@dataclass(frozen=True)
class Windows:
    """A batch of training windows."""

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


@dataclass(frozen=True)
class SourceDraws:
    """How often an epoch draws the training rows of one source."""

    rows: Int64[Tensor, " n"]
    """Its rows."""
    count: int
    """How many draws of an epoch are its own; they take its rows in turn, each as often."""


class WindowData:
    """The arrays of stores in memory, with the episodes split into training and held-out ones."""

    def __init__(self, *stores: FeatureStore, heldout_share: float, weights: Sequence[float] = ()):
        """Load complete stores.

        Args:
            stores: one or more that agree; every unit is checked against its commit record while
                it loads.
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
        steps = [store.read_steps() for store in stores]
        self.features = _read_features(stores)
        self.num_variants = stores[0].attributes.num_variants
        self.state = torch.from_numpy(np.concatenate([held.state for held in steps]))
        self.action = torch.from_numpy(np.concatenate([held.action for held in steps]))
        counts = [len(held.episode_ends) for held in steps]
        lengths = torch.from_numpy(
            np.concatenate([np.diff(held.episode_ends, prepend=0) for held in steps])
        )
        ends = lengths.cumsum(0)
        self.episode_of = torch.repeat_interleave(torch.arange(len(ends)), lengths)
        self._first_row = (ends - lengths)[self.episode_of]
        self._last_row = (ends - 1)[self.episode_of]
        self.spec = AgentSpec(
            view_names=stores[0].attributes.view_names,
            state_dim=self.state.shape[1],
            action_dim=self.action.shape[1],
        )
        heldout = [
            _is_heldout(count, heldout_share, store)
            for count, store in zip(counts, stores, strict=True)
        ]
        is_heldout = torch.cat(heldout)[self.episode_of]
        self.train_rows: Int64[Tensor, " n"] = torch.nonzero(~is_heldout)[:, 0]
        self.heldout_rows: Int64[Tensor, " n"] = torch.nonzero(is_heldout)[:, 0]
        sources = _weighted_sources(stores, counts, weights)
        counts_of = torch.tensor([source.num_episodes for source in sources])
        source_of = torch.repeat_interleave(torch.arange(len(sources)), counts_of)[self.episode_of]
        self.draws: tuple[SourceDraws, ...] = _source_draws(
            [self.train_rows[source_of[self.train_rows] == i] for i in range(len(sources))],
            [source.weight for source in sources],
        )
        """How an epoch draws from each source; empty where all weights are equal."""

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
        past = torch.arange(1 - obs_horizon, 1)
        future = torch.arange(pred_horizon)
        observed = torch.maximum(rows[:, None] + past, self._first_row[rows][:, None])
        last = self._last_row[rows][:, None]
        executed = rows[:, None] + future
        return Windows(
            features=self.observed_features(observed, variants).float(),
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

    def observed_features(
        self, observed: Int64[Tensor, "b t"], variants: Int64[Tensor, "b v"] | None
    ) -> Float[Tensor, "b t v 768"]:
        """Return the features of the rows `observed`, each view in its variant; see `gather`."""
        num_views = self.spec.num_views
        if variants is None:
            return self.features[observed, :num_views]
        places = variants * num_views + torch.arange(num_views)
        return self.features[observed[:, :, None], places[:, None, :]]

    def move_to(self, device: torch.device) -> None:
        """Move the arrays into a GPU's memory if they fit; batches are gathered where they lie."""
        arrays = (self.features, self.state, self.action)
        num_bytes = sum(array.nbytes for array in arrays)
        if device.type != "cuda":
            return
        if num_bytes + TRAINING_BYTES > torch.cuda.mem_get_info(device)[0]:
            told = "%.1f GB of windows do not fit on %s: batches are gathered in main memory"
            logger.warning(told, num_bytes / 1e9, device)
            return
        self.features, self.state, self.action = (array.to(device) for array in arrays)

    def statistics(self) -> DataStatistics:
        """Return the statistics of the training episodes alone, of the frames as recorded."""
        plain = self.features[:, : self.spec.num_views]
        mean, std = _mean_and_std(plain, self.train_rows)
        state, action = self.state[self.train_rows], self.action[self.train_rows]
        return DataStatistics(
            feature_mean=mean,
            feature_std=std,
            state_min=state.amin(dim=0),
            state_max=state.amax(dim=0),
            action_min=action.amin(dim=0),
            action_max=action.amax(dim=0),
        )


class BatchSampler:
    """Which rows make up the batch of a step: shuffled epochs, one after the other.

    A pure function of seed and step, so that a resumed run needs no saved position.
    """

    def __init__(
        self,
        rows: Int64[Tensor, " n"],
        batch_size: int,
        seed: int,
        *,
        draws: Sequence[SourceDraws] = (),
    ):
        """Draw every row once an epoch, or by sources.

        Args:
            rows: the rows to train on.
            batch_size: rows a step.
            seed: decides the order.
            draws: the same rows by sources, and how many of each an epoch of `len(rows)` draws;
                empty draws every row once.
        """
        self._rows = rows
        self._draws = draws
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order = rows

    def batch(self, step: int) -> Int64[Tensor, " b"]:
        """Return the rows of optimiser step `step`, counted from 0."""
        position, wanted = step * self._batch_size, self._batch_size
        parts = []
        while wanted:
            epoch, offset = divmod(position, len(self._rows))
            part = self._epoch_order(epoch)[offset : offset + wanted]
            parts.append(part)
            position, wanted = position + len(part), wanted - len(part)
        return torch.cat(parts)

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = seeded_generator(self._seed, "epoch", epoch)
            drawn = self._drawn_rows(epoch)
            self._order = drawn[torch.randperm(len(drawn), generator=generator)]
            self._epoch = epoch
        return self._order

    def _drawn_rows(self, epoch: int) -> Tensor:
        """Each source is an endless stream of its own shuffled rows, cut into epochs of draws."""
        if not self._draws:
            return self._rows
        parts = []
        for source, draws in enumerate(self._draws):
            position, stop = epoch * draws.count, (epoch + 1) * draws.count
            while position < stop:
                turn, offset = divmod(position, len(draws.rows))
                generator = seeded_generator(self._seed, f"source {source}", turn)
                order = draws.rows[torch.randperm(len(draws.rows), generator=generator)]
                parts.append(order[offset : offset + stop - position])
                position += len(parts[-1])
        return torch.cat(parts)


def seeded_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """Return a CPU generator that depends on all three and on nothing else."""
    words = np.random.SeedSequence([seed, index, *purpose.encode()]).generate_state(2)
    return torch.Generator().manual_seed((int(words[0]) << 31) | (int(words[1]) >> 1))


def _read_features(stores: Sequence[FeatureStore]) -> Float16[Tensor, "n s d"]:
    """Read every store into its own stretch of one array: never is there a second copy."""
    num_rows, num_slots = sum(store.num_rows for store in stores), stores[0].attributes.num_slots
    features = np.empty((num_rows, num_slots, FEATURE_DIM), np.float16)
    start = 0
    for store in stores:
        store.read_features(into=features[start : start + store.num_rows])
        start += store.num_rows
    return torch.from_numpy(features)


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


def _source_draws(rows: list[Tensor], weights: list[float]) -> tuple[SourceDraws, ...]:
    """Share an epoch's draws out: to each source in proportion to its rows times its weight.

    Every source with training rows gets one draw or more; what rounding leaves over goes to the
    largest remainders, so that a share is off by less than one draw an epoch, or a small source's
    one draw.
    """
    if len(set(weights)) == 1:
        return ()
    sources = [(part, weight) for part, weight in zip(rows, weights, strict=True) if len(part)]
    num_rows = sum(len(part) for part, _ in sources)
    total = sum(len(part) * weight for part, weight in sources)
    exact = [len(part) * weight / total * num_rows for part, weight in sources]
    counts = [max(1, int(value)) for value in exact]
    while sum(counts) != num_rows:
        step = 1 if sum(counts) < num_rows else -1
        gaps = [
            step * (value - count) if count + step >= 1 else -float("inf")
            for value, count in zip(exact, counts, strict=True)
        ]
        counts[gaps.index(max(gaps))] += step
    return tuple(
        SourceDraws(rows=part, count=count)
        for (part, _), count in zip(sources, counts, strict=True)
    )


def _mean_and_std(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Two passes in float64: one pass of squares would cancel where the mean is large."""
    chunks = torch.split(rows, STATISTICS_ROWS)
    mean = torch.stack([features[chunk].double().sum(dim=0) for chunk in chunks]).sum(0) / len(rows)
    squares = [(features[chunk].double() - mean).square().sum(dim=0) for chunk in chunks]
    std = (torch.stack(squares).sum(dim=0) / len(rows)).sqrt()
    return mean.float(), std.float()
