"""Rollouts one by one, with their images and videos; `templates/rollouts.html`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.rollout.play.result import EpisodeResult, RolloutResult
from pipeline.rollout.report.configuration import flatten
from pipeline.rollout.report.contents import Rollout, RunContents
from pipeline.rollout.report.media import MediaBudget

SHOWN_ELSEWHERE: Final = {  # fields of a result that have their own place on the page
    "episodes",
    "success_rate",
    "success_interval",
    "render_s",
    "encode_s",
    "head_s",
    "gate_overridden",
}

Card = tuple[EpisodeResult, str | None, str | None]  # with the URLs of its image and its video


@dataclass(frozen=True)
class ShownRollout:
    """One rollout with what the page shows of it."""

    run: RunContents
    rollout: Rollout
    cards: list[Card]
    """Of the episodes that have an image or a video."""
    settings: dict[str, str]


def rollouts(runs: Sequence[RunContents], media: MediaBudget) -> dict[str, object]:
    """Return every rollout of every run; the first ones take up the room for media first."""
    shown = [
        ShownRollout(run, rollout, _cards(rollout, media), _settings(rollout.result))
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
        episode.seed: (
            episode,
            media.image(rollout.path_image(episode)),
            media.video(rollout.video(episode)),
        )
        for episode in sorted(episodes, key=lambda episode: episode.success)
    }
    return [cards[episode.seed] for episode in episodes if any(cards[episode.seed][1:])]


def _settings(result: RolloutResult) -> dict[str, str]:
    return flatten(result.model_dump(mode="json", exclude=SHOWN_ELSEWHERE))
