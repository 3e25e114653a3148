"""The whole page: its sections, style sheet and script, in one file that loads nothing.

A section is a function that computes its values, and a template in `templates/` that shows them.
Images and videos are in the page as `data:` URLs, up to a total size; the page names the others.
The page does not hold the time of its making: the same files give the same bytes.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.errors import ConfigError
from pipeline.rollout.play.result import EpisodeResult, RolloutResult, SuccessRate
from pipeline.rollout.report.chart import curves, number_text, percent
from pipeline.rollout.report.comparison import comparison, points_text, probability_text
from pipeline.rollout.report.contents import Rollout, RunContents, read_contents
from pipeline.rollout.report.instructions import InstructionEffect, measure_effect
from pipeline.storage.local import write_atomically
from pipeline.training.run.tracking import flat_configuration

MEDIA_LIMIT: Final = 32_000_000  # bytes of images and videos; still quick to open and to send
HERE: Final = Path(__file__).parent
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
}

Card = tuple[EpisodeResult, str | None, str | None]  # with the URLs of its image and its video


@dataclass
class MediaBudget:
    """The files inlined into a page so far, and those for which there was no room."""

    limit: int
    """In bytes of files; inside the page they take a third more."""
    used: int = 0
    left_out: list[Path] = field(default_factory=list)
    left_out_bytes: int = 0

    def url(self, path: Path, kind: str) -> str | None:
        """Return a file of the media type `kind` as a URL; None where it is absent or left out."""
        if not path.is_file():
            return None
        size = path.stat().st_size
        if self.used + size > self.limit:
            self.left_out.append(path)
            self.left_out_bytes += size
            return None
        self.used += size
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def write_report(
    folders: Sequence[Path], out: Path, *, media_limit: int = MEDIA_LIMIT
) -> list[Path]:
    """Write the page of one or several runs, side by side, to the file `out`, replaced whole.

    `media_limit` is how many bytes of images and videos may go into the page.

    Returns:
        The images and videos for which there was no room.

    Raises:
        RunError: a folder holds no run, or a file in it is damaged.
        ConfigError: `out` is a folder.
        OSError: a file cannot be read, or `out` cannot be written.
    """
    if out.is_dir():
        raise ConfigError(f"{out}: expected a file, found a folder; use {out / 'report.html'}")
    media = MediaBudget(media_limit)
    content = render_page(read_contents(folders), media)
    write_atomically(out, content.encode(errors="replace"))  # a file's name may be no Unicode
    return media.left_out


def render_page(runs: Sequence[RunContents], media: MediaBudget) -> str:
    """Return the page's HTML."""
    effects = [(run, effect) for run in runs for effect in _effects(run)]
    ignored = [f"{run.label}: {effect.alarm}" for run, effect in effects if effect.alarm]
    final = [(run, rollout) for run in runs for rollout in run.final_rollouts]
    page = environment().get_template("page.html")
    return page.render(
        runs=runs,
        title=runs[0].label if len(runs) == 1 else f"{len(runs)} runs side by side",
        alarms=ignored + [alarm for run in runs for alarm in _alarms(run)],
        cautions=[caution for run in runs for caution in _cautions(run)],
        final=final,
        tables=[(*each, by_task(each[1].result)) for each in final if each[1].result.suites],
        effects=effects,
        style=(HERE / "page.css").read_text("utf-8"),
        script=(HERE / "page.js").read_text("utf-8"),
        **comparison(runs),
        **curves(runs),
        **rollouts(runs, media),
        **configuration(runs),
    )


