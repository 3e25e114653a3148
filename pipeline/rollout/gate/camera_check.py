"""Do the cameras show what they showed in training? Examined before the robot moves.

A policy whose images arrive flipped, turned, with red and blue exchanged or under another view's
name solves nothing, without any error. An episode's first frames are compared, as they are and with
each such mistake undone, with the first frames of the training's episodes, as small blurred copies
without any encoder.

**Distance.** Mean absolute difference of two images of 32x32 pixels, in gray levels [0, 255], to
the nearest of the training's starts. A difference in brightness of up to `MAX_BRIGHTNESS` is
removed first: it is no mistake.

**Limits**, from each training start against the others. A view's *spread* is the largest distance
of a start to its nearest neighbor; a view within it matches. Its *margin* is how much nearer a
mistake undone brings a start at most. A mistake is named where undoing it brings the view among the
training's starts, and nearer by more than margin and `MIN_DIFFERENCE`: an image that is its own
mirror image is never called flipped. Mistakes that explain a view equally well are all named. A
view that no mistake explains is unknown beyond `SPREADS` spreads plus `TOLERANCE`.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from pipeline.errors import CameraMismatchError
from pipeline.features.store.start_frames import StartFrames, shrink_frames
from pipeline.training.run.folder import RunDescription, read_start_frames
from policy.spec import FrozenModel

MIN_EPISODES: Final = 4  # of training; fewer do not show how much starts differ
MIN_MARGIN: Final = 1.25  # factor; undoing a mistake must bring a view nearer by at least this
MIN_DIFFERENCE: Final = 2.0  # gray levels; and by at least this
SPREADS: Final = 2.0  # how many spreads away a start of no training may be
TOLERANCE: Final = 10.0  # gray levels more; for light that changes unevenly, and shadows
MAX_BRIGHTNESS: Final = 1.25  # factor

logger = logging.getLogger(__name__)


CameraCheckMode = Literal["refuse", "warn", "off"]
"""What to do where the cameras do not show what training showed: end, warn, or do not compare."""

Mistake = Literal[
    "flipped left to right",
    "flipped upside down",
    "rotated by 180 degrees",
    "red and blue exchanged",
    "another view",
    "unknown",
]
"""What is wrong with a view."""


class ViewFinding(FrozenModel):
    """One camera's image, compared with its images in training."""

    view: str
    mistake: Mistake | None
    """None where it matches."""
    shows: str | None = None
    """The view of the training that it shows instead, for `another view`."""
    distance: float
    """To the nearest training start, in gray levels of 255."""
    spread: float
    """The largest distance of a training start to the nearest other one."""
    undone_distance: float | None = None
    """The distance with the mistake undone, where it has a name."""
    alternatives: tuple[Mistake, ...] = ()
    """Other mistakes that explain the view as well; a symmetric scene leaves several."""

    def words(self) -> str:
        """Return what is wrong, with the distances."""
        shown = f"shows what training saw as `{self.shows}`"
        words = {"another view": shown, "unknown": "does not look like training"}
        names = [words.get(str(self.mistake), str(self.mistake)), *self.alternatives]
        undone = "" if self.undone_distance is None else f", {self.undone_distance:.1f} if undone"
        return (
            f"view `{self.view}`: {' or '.join(names)} (distance {self.distance:.1f} of 255{undone}"
            f", training starts are within {self.spread:.1f} of each other)"
        )


class CameraVerdict(FrozenModel):
    """The first frames of an episode, compared with training."""

    views: tuple[ViewFinding, ...]
    """One each, in the order of the training."""
    unchecked: str | None = None
    """Why nothing could be checked."""

    @property
    def matches(self) -> bool:
        """Whether no mistake was found; also true where nothing could be checked."""
        return all(finding.mistake is None for finding in self.views)

    def line(self) -> str:
        """Return the verdict in one line."""
        if self.unchecked is not None:
            return f"the cameras are not checked: {self.unchecked}"
        if self.matches:
            return "all views match training"
        shows = {finding.view: finding.shows for finding in self.views}
        parts = []
        for finding in self.views:
            pair = [view for view in shows if view in (finding.view, finding.shows)]
            if finding.shows is not None and shows[finding.shows] == finding.view:
                parts.append(f"views `{pair[0]}` and `{pair[1]}` are swapped")
            elif finding.mistake is not None:
                parts.append(finding.words())
        return "; ".join(dict.fromkeys(parts))


