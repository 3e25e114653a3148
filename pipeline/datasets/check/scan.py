"""Reads the frames of some episodes once, for all checks and for the contact sheet.

The sheet shows people what no program can judge: frames upside down, mirrored, with red and blue
swapped, or of the wrong camera.
"""

import io
from collections import defaultdict
from collections.abc import Collection
from typing import Final

import numpy as np
from jaxtyping import Float64
from PIL import Image, ImageDraw, ImageOps

from pipeline.datasets.check.columns import Episodes
from pipeline.datasets.check.frames import Frame, ViewScan, same_views
from pipeline.datasets.check.report import Findings, ViewSummary
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import DatasetError
from policy.images import resize_images
from policy.spec import FRAME_SIZE

_BLOCK_BYTES: Final = 2**25  # of frames in memory at once; at least one step's
_DRIFT_SHARE: Final = 0.25  # of a control step; at half of one the neighbor's frame is nearer
_CELL: Final = 224  # pixels; the longer side of a frame on the sheet
_LABEL_HEIGHT: Final = 14  # pixels; one line of Pillow's own font
_GAP: Final = 4  # pixels


class FrameScan:
    """Reads the frames of some episodes once, for all checks and for the sheet."""

    def __init__(
        self,
        reader: ManifestReader,
        states: Episodes,
        least: Float64[np.ndarray, " s"],
        findings: Findings,
        on_sheet: Collection[int],
    ) -> None:
        """Start with no episode.

        `least` is the motion per column of `states` that a camera must show; first, middle and last
        frames of the episodes `on_sheet` are kept for the sheet.
        """
        self._reader, self._findings, self._on_sheet = reader, findings, on_sheet
        self._states = states
        self._is_resized = reader.loaded.manifest.resize is not None
        self._views = [ViewScan(view, reader.fps, least) for view in reader.view_names]
        self._same: dict[tuple[int, int, str], list[str]] = defaultdict(list)
        self._rows: dict[tuple[int, int], tuple[Frame | None, ...]] = {}

    def read(self, episode: int) -> None:
        """Read one episode; a frame that does not read becomes a finding and ends the episode."""
        name, length = self._reader.episode_name(episode), self._reader.episode_length(episode)
        looked_at: dict[int, tuple[Frame, ...]] = {}  # by step, one frame per view
        wanted = sorted({0, length // 2, length - 1})
        try:
            block = max(1, _BLOCK_BYTES // self._begin(episode))
            for start in range(0, length, block):
                stop = min(start + block, length)
                frames = self._reader.frames(episode, start, stop)
                for view, of_view in zip(self._views, frames, strict=True):
                    view.add(of_view, name)
                for step in (step for step in wanted if start <= step < stop):
                    looked_at[step] = tuple(of_view[step - start].copy() for of_view in frames)
            for view in self._views if episode in self._states else ():
                view.end_episode(self._states[episode][1], name)
        except (DatasetError, OSError) as error:  # FrameReadError among the latter
            self._findings.add_error("frames", name, error)
        for pair in same_views(list(looked_at.values())):
            self._same[pair].append(name)
        for step in wanted if episode in self._on_sheet else ():
            shown = looked_at.get(step, (None,) * len(self._views))
            if step in looked_at and self._is_resized:
                shown = tuple(resize_images(f[None], self._reader.fit)[0] for f in looked_at[step])
            self._rows[episode, step] = shown

    def report(self) -> tuple[ViewSummary, ...]:
        """Add the findings about the frames that were read, and describe every view."""
        height, width = FRAME_SIZE
        for view in self._views:
            view.report(self._findings)
            if not self._is_resized and view.sizes - {FRAME_SIZE}:
                found = " and ".join(f"{high}x{wide}" for high, wide in sorted(view.sizes))
                found = f"frames of {found} pixels, the encoder takes {height}x{width}"
                to_do = f"write `resize = [{height}, {width}]` into the manifest to resize them"
                self._findings.add("error", "size", f"view {view.name}", found, to_do)
            drift_ms, step_ms = 1000 * view.max_drift_s, 1000 / self._reader.fps
            if drift_ms > _DRIFT_SHARE * step_ms:
                found = f"frames up to {drift_ms:.1f} ms off their steps, of {step_ms:.1f} ms each"
                to_do = "compare the video's rate with `fps`; encode the video again"
                self._findings.add("warning", "drift", f"view {view.name}", found, to_do)
        for (first, second, how), names in self._same.items():
            place = f"views {self._views[first].name} and {self._views[second].name}"
            found = f"the same frames{how} in {len(names)} of the episodes read, the first "
            to_do = "correct the keys of the views, or leave one view or these episodes out"
            self._findings.add("error", "same_view", place, found + names[0], to_do)
        return tuple(
            ViewSummary(view.name, tuple(sorted(view.sizes)), view.num_frames, view.max_drift_s)
            for view in self._views
        )

    def sheet(self) -> bytes:
        """Draw a row per step, a column per view, as the encoder sees them."""
        reader, rows = self._reader, []
        several = len(set(reader.source_of)) > 1
        for (episode, step), frames in self._rows.items():
            source = f"source {reader.source_of[episode]}  " if several else ""
            at = f"{source}episode {reader.episode_number(episode)}  step {step}"
            names = [f"{name}  {at}" for name in reader.view_names]
            rows.append(list(zip(names, frames, strict=True)))
        return contact_sheet(rows)

    def _begin(self, episode: int) -> int:
        """Note sizes and drifts of an episode's views; return the bytes of a step's frames."""
        num_bytes = 0
        for view in self._views:
            view.begin_episode()
            height, width = self._reader.frame_size(episode, view.name)
            view.sizes.add((height, width))
            drift = self._reader.frame_drift(episode, view.name)
            view.max_drift_s = max(view.max_drift_s, drift)
            num_bytes += height * width * 3
        return num_bytes


def contact_sheet(rows: list[list[tuple[str, Frame | None]]]) -> bytes:
    """Draw a PNG of frames in rows of equal lengths, each below its label; None is crossed out."""
    cell_height = _CELL + _LABEL_HEIGHT + _GAP
    size = (len(rows[0]) * (_CELL + _GAP) + _GAP, len(rows) * cell_height + _GAP)
    sheet = Image.new("RGB", size, "white")
    for row, cells in enumerate(rows):
        for column, (label, frame) in enumerate(cells):
            cell = Image.new("RGB", (_CELL, _LABEL_HEIGHT + _CELL), "white")
            pen, box = ImageDraw.Draw(cell), (0, _LABEL_HEIGHT, _CELL - 1, cell.height - 1)
            pen.text((0, 0), label, fill="black")
            if frame is None:
                pen.rectangle(box, outline="black")
                pen.line(box, fill="black")
            else:
                # Nearest neighbor for small frames, so that single pixels stay visible.
                is_small = max(frame.shape) <= _CELL
                filter_ = Image.Resampling.NEAREST if is_small else Image.Resampling.BOX
                shown = ImageOps.contain(Image.fromarray(frame), (_CELL, _CELL), filter_)
                cell.paste(shown, (0, _LABEL_HEIGHT))
            sheet.paste(cell, (_GAP + column * (_CELL + _GAP), _GAP + row * cell_height))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()
