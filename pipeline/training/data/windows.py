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

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int64
from torch import Tensor

from pipeline.errors import ConfigError, StoreError
from pipeline.features.store.attributes import SourceShare
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import FEATURES
from pipeline.features.store.rows import DeviceRows, StoredRows
from pipeline.features.store.units import PASSING_ROWS, cut
from pipeline.training.data.instructions import join_instructions
from pipeline.training.data.sampling import SourceDraws, source_draws
from pipeline.training.data.statistics import Moments, distribution
from pipeline.training.data.stores import (
    check_agreement,
    check_weights,
    find_leaks,
    validation_episodes,
)
from policy.network.normalizer import DataStatistics
from policy.spec import INSTRUCTION, AgentSpec


@dataclass(frozen=True)
class Windows:
    """A batch of training windows."""

    rows: Int64[Tensor, " b"]
    """Their current steps."""
    features: dict[str, Float[Tensor, "b t v ..."]]
    """By name, of the observation steps, the last one current; float32."""
    state: Float[Tensor, "b t s"]
    """Of the same steps, in the manifest's units."""
    actions: Float[Tensor, "b horizon a"]
    """From the current step on, in the manifest's units."""
    valid: Bool[Tensor, "b horizon"]
    """False where the episode had ended."""
    instruction: Float[Tensor, "b d"] | None = None
    """Vectors of the instructions; None for a policy without them."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The features, and the instruction among them, as an agent takes them."""
        language = {} if self.instruction is None else {INSTRUCTION: self.instruction}
        return self.features | language

    def to(self, device: torch.device) -> "Windows":
        """Return the batch on another device; to a GPU it is copied while this thread continues."""

        def moved(tensor: Tensor) -> Tensor:
            is_sent = device.type == "cuda" and tensor.device.type == "cpu"
            return (tensor.pin_memory() if is_sent else tensor).to(device, non_blocking=True)

        return Windows(
            rows=moved(self.rows),
            features={name: moved(values) for name, values in self.features.items()},
            state=moved(self.state),
            actions=moved(self.actions),
            valid=moved(self.valid),
            instruction=None if self.instruction is None else moved(self.instruction),
        )


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
            ConfigError: the weights do not fit the stores, a store needs a copy for which there is
                no cache or no space, the stores lack a feature or vectors of their instructions, or
                both `weights` and `is_balanced` are given.
        """
        if is_balanced and len(set(weights)) > 1:
            raise ConfigError(
                "data.weights: expected none together with balance_instructions, which decides how "
                "often each instruction is drawn; leave one of them out"
            )
        weights = check_weights(weights, len(stores))
        check_agreement(stores, features)
        self.num_variants = stores[0].attributes.num_variants
        steps = [store.read_steps() for store in stores]
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
        sources = _weighted_sources(stores, counts, weights)
        self.draws: tuple[SourceDraws, ...] = (
            self._balanced_draws() if is_balanced else self._draws(sources)
        )
        """How an epoch draws from each source or instruction; empty where all weights are equal."""
        stored = {name: StoredRows(stores, f"{FEATURES}/{name}", cache) for name in features}
        self._stored = stored
        self._features: Mapping[str, StoredRows | DeviceRows] = stored
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

    def observed_features(
        self, observed: Int64[Tensor, "b t"], variants: Int64[Tensor, "b v"] | None
    ) -> dict[str, Float16[Tensor, "b t v ..."]]:
        """Return the features of the rows `observed`, each view in its variant; see `gather`.

        They are where `move_features` has put them, otherwise on the CPU.
        """
        addresses = self._addresses(observed, variants)
        return {name: stored.read(addresses) for name, stored in self._features.items()}

    def announce(
        self,
        rows: Int64[Tensor, " b"],
        variants: Int64[Tensor, "b v"] | None,
        *,
        obs_horizon: int,
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
        """Return the windows whose current steps are `rows`.

        Args:
            rows: current steps.
            obs_horizon: observation steps, the last one current.
            pred_horizon: actions.
            variants: of each view, the same in all observation steps; 0 and None are the frames as
                they were recorded.

        Raises:
            StoreError: a store was replaced or written since it was opened.
        """
        observed = self.observed_rows(rows, obs_horizon)
        executed = rows[:, None] + torch.arange(pred_horizon)
        last = self._last_rows[self.episode_of[rows]][:, None]
        features = self.observed_features(observed, variants)
        table = self.instructions.vectors
        return Windows(
            rows=rows,
            features={name: values.float() for name, values in features.items()},
            state=self.state[observed],
            actions=self.action[torch.minimum(executed, last)],
            valid=executed <= last,
            instruction=None if table is None else table[self.instruction_of(rows)],
        )

    def instruction_of(self, rows: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """Return the position in `instructions` of the instruction at some rows."""
        return self.instructions.of_episode[self.episode_of[rows]]

    def observed_rows(self, rows: Int64[Tensor, " b"], obs_horizon: int) -> Int64[Tensor, "b t"]:
        """Return the observation steps of the windows whose current steps are `rows`."""
        past = torch.arange(1 - obs_horizon, 1)
        return torch.maximum(rows[:, None] + past, self.first_rows[self.episode_of[rows]][:, None])

    def draw_variants(
        self, num_windows: int, generator: torch.Generator
    ) -> Int64[Tensor, "b v"] | None:
        """Draw a variant for every view of some windows; None if the store has none."""
        if not self.num_variants:
            return None
        shape = (num_windows, self.spec.num_views)
        return torch.randint(0, self.num_variants + 1, shape, generator=generator)

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
        return DataStatistics(
            feature_mean={name: found.mean() for name, found in moments.items()},
            feature_std={name: found.std() for name, found in moments.items()},
            state=distribution(self.state, self.train_rows),
            action=distribution(self.action, self.train_rows),
            instructions=self._trained_instructions(),
        )

    def _trained_instructions(self) -> Float[Tensor, "k d"] | None:
        table = self.instructions.vectors
        return None if table is None else table[np.unique(self.instruction_of(self.train_rows))]

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

    def _draws(self, sources: Sequence[SourceShare]) -> tuple[SourceDraws, ...]:
        counts_of = torch.tensor([source.num_episodes for source in sources])
        source_of = torch.repeat_interleave(torch.arange(len(sources)), counts_of)[self.episode_of]
        rows = [self.train_rows[source_of[self.train_rows] == i] for i in range(len(sources))]
        return source_draws(rows, [source.weight for source in sources])

    def _balanced_draws(self) -> tuple[SourceDraws, ...]:
        of_row = self.instruction_of(self.train_rows)
        rows = [self.train_rows[of_row == number] for number in np.unique(of_row)]
        return source_draws(rows, [1 / len(own) for own in rows])


def _joined(arrays: Sequence[np.ndarray]) -> Tensor:
    """Join the stores' arrays; that of a single store is not copied."""
    return torch.from_numpy(np.concatenate(arrays) if len(arrays) > 1 else arrays[0])


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
