"""Tiny LeRobot datasets, written with pyarrow and PyAV in the published layouts.

A counter is drawn into every frame as blocks of bits, large enough to outlast any codec, so that
a test reads from the pixels which frame it was given.
Source: huggingface/lerobot@7427f318:src/lerobot/datasets/utils.py (facts only).
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.bench.video_loss import leave_real_time
from tests.pipeline.datasets.format_contract import (
    TINY_ACTION_NAMES,
    TINY_FPS,
    TINY_LENGTHS,
    TINY_STATE_NAMES,
    tiny_action,
    tiny_frames,
    tiny_state,
)

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
VIDEO_SIZES = {FRONT: (64, 96), WRIST: (80, 64)}
CODECS = {
    # As LeRobot encodes: AV1 of constant quality with a key frame every other frame.
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "10", "svtav1-params": "lp=1"}),
    "h264": ("libx264", {"g": "8", "crf": "20", "bf": "2", "threads": "1"}),
    "mpeg4": ("mpeg4", {"g": "6", "qscale": "3", "threads": "1"}),
}
_BITS = (4, 3)  # rows and columns of blocks: 12 bits


def counter_frame(number: int, size: tuple[int, int], tint: int = 0) -> np.ndarray:
    """Draw a number below 4096 as bright and dark blocks; `tint` reddens the dark ones."""
    bits = [(number >> bit) & 1 for bit in range(_BITS[0] * _BITS[1])]
    grid = np.array(bits, np.uint8).reshape(_BITS)
    rows = np.arange(size[0]) * _BITS[0] // size[0]
    columns = np.arange(size[1]) * _BITS[1] // size[1]
    lit = grid[rows][:, columns].astype(bool)
    return np.where(lit[..., None], 210, [40 + tint, 40, 40]).astype(np.uint8)


def read_counter(frame: np.ndarray) -> int:
    """Read the number back from the mean brightness of every block's middle."""
    height, width = frame.shape[0] // _BITS[0], frame.shape[1] // _BITS[1]
    number = 0
    for bit in range(_BITS[0] * _BITS[1]):
        row, column = divmod(bit, _BITS[1])
        y, x = row * height + height // 4, column * width + width // 4
        number |= int(frame[y : y + height // 2, x : x + width // 2].mean() > 125) << bit
    return number


def read_counters(frames: np.ndarray) -> list[int]:
    return [read_counter(frame) for frame in frames]


def write_video(
    path: Path,
    frames: Sequence[np.ndarray] | np.ndarray,
    *,
    fps: int = int(TINY_FPS),
    codec: str = "mpeg4",
    ticks: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
) -> Path:
    """Write an MP4; frame i is shown at i / fps, or at ticks[i] thousandths of 1 / fps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name, defaults = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=fps, options={**defaults, **(options or {})})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = frames[0].shape[:2]
        if ticks is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000 * fps)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if ticks is not None:
                frame.time_base, frame.pts = Fraction(1, 1000 * fps), ticks[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    leave_real_time()
    return path


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@dataclass
class TinyEpisode:
    """What is written of an episode."""

    frames: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    extra: dict[str, list[Any]] = field(default_factory=dict)
    """Columns beside the usual ones, or instead of them."""

    @property
    def length(self) -> int:
        return len(self.state)


def counter_frames(episode: int, view: str, length: int | None = None) -> np.ndarray:
    """Frames whose counter is unique among views, episodes and steps: 1000 v + 100 e + step."""
    length = TINY_LENGTHS[episode] if length is None else length
    index = list(VIDEO_SIZES).index(view)
    first = 1000 * index + 100 * episode
    return np.stack(
        [counter_frame(first + step, VIDEO_SIZES[view], 60 * index) for step in range(length)]
    )


def tiny_episodes() -> list[TinyEpisode]:
    return [
        TinyEpisode(
            {view: counter_frames(episode, view) for view in VIDEO_SIZES},
            tiny_state(episode),
            tiny_action(episode),
        )
        for episode in range(len(TINY_LENGTHS))
    ]


def tiny_image_episodes() -> list[TinyEpisode]:
    """Return the tiny episodes with the frames of the contract, which image columns keep."""
    episodes = tiny_episodes()
    for number, episode in enumerate(episodes):
        episode.frames = {FRONT: tiny_frames(number, "front"), WRIST: tiny_frames(number, "wrist")}
    return episodes


def counted_episodes(*lengths: int) -> list[TinyEpisode]:
    """Episodes of other lengths, with counters as of `counter_frames`."""
    return [
        TinyEpisode(
            {view: counter_frames(episode, view, length) for view in VIDEO_SIZES},
            np.arange(2.0 * length).reshape(length, 2),
            np.arange(3.0 * length).reshape(length, 3),
        )
        for episode, length in enumerate(lengths)
    ]


def rows_table(
    episodes: Sequence[tuple[int, int, TinyEpisode]],
    image_keys: Sequence[str] = (),
    lists: str = "fixed",
    fps: float = TINY_FPS,
) -> pa.Table:
    """Build the rows of (number, first index, episode); lists of `fixed` or `variable` size."""
    columns: dict[str, list[Any]] = {}
    for number, first, episode in episodes:
        steps = range(episode.length)
        rows: dict[str, list[Any]] = {
            "observation.state": episode.state.tolist(),
            "action": episode.action.tolist(),
            "timestamp": [step / fps for step in steps],
            "frame_index": list(steps),
            "episode_index": [number] * episode.length,
            "index": [first + step for step in steps],
            "task_index": [0] * episode.length,
        }
        for key in image_keys:
            rows[key] = [{"bytes": png(frame), "path": None} for frame in episode.frames[key]]
        for key, values in (rows | episode.extra).items():
            columns.setdefault(key, []).extend(values)
    types: dict[str, Any] = {
        "timestamp": pa.float32(),
        **dict.fromkeys(image_keys, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    }
    # The datasets library writes lists of fixed size as float32; pandas, in the converter, not.
    for key, width in (("observation.state", 2), ("action", 3)):
        fixed = pa.list_(pa.float32(), width)
        types[key] = fixed if lists == "fixed" else pa.list_(pa.float64())
    return pa.table(
        {key: pa.array(values, types.get(key)) for key, values in columns.items() if values}
    )


def write_parquet(path: Path, table: pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def info_content(
    version: str, episodes: Sequence[TinyEpisode], image_keys: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what `meta/info.json` says of the episodes."""
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": list(TINY_STATE_NAMES)},
        "action": {"dtype": "float32", "shape": [3], "names": {"motors": list(TINY_ACTION_NAMES)}},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "int64", "shape": [1], "names": None}
    for key, frames in episodes[0].frames.items():
        features[key] = {
            "dtype": "image" if key in image_keys else "video",
            "shape": list(frames.shape[1:]),
            "names": ["height", "width", "channels"],
        }
    number = {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    if version != "v3.0":
        name = "{episode_index:06d}"
        number = {
            "data_path": f"data/chunk-{{episode_chunk:03d}}/episode_{name}.parquet",
            "video_path": f"videos/chunk-{{episode_chunk:03d}}/{{video_key}}/episode_{name}.mp4",
        }
    return {
        "codebase_version": version,
        "robot_type": "tiny",
        "fps": int(TINY_FPS),
        "total_episodes": len(episodes),
        "total_frames": sum(episode.length for episode in episodes),
        "chunks_size": 1000,
        "splits": {"train": f"0:{len(episodes)}"},
        "features": features,
        **number,
    }


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    write_json(path, {key: value for key, value in content.items() if value is not None})


def edit_parquet(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Pass every row as a dict to `change`, which returns the row to keep or None."""
    table = pq.read_table(path)
    rows = [changed for row in table.to_pylist() if (changed := change(row)) is not None]
    pq.write_table(pa.Table.from_pylist(rows), path)


@dataclass
class VideoPlan:
    """How v3 spreads a camera's episodes over files."""

    files: tuple[tuple[int, ...], ...]
    """Episodes of each file, in the order in which they follow each other."""
    gap: int = 0
    """Frames of nobody before each episode, as edits leave them."""
    drift_s: float = 0.0
    """Seconds by which the index is off after the first episode of a file."""
    missing: int = 0
    """Frames that the last file lacks at its end."""


def write_v3(
    root: Path,
    episodes: Sequence[TinyEpisode],
    *,
    image_keys: Sequence[str] = (),
    plans: Mapping[str, VideoPlan] | None = None,
    tables: Sequence[Sequence[int]] | None = None,
    codec: str = "mpeg4",
    lists: str = "fixed",
    rows_per_group: int | None = None,
    index_order: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
) -> Path:
    """Write a v3.0 dataset; by default one parquet file, and one video a camera."""
    everyone = range(len(episodes))
    index: list[dict[str, Any]] = [
        {
            "episode_index": number,
            "tasks": [tasks[number] if tasks else "tidy"],
            "length": episodes[number].length,
        }
        for number in everyone
    ]
    firsts = np.cumsum([0] + [episode.length for episode in episodes]).tolist()
    for file, numbers in enumerate(tables or [everyone]):
        table = rows_table([(n, firsts[n], episodes[n]) for n in numbers], image_keys, lists)
        path = root / f"data/chunk-000/file-{file:03d}.parquet"
        write_parquet(path, table, row_group_size=rows_per_group)
        for n in numbers:
            index[n] |= {"data/chunk_index": 0, "data/file_index": file}
            index[n] |= {"dataset_from_index": firsts[n], "dataset_to_index": firsts[n + 1]}
    for key in [key for key in episodes[0].frames if key not in image_keys]:
        plan = (plans or {}).get(key, VideoPlan((tuple(everyone),)))
        _write_v3_videos(root, key, plan, episodes=episodes, index=index, codec=codec)
    for n in everyone:
        index[n] |= {"stats/action/mean": [0.0, 0.0, 0.0], "meta/episodes/file_index": 0}
    rows = [index[n] for n in (index_order or everyone)]
    write_parquet(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    write_json(root / "meta/info.json", info_content("v3.0", episodes, image_keys))
    return root


def _write_v3_videos(
    root: Path,
    key: str,
    plan: VideoPlan,
    *,
    episodes: Sequence[TinyEpisode],
    index: list[dict[str, Any]],
    codec: str,
) -> None:
    for file, numbers in enumerate(plan.files):
        frames: list[np.ndarray] = []
        for place, n in enumerate(numbers):
            frames += [counter_frame(4095, VIDEO_SIZES[key])] * plan.gap
            start_s = len(frames) / TINY_FPS + (plan.drift_s if place else 0.0)
            index[n] |= {
                f"videos/{key}/chunk_index": 0,
                f"videos/{key}/file_index": file,
                f"videos/{key}/from_timestamp": start_s,
                f"videos/{key}/to_timestamp": start_s + len(episodes[n].frames[key]) / TINY_FPS,
            }
            frames += list(episodes[n].frames[key])
        if plan.missing and file == len(plan.files) - 1:
            frames = frames[: -plan.missing]
        write_video(root / f"videos/{key}/chunk-000/file-{file:03d}.mp4", frames, codec=codec)


def write_v2(
    root: Path,
    episodes: Sequence[TinyEpisode],
    *,
    version: str = "v2.1",
    image_keys: Sequence[str] = (),
    codec: str = "mpeg4",
    lists: str = "fixed",
    tasks: Sequence[str] | None = None,
) -> Path:
    """Write a v2.0 or v2.1 dataset: a parquet file an episode, and a video a camera."""
    first = 0
    lines = []
    for number, episode in enumerate(episodes):
        table = rows_table([(number, first, episode)], image_keys, lists)
        write_parquet(root / f"data/chunk-000/episode_{number:06d}.parquet", table)
        for key in [key for key in episode.frames if key not in image_keys]:
            path = root / f"videos/chunk-000/{key}/episode_{number:06d}.mp4"
            write_video(path, episode.frames[key], codec=codec)
        task = tasks[number] if tasks else "tidy"
        lines.append({"episode_index": number, "tasks": [task], "length": episode.length})
        first += episode.length
    write_json(root / "meta/info.json", info_content(version, episodes, image_keys))
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root
