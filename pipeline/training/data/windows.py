"""Training windows: states and actions of stores in memory, features read for each batch.

The rows of several stores follow one another, and so do their episodes. A window is named by its
current step: it holds the `obs_horizon` steps that end there and the `pred_horizon` actions that
start there. Observations before an episode's first step repeat that step; actions after its last
step repeat that one and are marked invalid, so that they do not count in the loss; so no window
leaves its episode.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float64, Int64
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import FEATURES
from pipeline.features.store.rows import DeviceRows, StoredRows
from pipeline.features.store.units import PASSING_ROWS, cut
from pipeline.training.data.sampling import SourceDraws, source_draws
from pipeline.training.data.stores import (
    check_agreement,
    check_weights,
    find_leaks,
    join_instructions,
    validation_episodes,
)
from policy.network.normalizer import DataStatistics, Distribution
from policy.spec import INSTRUCTION, AgentSpec

QUANTILES: Final = (0.01, 0.99)  # ends of the scaling `quantiles`
SUMMED_ROWS: Final = 256  # rows of features summed at once in float64; 4.7 MB of three views


class Moments:
    """Mean and spread of all rows that were added."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Float64[np.ndarray, ...] = np.zeros(())
        self._squares: Float64[np.ndarray, ...] = np.zeros(())  # sum of squared distances from it

    def add(self, features: Float16[np.ndarray, "n ..."]) -> None:
        """Add rows, of one shape at every call.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979, equations 2.1.
        """
        for first in range(0, len(features), SUMMED_ROWS):
            values = features[first : first + SUMMED_ROWS].astype(np.float64)
            mean = values.mean(axis=0)
            values -= mean
            squares = np.square(values, out=values).sum(axis=0)
            before, self._count = self._count, self._count + len(values)
            share = len(values) / self._count
            shift = mean - self._mean
            self._mean = self._mean + shift * share
            self._squares = self._squares + squares + shift**2 * (before * share)

    def mean(self) -> Float[Tensor, "..."]:
        """Return the mean; float32."""
        return torch.from_numpy(self._mean).float()

    def std(self) -> Float[Tensor, "..."]:
        """Return the standard deviation; float32."""
        return torch.from_numpy(np.sqrt(self._squares / self._count)).float()


def distribution(values: Float[Tensor, "n d"], rows: Int64[Tensor, " m"]) -> Distribution:
    """Return the distribution of every column over some rows; one column is copied at a time."""
    found = []
    for column in range(values.shape[1]):
        own = values[:, column][rows].numpy()
        wide = own.astype(np.float64)
        low, high = QUANTILES  # as values that occur: none between the two of a switch
        outer = np.quantile(own, low, method="lower"), np.quantile(own, high, method="higher")
        found.append([*map(float, (own.min(), own.max(), *outer, wide.mean(), wide.std()))])
    return Distribution(*torch.tensor(found, dtype=torch.float32).T)


@dataclass(frozen=True)
class Windows:
    """A batch of training windows."""

    rows: Int64[Tensor, " b"]
    """Their current steps; on the CPU."""
    features: dict[str, Float[Tensor, "b ..."]]
    """As an agent takes them, in float32: [b, t, v, ...] by name of the observation steps, the last
    one current; and `instruction` [b, d] for a policy that takes instructions."""
    state: Float[Tensor, "b t s"]
    """Of the same steps, in the manifest's units."""
    actions: Float[Tensor, "b horizon a"]
    """From the current step on, in the manifest's units."""
    valid: Bool[Tensor, "b horizon"]
    """False where the episode had ended."""

    def to(self, device: torch.device) -> "Windows":
        """Return the batch on another device; to a GPU it is copied while this thread continues."""

        def moved(tensor: Tensor) -> Tensor:
            is_sent = device.type == "cuda" and tensor.device.type == "cpu"
            return (tensor.pin_memory() if is_sent else tensor).to(device, non_blocking=True)

        features = {name: moved(values) for name, values in self.features.items()}
        steps = moved(self.state), moved(self.actions), moved(self.valid)
        return Windows(self.rows, features, *steps)


