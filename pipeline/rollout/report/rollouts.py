"""Rollouts one by one: episodes, latency, pictures of paths and films.

Knows rollouts as read and the page's room for media.
"""

from collections.abc import Sequence
from typing import Final

from pipeline.rollout.play.result import EpisodeResult, RolloutResult
from pipeline.rollout.report.configuration import flatten
from pipeline.rollout.report.contents import Rollout, RunContents
from pipeline.rollout.report.markup import Markup, element
from pipeline.rollout.report.media import MediaBudget
from pipeline.rollout.report.tables import folded, percent, row, swatch, table

OPEN_EPISODES: Final = 20  # more of them start folded
COLUMN: Final = 10  # episodes under each other before the table goes on beside itself
SHOWN_ELSEWHERE: Final = {  # fields of a result that have their own place on the page
    "episodes",
    "success_rate",
    "success_interval",
    "render_s",
    "encode_s",
    "head_s",
    "gate_overridden",
}


def rollouts(runs: Sequence[RunContents], budget: MediaBudget) -> Markup:
    """Return every rollout of every run; media go to the first ones first, failures before all."""
    asked: list[Markup] = []
    validations: list[Markup] = []
    for colour, run in enumerate(runs):
        for rollout in run.rollouts:
            group = validations if rollout.is_validation else asked
            group.append(_article(run, rollout, colour, budget))
    if not asked and not validations:
        return element("p", "No rollout yet; make one with vla-rollout.", class_="empty")
    summary = f"Validation during training: {len(validations)} rollouts"
    return element(
        "div",
        element("div", asked, class_="rollouts") if asked else None,
        folded(summary, element("div", validations, class_="rollouts")) if validations else None,
        _missing(budget),
    )


def _article(run: RunContents, rollout: Rollout, colour: int, budget: MediaBudget) -> Markup:
    result = rollout.result
    low, high = result.success_interval
    line = (
        f"{result.env}: solved {rollout.solved} of {len(result.episodes)} episodes, "
        f"{percent(result.success_rate)} (95 % interval {100 * low:.0f} to {percent(high)})"
    )
    return element(
        "article",
        element(
            "h3",
            swatch(colour),
            run.label,
            element("small", rollout.name),
        ),
        element("p", line),
        _latency(result),
        _gallery(rollout, budget),
        _episodes(result),
        _further(result),
    )


def _latency(result: RolloutResult) -> Markup:
    parts = (("render", result.render_s), ("encode", result.encode_s), ("head", result.head_s))
    names = ("One decision, ms", "p50", "p95", "p99")
    rows = [
        row(name, [f"{1e3 * s:,.1f}" for s in (part.p50, part.p95, part.p99)])
        for name, part in parts
    ]
    return table(names, rows, "latency")


def _gallery(rollout: Rollout, budget: MediaBudget) -> Markup | None:
    """Show the episodes that left a picture or a film; failures take the room first."""
    episodes = rollout.result.episodes
    cards = {
        episode.seed: _card(rollout, episode, budget)
        for episode in sorted(episodes, key=lambda episode: episode.success)
    }
    shown = [cards[episode.seed] for episode in episodes]
    return element("div", shown, class_="gallery") if any(shown) else None


def _card(rollout: Rollout, episode: EpisodeResult, budget: MediaBudget) -> Markup | None:
    image = budget.image(rollout.path_image(episode))
    film = budget.video(rollout.video(episode))
    words = f"seed {episode.seed}"
    if film:
        medium = element(
            "video",
            controls=True,
            muted=True,
            loop=True,
            playsinline=True,
            preload="none" if image else "metadata",
            poster=image,
            src=film,
            aria_label=f"Film of {words}",
        )
    elif image:
        medium = element("img", src=image, alt=f"First frame and path of {words}")
    else:
        return None
    outcome = f"{'solved in' if episode.success else 'failed after'} {episode.steps:,} steps"
    caption = element("figcaption", element("b", words), outcome)
    return element("figure", medium, caption, class_=_outcome(episode) + (" film" if film else ""))


def _episodes(result: RolloutResult) -> Markup:
    rows = [
        row(
            episode.seed,
            [_outcome(episode), f"{episode.steps:,}", f"{episode.reward:,.1f}"],
            _outcome(episode),
        )
        for episode in result.episodes
    ]
    names = ("Seed", "Outcome", "Steps", "Reward")
    columns = [
        table(names, rows[start : start + COLUMN], "episodes")
        for start in range(0, len(rows), COLUMN)
    ]
    failed = sum(not episode.success for episode in result.episodes)
    return folded(
        f"{len(rows)} episodes, {failed} failed",
        element("div", columns, class_="columns"),
        is_open=len(rows) <= OPEN_EPISODES,
    )


def _outcome(episode: EpisodeResult) -> str:
    return "solved" if episode.success else "failed"


def _further(result: RolloutResult) -> Markup:
    content = result.model_dump(mode="json")
    fields = flatten({key: content[key] for key in content if key not in SHOWN_ELSEWHERE})
    rows = [row(name, [value]) for name, value in fields.items()]
    return folded("How it was made", table((), rows, "config"))


def _missing(budget: MediaBudget) -> Markup:
    """Say which media the page does not hold, and where they lie."""
    said = []
    if budget.left_out:
        size = sum(path.stat().st_size for path in budget.left_out)
        folders = sorted({str(path.parent) for path in budget.left_out})
        said.append(
            f"{len(budget.left_out)} files ({size / 1e6:.1f} MB) are not in this page, whose media "
            f"may take {budget.limit / 1e6:.0f} MB; they lie in {', '.join(folders)}."
        )
    said += [f"{path} is not what its name says and was left out." for path in budget.unusable]
    return Markup("".join(element("p", line, class_="caution") for line in said))
