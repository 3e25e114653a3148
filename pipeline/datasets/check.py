"""Looks a dataset over before hours of compute: does it open, and is it what it should be?

Numbers are read of every episode; frames, which take long, of a few that are spread over the
dataset, or of all. Everything odd becomes a finding; nothing is changed. Knows the reader's
protocol and no file layout.
"""

from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, UInt8
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from pipeline.datasets.base import EpisodeReader
from pipeline.datasets.check_report import CheckReport, Findings, ViewSummary
from pipeline.datasets.checksums import verify_checksums
from pipeline.datasets.contact_sheet import SheetFrame, contact_sheet
from pipeline.datasets.frame_checks import ViewScan, report_same_views, small_copy
from pipeline.datasets.manifest import Manifest, load_manifest
from pipeline.datasets.manifest_reader import ManifestReader
from pipeline.datasets.number_checks import ColumnStatistics, check_clock
from pipeline.errors import ConfigError, DatasetError
from pipeline.files import write_atomically
from policy.normalizer import CONSTANT_RANGE
from policy.spec import FRAME_SIZE

_BLOCK: Final = 16  # steps whose frames are in memory at once
_SHEET_EPISODES: Final = 4  # more would make a picture that nobody can look at
_DRIFT_SHARE: Final = 0.25  # of a control step; half of one would be the neighbour's frame
# Of a column's standard deviation; a step smaller than that may leave every pixel as it was.
_MOVED_SHARE: Final = 0.05


