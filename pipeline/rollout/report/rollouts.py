"""Rollouts one by one, with their images, videos and settings, and the configuration of the runs.

Images and videos are in the page as `data:` URLs, up to a total size; the page names the others.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.rollout.play.result import EpisodeResult
from pipeline.rollout.report.contents import Rollout, RunContents
from pipeline.training.run.tracking import flat_configuration

PNG_MARK: Final = b"\x89PNG\r\n\x1a\n"  # PNG specification, section 5.2
MP4_MARK: Final = b"ftyp"  # bytes 4 to 8 of an MP4 file; ISO/IEC 14496-12, section 4.3
ABSENT: Final = "\N{EN DASH}"  # where a run has no such field
SHOWN_ELSEWHERE: Final = {  # fields of a result that the page shows elsewhere
    "episodes",
    "success_rate",
    "success_interval",
    "tasks",
    "suites",
    "render_s",
    "encode_s",
    "head_s",
    "gate_overridden",
}

Card = tuple[EpisodeResult, str | None, str | None]  # with the URLs of its image and its video


@dataclass
class MediaBudget:
    """The files inlined into a page so far, and the omitted ones."""

    limit: int
    """In bytes of files; inside the page they take a third more."""
    used: int = 0
    left_out: list[Path] = field(default_factory=list)
    """Files for which there was no room."""
    unusable: list[Path] = field(default_factory=list)
    """Files that are not of the type in their name."""

    @property
    def left_out_bytes(self) -> int:
        """Total size of the files for which there was no room."""
        return sum(path.stat().st_size for path in self.left_out)

    def image(self, path: Path) -> str | None:
        """Return a PNG file as a URL; None where it is absent or left out."""
        return self._inline(path, "image/png", PNG_MARK, 0)

    def video(self, path: Path) -> str | None:
        """Return an MP4 file as a URL; None where it is absent or left out."""
        return self._inline(path, "video/mp4", MP4_MARK, 4)

    def _inline(self, path: Path, kind: str, mark: bytes, offset: int) -> str | None:
        if not path.is_file():
            return None
        size = path.stat().st_size
        if self.used + size > self.limit:
            self.left_out.append(path)
            return None
        content = path.read_bytes()
        if content[offset : offset + len(mark)] != mark:
            self.unusable.append(path)
            return None
        self.used += len(content)
        return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class ShownRollout:
    """One rollout with what the page shows of it."""

    run: RunContents
    rollout: Rollout
    cards: list[Card]
    """Of the episodes that have an image or a video."""
    settings: dict[str, str]


def rollouts(runs: Sequence[RunContents], media: MediaBudget) -> dict[str, object]:
    """Return every rollout of every run; media are added in this order, while there is room."""
    shown = [
        ShownRollout(
            run,
            rollout,
            _cards(rollout, media),
            flatten(rollout.result.model_dump(mode="json", exclude=SHOWN_ELSEWHERE)),
        )
        for run in runs
        for rollout in run.rollouts
    ]
    return {
        "requested": [one for one in shown if not one.rollout.is_validation],
        "validations": [one for one in shown if one.rollout.is_validation],
        "media": media,
    }


def _cards(rollout: Rollout, media: MediaBudget) -> list[Card]:
    """Inline the media of a rollout, failures first; return them in the order of the episodes."""
    episodes = rollout.result.episodes
    cards = {
        episode.file: (
            episode,
            media.image(rollout.path_image(episode)),
            media.video(rollout.video(episode)),
        )
        for episode in sorted(episodes, key=lambda episode: episode.success)
    }
    return [cards[episode.file] for episode in episodes if any(cards[episode.file][1:])]


def configuration(runs: Sequence[RunContents]) -> dict[str, object]:
    """Return every field of every run's `run.json`, for `templates/configuration.html`."""
    flat = [flatten(run.description.model_dump(mode="json")) for run in runs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    return {"fields": {name: [fields.get(name, ABSENT) for fields in flat] for name in names}}


def flatten(content: Mapping[str, object]) -> dict[str, str]:
    """Return nested settings as `group.field` and text."""
    flat = flat_configuration(content)
    return {k: value if isinstance(value, str) else json.dumps(value) for k, value in flat.items()}
