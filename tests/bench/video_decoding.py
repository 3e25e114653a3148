"""How fast are three cameras read in order, against seeking every frame? And in how much memory?

    python -m tests.bench.video_decoding

Writes a LeRobot v3.0 dataset of three cameras and several episodes a file, twice: as LeRobot
encodes (AV1, a key frame every other frame) and as most other cameras do (H.264, one a second).
Reads every frame through the reader, 256 rows at a time, and then through what is usual: the
files stay open, and for every frame the nearest key frame before it is sought and decoded from.
Both may use two decoder threads: the reader decodes two cameras side by side, seeking gives both
to the camera whose turn it is. Both turn every frame into RGB. Seeking reads a part of the frames,
spread over all episodes, because it is slow. The ratio is of elapsed time; that of processor time
is given too. Last, one video of 10,000 frames is read to its end in a process of its own, whose
peak memory is measured.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.datasets.base import DatasetConfig
from pipeline.datasets.lerobot.reader import DECODER_THREADS
from pipeline.datasets.lerobot.v3 import LeRobotV3Reader
from pipeline.datasets.video import VideoDecoder, read_header
from tests.bench.video_loss import leave_real_time
from tests.pipeline.datasets.lerobot.lerobot_files import (
    TinyEpisode,
    rows_table,
    write_json,
    write_parquet,
)

FPS = 30
VIEWS = tuple(f"observation.images.{name}" for name in ("front", "left_wrist", "right_wrist"))
EPISODES, LENGTH = 3, 200
SEEK_STRIDE = 5  # every fifth frame is sought
BLOCK = 256  # rows a request, as vla-embed asks
AV1 = ("libsvtav1", {"g": "2", "crf": "30", "preset": "10", "svtav1-params": "lp=1"})
H264 = ("libx264", {"g": "30", "crf": "23"})
CASES = {
    "AV1, g=2, 480x640": (*AV1, (480, 640)),
    "AV1, g=2, 256x256": (*AV1, (256, 256)),
    "H.264, g=30, 480x640": (*H264, (480, 640)),
    "H.264, g=30, 256x256": (*H264, (256, 256)),
}


def moving_scene(step: int, size: tuple[int, int], scene: np.ndarray) -> np.ndarray:
    """Cut a window out of a fixed scene; it drifts by a pixel a frame, as a held camera."""
    offset = step % (scene.shape[1] - size[1])
    return np.ascontiguousarray(scene[: size[0], offset : offset + size[1]])


def draw_scene(size: tuple[int, int], noise: float = 2.0) -> np.ndarray:
    """Draw a soft scene, wider than a window of this size, with a sensor's noise upon it."""
    random = np.random.default_rng(0)
    height, width = size[0], size[1] + 200
    coarse = random.integers(0, 250, (height // 16, width // 16, 3), np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(soft + random.normal(0, noise, soft.shape), 0, 255).astype(np.uint8)


def write_video(path: Path, num_frames: int, codec: str, options: dict, size: tuple) -> None:
    """Write a scene that moves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scene = draw_scene(size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for step in range(num_frames):
            frame = av.VideoFrame.from_ndarray(moving_scene(step, size, scene), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    leave_real_time()


def repeat_video(source: Path, target: Path, times: int) -> None:
    """Put a video into a file several times over, without encoding it again."""
    with av.open(str(source)) as given, av.open(str(target), "w") as container:
        old = given.streams.video[0]
        new = container.add_stream_from_template(old, opaque=True)  # no encoder
        length = old.duration
        for turn in range(times):
            given.seek(0)
            for packet in given.demux(old):
                if packet.dts is not None:
                    packet.pts += turn * length
                    packet.dts += turn * length
                    packet.stream = new
                    container.mux(packet)


def write_dataset(
    root: Path,
    codec: str,
    options: dict,
    size: tuple[int, int],
    *,
    episodes: int = EPISODES,
    length: int = LENGTH,
) -> None:
    """Write three cameras with all episodes in one file each."""
    episode = TinyEpisode({}, np.zeros((length, 2)), np.zeros((length, 3)))
    firsts = [number * length for number in range(episodes)]
    rows = rows_table([(n, first, episode) for n, first in enumerate(firsts)], fps=FPS)
    write_parquet(root / "data/chunk-000/file-000.parquet", rows)
    index = []
    for number, first in enumerate(firsts):
        row = {"episode_index": number, "length": length, "dataset_from_index": first}
        row |= {"dataset_to_index": first + length, "data/chunk_index": 0, "data/file_index": 0}
        for key in VIEWS:
            row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0}
            row |= {f"videos/{key}/from_timestamp": first / FPS}
            row |= {f"videos/{key}/to_timestamp": (first + length) / FPS}
        index.append(row)
    write_parquet(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(index))
    shape = [*size, 3]
    features = {key: {"dtype": "video", "shape": shape, "names": None} for key in VIEWS}
    for key, width in (("observation.state", 2), ("action", 3)):
        features[key] = {"dtype": "float32", "shape": [width], "names": None}
    info = {"codebase_version": "v3.0", "fps": FPS, "features": features}
    write_json(root / "meta/info.json", info)
    for key in VIEWS:
        path = root / f"videos/{key}/chunk-000/file-000.mp4"
        write_video(path, episodes * length, codec, options, size)


@dataclass(frozen=True)
class Spent:
    """Time for a number of frames."""

    num_frames: int
    elapsed_s: float
    processor_s: float


def measure(read: Callable[[Path], int], root: Path) -> Spent:
    """Time a function that returns the number of frames it read, opening included."""
    started, processor = time.perf_counter(), time.process_time()
    num_frames = read(root)
    return Spent(num_frames, time.perf_counter() - started, time.process_time() - processor)


def read_in_order(root: Path) -> int:
    """Read every frame through the reader."""
    reader = LeRobotV3Reader(DatasetConfig(root, VIEWS, ()))
    count = 0
    for episode in range(EPISODES):
        for start in range(0, LENGTH, BLOCK):
            views = reader.frames(episode, start, min(LENGTH, start + BLOCK))
            count += sum(len(view) for view in views)
    reader.close()
    return count


def read_by_seeking(root: Path) -> int:
    """Read a part of the frames, each from the key frame before it."""
    containers = [av.open(str(root / f"videos/{key}/chunk-000/file-000.mp4")) for key in VIEWS]
    for container in containers:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = DECODER_THREADS, "AUTO"
    count = 0
    for step in range(0, EPISODES * LENGTH, SEEK_STRIDE):
        for container in containers:
            stream = container.streams.video[0]
            wanted = round(step / FPS / stream.time_base)
            container.seek(wanted, stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.pts >= wanted)
            assert frame.pts == wanted
            frame.to_ndarray(format="rgb24")
            count += 1
    for container in containers:
        container.close()
    return count


def read_long_video(path: Path) -> None:
    """Read a video to its end, as the reader does, and print this process's peak memory."""
    header = read_header(path)
    decoder = VideoDecoder(path, header.size, DECODER_THREADS)
    num_frames = len(decoder.clock.pts)
    for start in range(0, num_frames, BLOCK):
        positions = np.arange(start, min(num_frames, start + BLOCK), dtype=np.int64)
        decoder.frames(positions, str(path), start)
    # Not getrusage, whose peak a process inherits from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_mb = int(status["VmHWM"].split()[0]) / 1024
    print(f"{num_frames} frames of {header.size[0]}x{header.size[1]}: peak {peak_mb:.0f} MB")


def main() -> None:
    """Print every figure."""
    os.environ.setdefault("SVT_LOG", "1")  # errors only; read by the AV1 encoder
    with tempfile.TemporaryDirectory() as folder:
        for name, (codec, options, size) in CASES.items():
            root = Path(folder) / name.replace(" ", "")
            write_dataset(root, codec, options, size)
            read_in_order(root)  # the files are in the page cache for both
            ours, theirs = measure(read_in_order, root), measure(read_by_seeking, root)
            ordered, sought = (s.num_frames / s.elapsed_s for s in (ours, theirs))
            per_frame = [s.processor_s / s.num_frames for s in (ours, theirs)]
            print(
                f"{name}, {len(VIEWS)} cameras, {DECODER_THREADS} threads: in order {ordered:.0f} "
                f"frames/s, seeking {sought:.0f} frames/s, ratio {ordered / sought:.1f} x; "
                f"processor time {per_frame[1] / per_frame[0]:.1f} x",
                flush=True,
            )
        for name in ("AV1, g=2, 480x640", "H.264, g=30, 480x640"):
            codec, options, size = CASES[name]
            path = Path(folder) / f"{codec}.mp4"
            write_video(Path(folder) / "part.mp4", 500, codec, options, size)
            repeat_video(Path(folder) / "part.mp4", path, 20)
            print(name, end=": ", flush=True)
            subprocess.run([sys.executable, "-m", __spec__.name, str(path)], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        read_long_video(Path(sys.argv[1]))
    else:
        main()