@cache  # compiling the templates takes longer than filling them in
def environment() -> Environment:
    """Return the templates: what they show is escaped, and a name they do not know is an error."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number_text,
        "percent": percent,
        "points": points_text,
        "probability": probability_text,
        "sha256": _sha256,
        "thousands": lambda count: f"{count:,}",
    }
    return made


def _sha256(text: str) -> str:
    """Return the hash by which a content security policy allows an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def by_task(result: RolloutResult) -> list[tuple[str, str, list[SuccessRate | None]]]:
    """Return each task of suites, its instructions, and its rate in each suite, side by side."""
    rates = {(rate.task, rate.suite): rate for rate in result.tasks}
    instructions: dict[str, dict[str, None]] = {}
    for episode in result.episodes:
        instructions.setdefault(episode.task.rpartition("/")[2], {})[episode.instruction] = None
    return [
        (task, " / ".join(filter(None, its)), [rates.get((task, s.name)) for s in result.suites])
        for task, its in instructions.items()
    ]


def _effects(run: RunContents) -> list[InstructionEffect]:
    """Compare rollouts under other instructions with that under the environments' own."""

    def played(result: RolloutResult) -> tuple[object, ...]:
        """Return what two results must share for their episodes to be pairs."""
        seeds = [(episode.task, episode.seed) for episode in result.episodes]
        return result.env, result.checkpoint_step, result.nfe, seeds

    results = [rollout.result for rollout in run.rollouts]
    return [
        measure_effect(own, other)
        for own in results
        for other in results
        if own.instruction_source == "own"
        and other.instruction_source in ("other", "empty")
        and played(own) == played(other)
    ]


def _alarms(run: RunContents) -> list[str]:
    found = []
    for rollout in run.rollouts:
        where = f"{run.label}, rollout {rollout.name}"
        result, data = rollout.result, run.description.data
        found += [f"{where}: {alarm}" for alarm in result.alarms()]
        if result.encoder.fingerprint != data.encoder.fingerprint:
            found.append(f"{where}: the encoder is not that of training ({result.encoder.name})")
        if result.store_digest != data.store_digest:
            found.append(f"{where}: the policy was trained on other data than this run")
    return found


def _cautions(run: RunContents) -> list[str]:
    found = [f"{run.label}: {remark}." for remark in run.log.remarks]
    steps = run.description.config.steps
    if run.step < steps:
        found.append(
            f"{run.label}: not finished, the last checkpoint is at step {run.step:,} of {steps:,}."
        )
    return found


def rollouts(runs: Sequence[RunContents], media: MediaBudget) -> dict[str, object]:
    """Return every rollout with its run, cards and settings; media are added in this order."""
    shown = [
        (
            run,
            rollout,
            _cards(rollout, media),
            flatten(rollout.result.model_dump(mode="json", exclude=SHOWN_ELSEWHERE)),
        )
        for run in runs
        for rollout in run.rollouts
    ]
    return {
        "requested": [one for one in shown if not one[1].is_validation],
        "validations": [one for one in shown if one[1].is_validation],
        "media": media,
    }


def _cards(rollout: Rollout, media: MediaBudget) -> list[Card]:
    """Inline the media of a rollout, failures first; return them in the order of the episodes."""
    found = {}
    for episode in sorted(rollout.result.episodes, key=lambda episode: episode.success):
        image = (rollout.folder / "paths" / episode.file).with_suffix(".png")
        video = (rollout.folder / "videos" / episode.file).with_suffix(".mp4")
        urls = media.url(image, "image/png"), media.url(video, "video/mp4")
        if any(urls):
            found[episode.file] = (episode, *urls)
    return [found[e.file] for e in rollout.result.episodes if e.file in found]


def configuration(runs: Sequence[RunContents]) -> dict[str, object]:
    """Return every field of every run's `run.json`, for `templates/configuration.html`."""
    flat = [flatten(run.description.model_dump(mode="json")) for run in runs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    return {"fields": {name: [fields.get(name, ABSENT) for fields in flat] for name in names}}


def flatten(content: Mapping[str, object]) -> dict[str, str]:
    """Return nested settings as `group.field` and text."""
    flat = flat_configuration(content)
    return {k: value if isinstance(value, str) else json.dumps(value) for k, value in flat.items()}
