"""The whole page: its sections, style sheet and script, in one file that loads nothing.

A section is a function that computes its values, and a template in `templates/` that shows them.
The page does not hold the time of its making: the same files give the same bytes.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.errors import ConfigError
from pipeline.rollout.play.result import RolloutResult, SuccessRate
from pipeline.rollout.report.chart import curves
from pipeline.rollout.report.comparison import comparison, points_text, probability_text
from pipeline.rollout.report.contents import RunContents, read_contents
from pipeline.rollout.report.instructions import InstructionEffect, measure_effect
from pipeline.rollout.report.rollouts import MediaBudget, configuration, rollouts
from pipeline.rollout.report.scales import number_text, percent
from pipeline.storage.local import write_atomically

MEDIA_LIMIT: Final = 32_000_000  # bytes of images and videos; still quick to open and to send
HERE: Final = Path(__file__).parent


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
    sections: list[tuple[str, str, Mapping[str, object] | None]] = [
        ("Success", "success.html", success(runs) | {"effects": effects}),
        ("Comparison", "comparison.html", comparison(runs)),  # None, left out, for a single run
        ("Training", "training.html", curves(runs)),
        ("Rollouts", "rollouts.html", rollouts(runs, media)),
        ("Configuration", "configuration.html", configuration(runs)),
    ]
    templates = environment()
    return templates.get_template("page.html").render(
        runs=runs,
        sections=[
            (title, templates.get_template(name).render(runs=runs, **values))
            for title, name, values in sections
            if values is not None
        ],
        style=(HERE / "page.css").read_text("utf-8"),
        script=(HERE / "page.js").read_text("utf-8"),
        **overview(runs, effects),
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


def overview(
    runs: Sequence[RunContents], effects: Sequence[tuple[RunContents, InstructionEffect]]
) -> dict[str, object]:
    """Return what `templates/overview.html` shows; `effects` are those of instructions."""
    ignored = [f"{run.label}: {effect.alarm}" for run, effect in effects if effect.alarm]
    return {
        "title": runs[0].label if len(runs) == 1 else f"{len(runs)} runs side by side",
        "alarms": ignored + [alarm for run in runs for alarm in _alarms(run)],
        "untrained": [run.label for run in runs if not run.description.data.encoder.pretrained],
        "cautions": [caution for run in runs for caution in _cautions(run)],
    }


def success(runs: Sequence[RunContents]) -> dict[str, object]:
    """Return what `templates/success.html` shows: the rollouts that count as a run's result."""
    shown = [(run, rollout) for run in runs for rollout in run.final_rollouts]
    tables = [
        (run, rollout, _by_task(rollout.result), _instructions(rollout.result))
        for run, rollout in shown
    ]
    return {
        "rollouts": shown,
        "tables": [table for table in tables if table[2]],
    }


def _instructions(result: RolloutResult) -> dict[str, str]:
    """Return for each task its instruction, or those of its variants."""
    found: dict[str, dict[str, None]] = {}
    for episode in result.episodes:
        found.setdefault(episode.task.rpartition("/")[2], {})[episode.instruction] = None
    return {task: " / ".join(filter(None, words)) for task, words in found.items()}


def _played(result: RolloutResult) -> tuple[object, ...]:
    """Return what two results must share for their episodes to be pairs."""
    episodes = [(episode.task, episode.seed) for episode in result.episodes]
    return result.env, result.checkpoint_step, result.nfe, episodes


def _effects(run: RunContents) -> list[InstructionEffect]:
    """Compare rollouts under other instructions with that under the environments' own."""
    results = [rollout.result for rollout in run.rollouts if rollout.result.episodes]
    return [
        measure_effect(own, other)
        for own in results
        for other in results
        if own.instruction_source == "own"
        and other.instruction_source in ("other", "empty")
        and _played(own) == _played(other)
    ]


def _by_task(result: RolloutResult) -> dict[str, list[SuccessRate | None]]:
    """Return for each task its rate in each of the result's suites: variants are side by side."""
    rates = {(rate.task, rate.suite): rate for rate in result.tasks}
    return {
        task: [rates.get((task, suite.name)) for suite in result.suites]
        for task in dict.fromkeys(task for task, _ in rates)
    }


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