class CheckConfig(BaseModel):
    """What to look at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: Path
    """The manifest file."""
    episodes: int | None = Field(default=5, ge=1)
    """Episodes whose frames are read, spread evenly over the dataset; None reads all."""
    sheet: Path | None = None
    """A `.png` to draw first, middle and last frames on; None draws none."""


def check_dataset(config: CheckConfig) -> CheckReport:
    """Check a dataset and draw the contact sheet, if one is asked for and the dataset opens.

    Raises:
        ManifestError: the manifest itself is wrong.
        ConfigError: the sheet has no place, or is no `.png`.
        OSError: the sheet cannot be written.
    """
    _require_place(config.sheet)
    manifest = load_manifest(config.manifest)
    findings = Findings()
    try:
        verify_checksums(manifest)
    except DatasetError as error:
        findings.add_error("checksum", str(config.manifest), error)
    try:
        reader = ManifestReader(manifest)
    except (DatasetError, OSError) as error:
        findings.add_error("unreadable", str(config.manifest), error)
        return CheckReport(
            manifest=str(config.manifest),
            name=manifest.name,
            num_episodes=0,
            num_steps=0,
            seconds=0.0,
            frames_of=(),
            views=(),
            dims=(),
            findings=findings.all(),
            sheet=None,
        )
    try:
        return _check_open(config, manifest, reader, findings)
    finally:
        reader.close()


def _require_place(sheet: Path | None) -> None:
    # Before the reading, which takes long. A mistyped name must not replace a manifest.
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ConfigError(f"{sheet}: expected a name that ends in .png; correct --sheet")
    if sheet is not None and not sheet.parent.is_dir():
        raise ConfigError(f"{sheet}: expected a folder {sheet.parent}, found none; create it")


def _check_open(
    config: CheckConfig, manifest: Manifest, reader: EpisodeReader, findings: Findings
) -> CheckReport:
    state, action = _check_numbers(reader, findings)
    num_wanted = reader.num_episodes if config.episodes is None else config.episodes
    spread = np.linspace(0, reader.num_episodes - 1, min(num_wanted, reader.num_episodes))
    chosen = [int(episode) for episode in spread.round()]
    scan = _FrameScan(reader, state.std, findings, chosen[:: -(-len(chosen) // _SHEET_EPISODES)])
    for episode in tqdm(chosen, desc="frames", unit="episode", disable=None):
        scan.read(episode)
    views = scan.report(resized=manifest.resize is not None)
    if config.sheet is not None:
        write_atomically(config.sheet, scan.sheet())
    num_steps = sum(map(reader.episode_length, range(reader.num_episodes)))
    return CheckReport(
        manifest=str(config.manifest),
        name=manifest.name,
        num_episodes=reader.num_episodes,
        num_steps=num_steps,
        seconds=num_steps / reader.fps,
        frames_of=tuple(chosen),
        views=views,
        dims=(*state.summaries(), *action.summaries()),
        findings=findings.all(),
        sheet=str(config.sheet) if config.sheet else None,
    )


def _check_numbers(
    reader: EpisodeReader, findings: Findings
) -> tuple[ColumnStatistics, ColumnStatistics]:
    """Read state, action and clock of every episode."""
    state, action = ColumnStatistics("state"), ColumnStatistics("action")
    seen: dict[tuple[bytes, bytes], str] = {}
    for episode in tqdm(range(reader.num_episodes), desc="numbers", unit="episode", disable=None):
        name = reader.episode_name(episode)
        try:
            values = reader.state(episode), reader.action(episode)
            seconds = reader.timestamp(episode)
        except (DatasetError, OSError) as error:
            findings.add_error("numbers", name, error)
            continue
        state.add(values[0])
        action.add(values[1])
        check_clock(seconds, reader.fps, name, findings)
        content = (values[0].tobytes(), values[1].tobytes())
        key = (sha256(content[0]).digest(), sha256(content[1]).digest())
        if key in seen:
            findings.add(
                "warning",
                "duplicate",
                name,
                f"the same states and actions as {seen[key]}",
                "leave one of them out with `episodes = {except = [...]}`",
            )
        seen.setdefault(key, name)
    for statistics in (state, action):
        statistics.report(findings)
    return state, action


class _FrameScan:
    """Reads the frames of some episodes once, for all checks and for the sheet."""

    def __init__(
        self,
        reader: EpisodeReader,
        state_std: np.ndarray,
        findings: Findings,
        on_sheet: list[int],
    ) -> None:
        self._reader, self._state_std, self._findings = reader, state_std, findings
        self._views = [ViewScan(view, reader.fps) for view in reader.view_names]
        self._sizes: list[set[tuple[int, int]]] = [set() for _ in self._views]
        self._drift = [0.0 for _ in self._views]
        self._rows: dict[tuple[int, int], list[UInt8[np.ndarray, "h w 3"] | None]] = {}
        self._on_sheet = on_sheet

    def read(self, episode: int) -> None:
        """Read one episode; a frame that does not read becomes a finding and ends the episode."""
        name, length = self._reader.episode_name(episode), self._reader.episode_length(episode)
        wanted = sorted({0, length // 2, length - 1})
        if episode in self._on_sheet:
            nothing = [None] * len(self._views)
            self._rows |= {(episode, step): [*nothing] for step in wanted}
        try:
            for index, view in enumerate(self._reader.view_names):
                self._sizes[index].add(self._reader.frame_size(episode, view))
                drift = self._reader.frame_drift(episode, view)
                self._drift[index] = max(self._drift[index], drift)
            for view_scan in self._views:
                view_scan.begin_episode()
            moved = self._moved(episode)
            for start in range(0, length, _BLOCK):
                stop = min(start + _BLOCK, length)
                frames = self._reader.frames(episode, start, stop)
                for view_scan, of_view in zip(self._views, frames, strict=True):
                    view_scan.add(of_view, start, moved[start:stop], name)
                    view_scan.copies += [
                        small_copy(of_view[s - start]) for s in wanted if start <= s < stop
                    ]
                for step in wanted:
                    if (episode, step) in self._rows and start <= step < stop:
                        self._rows[episode, step] = [view[step - start].copy() for view in frames]
        except (DatasetError, OSError) as error:  # FrameReadError among the latter
            self._findings.add_error("frames", name, error)

    def report(self, *, resized: bool) -> tuple[ViewSummary, ...]:
        """Tell what was odd about the frames that were read, and describe every view."""
        for view, sizes, drift in zip(self._views, self._sizes, self._drift, strict=True):
            view.report(self._findings)
            if not resized and sizes - {FRAME_SIZE}:
                found = " and ".join(f"{height}x{width}" for height, width in sorted(sizes))
                self._findings.add(
                    "error",
                    "size",
                    f"view {view.name}",
                    f"frames of {found} pixels, the encoder takes {FRAME_SIZE[0]}x{FRAME_SIZE[1]}",
                    f"write `resize = [{FRAME_SIZE[0]}, {FRAME_SIZE[1]}]` into the manifest to "
                    "allow them to be resized",
                )
            if drift > _DRIFT_SHARE / self._reader.fps:
                self._findings.add(
                    "warning",
                    "drift",
                    f"view {view.name}",
                    f"frames up to {1000 * drift:.1f} ms away from their steps, of "
                    f"{1000 / self._reader.fps:.1f} ms a step",
                    "compare the video's rate with `fps`; record or encode the video again",
                )
        report_same_views(self._views, self._findings)
        return tuple(
            ViewSummary(view.name, tuple(sorted(sizes)), view.num_frames, drift)
            for view, sizes, drift in zip(self._views, self._sizes, self._drift, strict=True)
        )

    def sheet(self) -> bytes:
        """Draw a row a step, a column a view."""
        names = self._reader.view_names
        return contact_sheet(
            [
                [
                    SheetFrame(f"{name}  episode {episode}  step {step}", frame)
                    for name, frame in zip(names, frames, strict=True)
                ]
                for (episode, step), frames in self._rows.items()
            ]
        )

    def _moved(self, episode: int) -> Bool[np.ndarray, " t"]:
        """Whether the robot moved between the step before and each step of an episode."""
        moved = np.zeros(self._reader.episode_length(episode), bool)
        try:
            state = self._reader.state(episode)
        except DatasetError:  # told before; without a state nobody knows what moved
            return moved
        least = np.maximum(_MOVED_SHARE * self._state_std, CONSTANT_RANGE)
        moved[1:] = (np.abs(np.diff(state, axis=0)) > least).any(axis=1)
        return moved
