"""Do the cameras show what they showed in training? Named before the robot moves, watched after.

A policy whose pictures arrive flipped, turned, with red and blue exchanged or under another view's
name solves nothing and says nothing. The frozen encoder sees each of these: the live features of an
episode's first frames are compared, as they are and with every such mistake undone, with the cached
features of the episode starts of the training.

**Distance.** Root mean square over the dimensions, each in standard deviations of the view's rows
in training, to the nearest of the references.

**Limits**, all from the stored features, none from live ones. A view's *spread* is the largest
distance of a training start to the nearest other one. Its *margin* is by how much the spread of
half the starts can fall short of the distances of the other half: the largest ratio in
`NUM_HALVINGS` random halvings. A view within its spread matches. Beyond it, a mistake is named
where undoing it brings the view back within spread times margin, and nearer by more than the
margin: a picture that is its own mirror image is as far away flipped as not, so it is never named.
A view without a name is unknown beyond spread times margin, unless training showed something as
near at another time of an episode.

**Alarm.** A decision's distance is that of its worst view to the nearest row of the training, in
multiples of what `ALARM_QUANTILE` of the training's own rows have to the rows of other episodes.

Knows features, references and encoders; nothing about simulators or sockets.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, UInt8
from torch import Tensor

from pipeline.errors import CameraMismatchError
from pipeline.rollout.gate.camera_verdict import (
    CameraCheckMode,
    CameraVerdict,
    Mistake,
    ViewFinding,
)
from pipeline.training.run.camera_reference import CameraReference
from pipeline.training.run.folder import RunDescription, read_reference
from policy.network.normalizer import FeatureStandardizer
from policy.spec import FEATURE_DIM

MIN_EPISODES: Final = 8  # of training; halves of fewer than four starts say nothing
NUM_HALVINGS: Final = 100  # random halvings of the starts; the largest of their ratios counts
HALVING_SEED: Final = 0  # the same run gets the same limits
MIN_MARGIN: Final = 1.25  # factor; undoing a mistake must bring a view nearer by at least this
MIN_SPREAD: Final = 0.1  # standard deviations; where all episodes start alike, noise is no mistake
ALARM_QUANTILE: Final = 0.99  # of the training's own rows

_UNDO: Final[dict[Mistake, Callable[[Tensor], Tensor]]] = {
    "flipped left to right": lambda frames: frames.flip(-2),
    "flipped upside down": lambda frames: frames.flip(-3),
    "rotated by 180 degrees": lambda frames: frames.flip(-3, -2),
    "red and blue exchanged": lambda frames: frames.flip(-1),
}

logger = logging.getLogger(__name__)


@runtime_checkable  # the test run checks argument types
class ViewEncoder(Protocol):
    """What the check asks of an encoder."""

    def encode_views(self, frames: UInt8[Tensor, "t v 256 256 3"]) -> Float16[Tensor, "t v 768"]:
        """Encode every view of every step independently."""


@dataclass(frozen=True)
class _Candidate:
    """A mistake that may explain what a view shows."""

    mistake: Mistake
    shows: int | None
    """Number of the view that is shown instead, for `another view`."""
    away: float
    """Distance with the mistake undone, in spreads of the view that it is compared with."""
    compared: int
    """Number of that view."""


class CameraCheck:
    """Compares live frames and features with those of one run's training."""

    threshold: float | None
    """`distance` above which a decision alarms; None where training had too few episodes."""

    def __init__(self, reference: CameraReference, view_names: tuple[str, ...]):
        """Calibrate the limits on the stored features; takes half a second of three views."""
        self._view_names = view_names
        self._num_starts = len(reference.starts)
        self.threshold = None
        if self._num_starts < MIN_EPISODES:
            return
        rows = torch.from_numpy(reference.rows).double()
        self._scale = FeatureStandardizer(len(view_names), FEATURE_DIM)
        self._scale.fit(rows.mean(dim=0), rows.std(dim=0, correction=0))
        self._starts = self._standardize(torch.from_numpy(reference.starts)).transpose(0, 1)
        self._rows = self._standardize(torch.from_numpy(reference.rows)).transpose(0, 1)
        limits = [_calibrate_starts(starts) for starts in self._starts]
        self._spread = torch.tensor([spread for spread, _ in limits])
        self._margin = torch.tensor([margin for _, margin in limits])
        episodes = torch.from_numpy(reference.row_episodes)
        is_same = episodes[:, None] == episodes
        apart = torch.stack(
            [_pairwise(view).masked_fill(is_same, torch.inf).amin(dim=1) for view in self._rows]
        )
        self._row_limit = apart.quantile(ALARM_QUANTILE, dim=1).clamp(min=MIN_SPREAD)
        worst = (apart / self._row_limit[:, None]).amax(dim=0)
        self.threshold = worst.quantile(ALARM_QUANTILE).item()

    @classmethod
    def from_run(cls, run: Path, description: RunDescription) -> "CameraCheck":
        """Read the reference of a run.

        Raises:
            RunError: it is absent, damaged, or not the one that the run started with.
        """
        check = cls(read_reference(run, description), description.spec.view_names)
        if check.threshold is None:
            logger.warning("%s: %s", run, check._unchecked().line())
        return check

    def distance(self, features: Float[Tensor, "v 768"]) -> float:
        """Return how far a decision's features are from all that training showed.

        Args:
            features: of the current frames, as a store keeps them; on the CPU.

        Returns:
            The worst view's distance, in multiples of that view's own limit: up to about 1 for
            training's own rows. 0 where training had too few episodes to judge.
        """
        if self.threshold is None:
            return 0.0
        return (self._row_distance(features) / self._row_limit).max().item()

    def admit(
        self,
        frames: UInt8[np.ndarray, "v 256 256 3"],
        encoder: ViewEncoder,
        mode: CameraCheckMode,
    ) -> CameraVerdict:
        """Examine an episode's first frames, and refuse or warn where they do not match.

        Args:
            frames: as `examine_start` takes them.
            encoder: as `examine_start` takes it.
            mode: `refuse` or `warn`.

        Raises:
            CameraMismatchError: they do not match, and `mode` is `refuse`.
        """
        verdict = self.examine_start(frames, encoder)
        if not verdict.matches and mode == "refuse":
            raise CameraMismatchError(
                f"cameras: expected what training showed, found: {verdict.line()}; correct the "
                f"cameras or their order, or go on all the same with --camera-check warn"
            )
        if not verdict.matches:
            logger.warning("%s", verdict.line())
        return verdict

    def examine_start(
        self, frames: UInt8[np.ndarray, "v 256 256 3"], encoder: ViewEncoder
    ) -> CameraVerdict:
        """Compare the first frames of an episode with those of the training's episodes.

        Where all match, this is one pass of the encoder, otherwise five.

        Args:
            frames: RGB, values in [0, 255], every view, as the policy is about to see them.
            encoder: the one that made the run's features.
        """
        if self.threshold is None:
            return self._unchecked()
        shown = torch.from_numpy(np.ascontiguousarray(frames))
        features = encoder.encode_views(shown[None])[0]
        away = self._spreads_away(features)
        undone: dict[Mistake, Tensor] = {}
        if (away.diagonal() > 1).any():
            undone = {
                mistake: self._spreads_away(encoder.encode_views(undo(shown)[None])[0]).diagonal()
                for mistake, undo in _UNDO.items()
            }
        is_seen = self._row_distance(features) <= self._row_limit
        views = range(len(self._view_names))
        return CameraVerdict(
            views=tuple(self._judge(view, away[view], undone, is_seen) for view in views)
        )

    def _unchecked(self) -> CameraVerdict:
        """Return the verdict where training had too few episodes."""
        why = f"{self._num_starts} training episodes, want {MIN_EPISODES} or more to judge by"
        return CameraVerdict(views=(), unchecked=why)

    def _judge(
        self,
        view: int,
        away: Float32[Tensor, " v"],
        undone: dict[Mistake, Tensor],
        is_seen: Bool[Tensor, " v"],
    ) -> ViewFinding:
        """Judge one view.

        Args:
            view: its number.
            away: distances of what it shows to the starts of every view, in that view's spreads.
            undone: distances of every view to its own starts with a mistake undone.
            is_seen: whether a view shows what training showed at some time of an episode.
        """
        found = ViewFinding(
            view=self._view_names[view],
            mistake=None,
            distance=(away[view] * self._spread[view]).item(),
            spread=self._spread[view].item(),
        )
        if away[view] <= 1:
            return found
        best = min(self._candidates(view, away, undone), key=lambda candidate: candidate.away)
        margin = self._margin[best.compared].item()
        if best.away <= margin and best.away * margin < away[view]:
            change = {
                "mistake": best.mistake,
                "shows": None if best.shows is None else self._view_names[best.shows],
                "undone_distance": best.away * self._spread[best.compared].item(),
            }
            return found.model_copy(update=change)
        if away[view] <= self._margin[view] or is_seen[view]:
            return found
        return found.model_copy(update={"mistake": "unknown"})

    def _candidates(
        self, view: int, away: Float32[Tensor, " v"], undone: dict[Mistake, Tensor]
    ) -> Iterator[_Candidate]:
        for mistake, distances in undone.items():
            yield _Candidate(mistake, None, distances[view].item(), view)
        for other in range(len(self._view_names)):
            if other != view:
                yield _Candidate("another view", other, away[other].item(), other)

    def _spreads_away(self, features: Float[Tensor, "v 768"]) -> Float32[Tensor, "v v"]:
        """Return how far what each view shows is from the starts of each view, in its spreads."""
        as_each = self._standardize(features[:, None].expand(-1, len(features), -1))
        differences = as_each[:, :, None] - self._starts
        return differences.square().mean(dim=-1).sqrt().amin(dim=-1) / self._spread

    def _row_distance(self, features: Float[Tensor, "v 768"]) -> Float32[Tensor, " v"]:
        differences = self._standardize(features)[:, None] - self._rows
        return differences.square().mean(dim=-1).sqrt().amin(dim=-1)

    def _standardize(self, features: Float[Tensor, "*batch v 768"]) -> Tensor:
        return self._scale.forward(features.float())


def _calibrate_starts(starts: Float32[Tensor, "n 768"]) -> tuple[float, float]:
    """Return spread and margin of one view's episode starts; see the module's text."""
    apart = _pairwise(starts)
    apart.fill_diagonal_(torch.inf)
    generator, half = torch.Generator().manual_seed(HALVING_SEED), len(starts) // 2
    margin = MIN_MARGIN
    for _ in range(NUM_HALVINGS):
        order = torch.randperm(len(starts), generator=generator)
        known, unseen = order[:half], order[half:]
        spread = apart[known][:, known].amin(dim=1).max().clamp(min=MIN_SPREAD)
        margin = max(margin, (apart[unseen][:, known].amin(dim=1).max() / spread).item())
    return apart.amin(dim=1).max().clamp(min=MIN_SPREAD).item(), margin


def _pairwise(points: Float32[Tensor, "n 768"]) -> Float32[Tensor, "n n"]:
    """Return the root mean square distance of every two points."""
    apart: Tensor = torch.cdist(points, points) / FEATURE_DIM**0.5
    return apart