class StartFinding(FrozenModel):
    """The verdict on one episode of a rollout."""

    seed: int
    task: str = ""
    """Its environment, in a rollout of several."""
    verdict: CameraVerdict


class CameraCheckResult(FrozenModel):
    """The camera check of a whole rollout, as stored in `result.json`."""

    mode: CameraCheckMode
    """What to do at a mismatch."""
    starts: tuple[StartFinding, ...]
    """In the order of the episodes; empty where nothing was checked."""


_UNDO: Final[dict[Mistake, Callable[[Tensor], Tensor]]] = {
    "flipped left to right": lambda frames: frames.flip(-2),
    "flipped upside down": lambda frames: frames.flip(-3),
    "rotated by 180 degrees": lambda frames: frames.flip(-3, -2),
    "red and blue exchanged": lambda frames: frames.flip(-1),
}


class CameraCheck:
    """Compares an episode's first frames with those of one run's training."""

    def __init__(self, starts: StartFrames, view_names: tuple[str, ...]):
        """Derive the limits from the training's starts; takes half a second."""
        self._view_names = view_names
        self.unchecked: str | None = None
        """Why nothing can be checked; None where training had enough episodes to judge by."""
        if len(starts.frames) < MIN_EPISODES:
            found = len(starts.frames)
            self.unchecked = f"expected {MIN_EPISODES} or more training episodes, found {found}"
            return
        images = torch.from_numpy(starts.frames).float()
        views = torch.arange(len(view_names))
        self._levels = _brightness(images).median(dim=0).values
        self._starts = [self._leveled(images[:, view], view) for view in range(len(views))]
        away = self._away(images, leave_one_out=True)
        as_is = away[:, views, len(_UNDO) + views]
        away[:, views, len(_UNDO) + views] = torch.inf
        nearer = (as_is - MIN_DIFFERENCE) / away.amin(dim=-1).clamp(min=1e-3)
        self._spread: list[float] = as_is.amax(dim=0).tolist()
        self._margin: list[float] = nearer.amax(dim=0).clamp(min=MIN_MARGIN).tolist()

    @classmethod
    def from_run(cls, run: Path, description: RunDescription) -> "CameraCheck":
        """Read the start frames of a run.

        Raises:
            RunError: they are absent, damaged, or differ from those of the start of the run.
        """
        check = cls(read_start_frames(run, description), description.spec.view_names)
        if check.unchecked is not None:
            logger.warning("%s: the cameras are not checked: %s", run, check.unchecked)
        return check

    def admit(
        self,
        frames: UInt8[np.ndarray, "v 256 256 3"],
        mode: CameraCheckMode,
        *,
        scenes_differ: bool = False,
    ) -> CameraVerdict:
        """Examine an episode's first frames, and refuse or warn where they do not match.

        Args:
            frames: as `examine_start` takes them.
            mode: `refuse` or `warn`.
            scenes_differ: refuse only what has the name of a mistake; another scene is a warning.

        Raises:
            CameraMismatchError: they do not match, and `mode` is `refuse`.
        """
        verdict = self.examine_start(frames)
        admitted = {None, "unknown"} if scenes_differ else {None}
        mistakes = {finding.mistake for finding in verdict.views} - admitted
        if mistakes and mode == "refuse":
            raise CameraMismatchError(
                f"cameras: expected the views of the training data, found: "
                f"{verdict.line()}; correct the cameras or their order, or continue anyway with "
                "--set camera_check=warn"
            )
        if not verdict.matches:
            logger.warning("%s", verdict.line())
        return verdict

    def examine_start(self, frames: UInt8[np.ndarray, "v 256 256 3"]) -> CameraVerdict:
        """Compare an episode's first frames, RGB in [0, 255], with those of the training."""
        if self.unchecked is not None:
            return CameraVerdict(views=(), unchecked=self.unchecked)
        shown = torch.from_numpy(shrink_frames(frames)).float()
        away = self._away(shown[None])[0].tolist()
        return CameraVerdict(views=tuple(self._judge(*each) for each in enumerate(away)))

    def _judge(self, view: int, away: list[float]) -> ViewFinding:
        """Judge one view, given its row of `_away`."""
        as_is, names = away[len(_UNDO) + view], self._view_names
        found = ViewFinding(
            view=names[view], mistake=None, distance=as_is, spread=self._spread[view]
        )
        if as_is <= found.spread:
            return found
        undone: list[tuple[float, Mistake, int]] = [  # distance, mistake, view compared with
            (away[index], mistake, view) for index, mistake in enumerate(_UNDO)
        ]
        others = [other for other in range(len(names)) if other != view]
        undone += [(away[len(_UNDO) + other], "another view", other) for other in others]
        explaining = sorted(
            (distance, mistake, compared)
            for distance, mistake, compared in undone
            if distance <= self._limit(compared)
            and distance * self._margin[view] + MIN_DIFFERENCE < as_is
        )
        if not explaining:
            is_near = as_is <= self._limit(view)
            return found if is_near else found.model_copy(update={"mistake": "unknown"})
        distance, best, compared = explaining[0]
        just_as_well = distance * MIN_MARGIN + MIN_DIFFERENCE
        also = tuple(mistake for other, mistake, _ in explaining[1:] if other <= just_as_well)
        change = {
            "mistake": best,
            "alternatives": also,
            "shows": None if compared == view else names[compared],
            "undone_distance": distance,
        }
        return found.model_copy(update=change)

    def _limit(self, view: int) -> float:
        """Return the largest distance of a view that looks like training."""
        return SPREADS * self._spread[view] + TOLERANCE

    def _away(
        self, shown: Float32[Tensor, "n v 32 32 3"], *, leave_one_out: bool = False
    ) -> Float32[Tensor, "n v c"]:
        """Return the distance of each view from training.

        Args:
            shown: the views of some steps.
            leave_one_out: `shown` are the starts themselves: leave out each one's own episode.

        Returns:
            The distance with each mistake of `_UNDO` undone, to the starts of the same view; then
            the distance as it is, to the starts of each view.
        """
        own = torch.full((len(shown),), torch.inf).diag() if leave_one_out else torch.tensor(0.0)
        rows = []
        for view, images in enumerate(shown.unbind(dim=1)):
            tried = [(undo(images), view) for undo in _UNDO.values()]
            tried += [(images, other) for other in range(len(self._view_names))]
            away = []
            for changed, other in tried:
                leveled = self._leveled(changed, other)
                apart = torch.cdist(leveled, self._starts[other], p=1) / leveled.shape[1]
                away.append(apart.add(own).amin(dim=1))
            rows.append(torch.stack(away, dim=1))
        return torch.stack(rows, dim=1)

    def _leveled(self, images: Float32[Tensor, "n 32 32 3"], view: int) -> Float32[Tensor, "n d"]:
        """Scale images to a view's usual brightness, by `MAX_BRIGHTNESS` at most."""
        factor = (self._levels[view] / _brightness(images)).clamp(
            1 / MAX_BRIGHTNESS, MAX_BRIGHTNESS
        )
        return images.flatten(1) * factor[:, None]


def _brightness(images: Float32[Tensor, "*n 32 32 3"]) -> Float32[Tensor, "*n"]:
    """Return the mean of each image, in gray levels; 1 at least."""
    return images.mean(dim=(-3, -2, -1)).clamp(min=1)
