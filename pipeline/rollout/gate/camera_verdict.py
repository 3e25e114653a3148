"""The findings of the camera check, in words and as stored in `result.json`."""

from typing import Literal

from policy.spec import FrozenModel

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
        within = f"training starts are within {self.spread:.1f} of each other"
        if self.mistake == "unknown":
            return (
                f"view `{self.view}` does not look like training (distance {self.distance:.1f} of "
                f"255, {within})"
            )
        what = (
            f"shows what training saw as `{self.shows}`"
            if self.shows is not None
            else f"matches training when {_undone(self.mistake)}"
        )
        alternatives = "".join(f" or {_undone(other)}" for other in self.alternatives)
        return (
            f"view `{self.view}` {what}{alternatives} (distance {self.undone_distance:.1f} instead "
            f"of {self.distance:.1f} of 255, {within})"
        )


def _undone(mistake: Mistake | None) -> str:
    if mistake == "red and blue exchanged":
        return "red and blue are exchanged"
    return str(mistake)


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

    @property
    def names_a_mistake(self) -> bool:
        """Whether a picture is flipped, turned or exchanged, and not only another scene."""
        return any(finding.mistake not in (None, "unknown") for finding in self.views)

    def line(self) -> str:
        """Return the verdict in one line."""
        if self.unchecked is not None:
            return f"the cameras are not checked: {self.unchecked}"
        if self.matches:
            return "all views match training"
        shows = {finding.view: finding.shows for finding in self.views}
        parts = []
        for finding in self.views:
            if finding.mistake is None:
                continue
            if finding.shows is None or shows[finding.shows] != finding.view:
                parts.append(finding.words())
            elif list(shows).index(finding.view) < list(shows).index(finding.shows):
                parts.append(f"views `{finding.view}` and `{finding.shows}` are swapped")
        return "; ".join(parts)


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