class WindowData:
    """The steps of stores, split into training and validation ones."""

    def __init__(
        self,
        *stores: FeatureStore,
        features: Sequence[str],
        validation_share: float,
        weights: Sequence[float] = (),
        cache: Path | None = None,
        has_language: bool = False,
        is_balanced: bool = False,
    ):
        """Load complete stores without their features, and read those through once.

        Every unit is checked against its commit record, and the statistics of the features are
        computed on the way, with a slice of a unit in memory at a time.

        Args:
            stores: one or more that agree.
            features: names of the features that the policy reads; no others are loaded.
            validation_share: see `validation_episodes`.
            weights: how often a step of each store is drawn, against the others; a source inside
                a store has its own weight times the store's. Empty: all equal.
            cache: where a store in object storage or with compressed features is copied to.
            has_language: whether the policy takes instructions.
            is_balanced: whether every instruction is drawn equally often, instead of every step.

        Raises:
            StoreError: a store is damaged, disagrees with the first, or has too few episodes.
            ConfigError: a store lacks a feature, vectors of its instructions, or a cache of enough
                space for its copy; or the weights do not fit the stores or `is_balanced`.
        """
        self.weights = check_weights(weights, len(stores))
        """Of every store."""
        steps = [store.read_steps() for store in stores]
        check_agreement(stores, steps, features, has_language=has_language)
        self.num_variants = stores[0].attributes.num_variants
        self.state = _joined([held.state for held in steps])
        self.action = _joined([held.action for held in steps])
        counts = [len(held.episode_ends) for held in steps]
        lengths = _joined([np.diff(held.episode_ends, prepend=0) for held in steps])
        self.episode_of: Int64[Tensor, " n"] = torch.repeat_interleave(
            torch.arange(len(lengths)), lengths
        )
        self.instructions = join_instructions(stores, counts, with_vectors=has_language)
        ends = lengths.cumsum(0)
        self.first_rows: Int64[Tensor, " e"] = ends - lengths
        """First row of every episode."""
        self._last_rows = ends - 1
        vectors = self.instructions.vectors
        self.spec = AgentSpec(
            view_names=stores[0].attributes.view_names,
            feature_shapes={
                spec.name: spec.shape for spec in stores[0].encoder.only(features).features
            },
            state_dim=self.state.shape[1],
            action_dim=self.action.shape[1],
            instruction_dim=0 if vectors is None else vectors.shape[1],
        )
        validation = [
            validation_episodes(count, validation_share, store)
            for count, store in zip(counts, stores, strict=True)
        ]
        self.leaks = find_leaks(stores, steps, validation)
        self.is_validation: Bool[Tensor, " e"] = torch.cat(validation)
        is_validation = self.is_validation[self.episode_of]
        self.train_rows: Int64[Tensor, " n"] = torch.nonzero(~is_validation)[:, 0]
        self.validation_rows: Int64[Tensor, " n"] = torch.nonzero(is_validation)[:, 0]
        self.draws: tuple[SourceDraws, ...] = self._draws(stores, is_balanced=is_balanced)
        """How an epoch draws from each source or instruction; empty where all weights are equal."""
        self._stored = {name: StoredRows(stores, f"{FEATURES}/{name}", cache) for name in features}
        self._features: Mapping[str, StoredRows | DeviceRows] = self._stored
        self._num_slots = stores[0].attributes.num_slots
        self.statistics = self._read_through(stores, ~is_validation)
        """Of the training episodes alone, of the frames as recorded."""

    @property
    def features_nbytes(self) -> int:
        """Size of all features that the policy reads."""
        return sum(stored.nbytes for stored in self._stored.values())

    def move_features(self, device: torch.device) -> None:
        """Read all features into a device's memory, from which `gather` takes them from now on."""
        self._features = {name: DeviceRows(held, device) for name, held in self._stored.items()}

    def announce(
        self, rows: Int64[Tensor, " b"], variants: Int64[Tensor, "b v"] | None, *, obs_horizon: int
    ) -> None:
        """Have the system begin to read the features of these windows."""
        addresses = self._addresses(self.observed_rows(rows, obs_horizon), variants)
        for stored in self._features.values():
            stored.announce(addresses)

    def gather(
        self,
        rows: Int64[Tensor, " b"],
        *,
        obs_horizon: int,
        pred_horizon: int,
        variants: Int64[Tensor, "b v"] | None = None,
    ) -> Windows:
        """Return the windows whose current steps are `rows` (StoreError: a store has changed).

        `variants` of each view are the same in all observation steps; 0 and None are the frames as
        they were recorded.
        """
        observed = self.observed_rows(rows, obs_horizon)
        executed = rows[:, None] + torch.arange(pred_horizon)
        last = self._last_rows[self.episode_of[rows]][:, None]
        addresses = self._addresses(observed, variants)
        features = {name: stored.read(addresses).float() for name, stored in self._features.items()}
        if self.instructions.vectors is not None:
            features[INSTRUCTION] = self.instructions.vectors[self.instruction_of(rows)]
        return Windows(
            rows=rows,
            features=features,
            state=self.state[observed],
            actions=self.action[torch.minimum(executed, last)],
            valid=executed <= last,
        )

    def instruction_of(self, rows: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """Return the position in `instructions` of the instruction at some rows."""
        return self.instructions.of_episode[self.episode_of[rows]]

    def observed_rows(self, rows: Int64[Tensor, " b"], obs_horizon: int) -> Int64[Tensor, "b t"]:
        """Return the observation steps of the windows whose current steps are `rows`."""
        past = torch.arange(1 - obs_horizon, 1)
        return torch.maximum(rows[:, None] + past, self.first_rows[self.episode_of[rows]][:, None])

    def _addresses(
        self, observed: Int64[Tensor, "b t"], variants: Int64[Tensor, "b v"] | None
    ) -> Int64[Tensor, "b t v"]:
        """Return where a feature of each view is; see `StoredRows`."""
        slots = torch.arange(self.spec.num_views)
        if variants is not None:
            slots = (variants * self.spec.num_views + slots)[:, None]
        return observed[:, :, None] * self._num_slots + slots

    def _read_through(
        self, stores: Sequence[FeatureStore], is_trained: Bool[Tensor, " n"]
    ) -> DataStatistics:
        """Check every unit against its commit record, and return the statistics."""
        moments = {
            name: self._read_feature(name, stores, is_trained.numpy()) for name in self._features
        }
        table = self.instructions.vectors
        if table is not None:
            table = table[np.unique(self.instruction_of(self.train_rows))]
        return DataStatistics(
            feature_mean={name: found.mean() for name, found in moments.items()},
            feature_std={name: found.std() for name, found in moments.items()},
            state=distribution(self.state, self.train_rows),
            action=distribution(self.action, self.train_rows),
            instructions=table,
        )

    def _read_feature(
        self, name: str, stores: Sequence[FeatureStore], is_trained: np.ndarray
    ) -> Moments:
        moments, stored, first_row = Moments(), self._features[name], 0

        def slices(rows: Sequence[slice]) -> Iterator[np.ndarray]:
            addresses = [
                torch.arange(p.start * self._num_slots, p.stop * self._num_slots) for p in rows
            ]
            for number, own in enumerate(rows):
                for ahead in addresses[number + 1 : number + 2]:
                    stored.announce(ahead)
                features = stored.read(addresses[number]).numpy()
                features = features.reshape(-1, self._num_slots, *features.shape[1:])
                moments.add(features[is_trained[own], : self.spec.num_views])
                yield features

        for store in stores:
            for unit in range(store.num_units):
                start, stop = store.unit_rows(unit)
                rows = list(cut(first_row + start, first_row + stop, PASSING_ROWS))
                store.check_rows(unit, f"{FEATURES}/{name}", slices(rows))
            first_row += store.num_rows
        return moments

    def _draws(
        self, stores: Sequence[FeatureStore], *, is_balanced: bool
    ) -> tuple[SourceDraws, ...]:
        """Draw from each source by its weight times its store's; or each instruction as often."""
        sources = [
            (source.num_episodes, source.weight * weight)
            for store, weight in zip(stores, self.weights, strict=True)
            for source in store.attributes.sources
        ]
        counts, weights = zip(*sources, strict=True)
        number = torch.repeat_interleave(torch.arange(len(sources)), torch.tensor(counts))
        of_row = number[self.episode_of[self.train_rows]]
        rows = [self.train_rows[of_row == source] for source in range(len(sources))]
        draws = source_draws(rows, list(weights))
        if not is_balanced:
            return draws
        if draws:
            raise ConfigError(
                "data.weights: expected equal ones, also of a manifest's sources, because "
                "balance_instructions decides how often each is drawn; leave one of them out"
            )
        of_row = self.instruction_of(self.train_rows)
        rows = [self.train_rows[of_row == number] for number in np.unique(of_row)]
        return source_draws(rows, [1 / len(own) for own in rows])


def _joined(arrays: Sequence[np.ndarray]) -> Tensor:
    """Join the stores' arrays; that of a single store is not copied."""
    return torch.from_numpy(np.concatenate(arrays) if len(arrays) > 1 else arrays[0])
