"""Reads the frames of some episodes once, for all checks and for the contact sheet."""

from typing import Final

import numpy as np
from jaxtyping import Float64, UInt8

from pipeline.datasets.check.contact_sheet import SheetFrame, contact_sheet
from pipeline.datasets.check.frames import ViewScan
from pipeline.datasets.check.report import Findings, ViewSummary
from pipeline.datasets.check.same_views import SameViews
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import DatasetError
from policy.images import resize_images
from policy.network.normalizer import CONSTANT_RANGE
from policy.spec import FRAME_SIZE

_BLOCK_BYTES: Final = 2**25  # of frames in memory at once; at least one step's
_DRIFT_SHARE: Final = 0.25  # of a control step; at half of one the neighbor's frame is nearer
_MOVED_SHARE: Final = 0.05  # of a column's standard deviation; less may change no pixel


class FrameScan:
    """Reads the frames of some episodes once, for all checks and for the sheet."""

    def __init__(
        self,
        reader: ManifestReader,
        state_std: Float64[np.ndarray, " s"],
        findings: Findings,
        on_sheet: list[int],
    ) -> None:
        """Start with no episode; the frames of the episodes `on_sheet` are kept for the sheet."""
        self._reader, self._findings = reader, findings
        self._least = np.maximum(_MOVED_SHARE * state_std, CONSTANT_RANGE)
        self._views = [ViewScan(view, reader.fps) for view in reader.view_names]
        self._same = SameViews(reader.view_names)
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
        states = self._states(episode)
        for view_scan in self._views:
            view_scan.begin_episode()
        try:
            block = max(1, _BLOCK_BYTES // self._note_sizes(episode))
            for start in range(0, length, block):
                stop = min(start + block, length)
                frames = self._reader.frames(episode, start, stop)
                of_block = None if states is None else states[start:stop] / self._least
                for view_scan, of_view in zip(self._views, frames, strict=True):
                    view_scan.add(of_view, start, of_block, name)
                for step in (step for step in wanted if start <= step < stop):
                    of_step = tuple(view[step - start].copy() for view in frames)
                    self._same.add(of_step)
                    if (episode, step) in self._rows:
                        self._rows[episode, step] = list(of_step)
        except (DatasetError, OSError) as error:  # FrameReadError among the latter
            self._findings.add_error("frames", name, error)
        else:
            has_moved = states is not None and bool((np.ptp(states, axis=0) > CONSTANT_RANGE).any())
            for view_scan in self._views:
                view_scan.end_episode(name, has_moved=has_moved)
        self._same.end_episode(name)

    def report(self, *, resized: bool) -> tuple[ViewSummary, ...]:
        """Add the findings about the frames that were read, and describe every view."""
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
                    f"{1000 / self._reader.fps:.1f} ms per step",
                    "compare the video's rate with `fps`; encode the video again",
                )
        self._same.report(self._findings)
        return tuple(
            ViewSummary(view.name, tuple(sorted(sizes)), view.num_frames, drift)
            for view, sizes, drift in zip(self._views, self._sizes, self._drift, strict=True)
        )

    def sheet(self, *, resized: bool) -> bytes:
        """Draw a row per step, a column per view; `resized`: as the encoder sees them."""
        names, reader = self._reader.view_names, self._reader
        several = len(set(reader.source_of)) > 1
        where = [f"source {source}  " if several else "" for source in reader.source_of]
        rows: list[list[SheetFrame]] = []
        for (episode, step), frames in self._rows.items():
            at = f"{where[episode]}episode {reader.episode_number(episode)}  step {step}"
            rows.append([])
            for name, frame in zip(names, frames, strict=True):
                shown = frame
                if resized and frame is not None:
                    shown = resize_images(frame[None], reader.fit)[0]
                rows[-1].append((f"{name}  {at}", shown))
        return contact_sheet(rows)

    def _note_sizes(self, episode: int) -> int:
        """Note sizes and drifts of an episode's views; return the bytes of a step's frames."""
        num_bytes = 0
        for index, view in enumerate(self._reader.view_names):
            height, width = self._reader.frame_size(episode, view)
            self._sizes[index].add((height, width))
            drift = self._reader.frame_drift(episode, view)
            self._drift[index] = max(self._drift[index], drift)
            num_bytes += height * width * 3
        return max(1, num_bytes)

    def _states(self, episode: int) -> Float64[np.ndarray, "t s"] | None:
        try:
            return self._reader.state(episode).astype(np.float64)
        except (DatasetError, OSError):  # already a finding; motion is unknown then
            return None
