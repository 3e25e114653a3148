"""Real runs for the tests of the report: trained in seconds, with videos and path images."""

import json
import math
import shutil
from pathlib import Path

import av
import numpy as np
from PIL import Image

from pipeline.rollout.play.result import (
    EpisodeResult,
    Latency,
    RolloutResult,
    success_fields,
    wilson_interval,
)
from pipeline.storage.local import write_json
from pipeline.training.presets import debug
from pipeline.training.run.folder import read_run
from pipeline.training.session import train
from tests.pipeline.tiny import complete_store

ENV = "metaworld/drawer-open-v3"
FIRST_SEED = 100_000


def trained_run(folder: Path) -> Path:
    """Train the debug preset on a tiny store; the encoder is not pretrained."""
    store = complete_store(folder / "s.zarr")
    train([store.path], folder / "run", debug(), resume=False)
    return folder / "run"


def copy_run(run: Path, to: Path, **settings: object) -> Path:
    """Copy a run and change fields of its configuration, as if it had been trained so."""
    shutil.copytree(run, to)
    content = json.loads((to / "run.json").read_text())
    content["config"] |= settings
    write_json(to / "run.json", content)
    return to


def make_result(run: Path, successes: list[bool], /, **changes: object) -> RolloutResult:
    """Build a result of seeds from `FIRST_SEED` on."""
    data = read_run(run).data
    numbers = np.random.default_rng(len(successes))
    solved = sum(successes)
    fields = {
        "env": ENV,
        "run": run.name,
        "checkpoint_step": 8,
        "nfe": 1,
        "max_steps": 500,
        "encoder": data.encoder,
        "dataset": data.name,
        "store_digest": data.store_digest,
        "code_version": "0.1.0",
        "render_size": 256,
        "num_envs": 1,
        "camera_check": {"mode": "refuse", "starts": ()},
        "episodes": tuple(
            EpisodeResult(
                seed=FIRST_SEED + index,
                success=success,
                steps=int(numbers.integers(60, 110)) if success else 500,
                reward=float(numbers.normal(600, 90)) if success else 88.125,
                max_reward=10.0,
                decisions=12,
            )
            for index, success in enumerate(successes)
        ),
        "success_rate": solved / len(successes),
        "success_interval": wilson_interval(solved, len(successes)),
        "render_s": Latency(p50=0.0521, p95=0.0604, p99=0.071),
        "encode_s": Latency(p50=0.1841, p95=0.2213, p99=0.31),
        "head_s": Latency(p50=0.0042, p95=0.0049, p99=0.0093),
    }
    return RolloutResult.model_validate(fields | changes)


def make_suite_result(run: Path, solved: dict[str, int], episodes: int) -> RolloutResult:
    """Build a result of several environments, of which so many first episodes were solved."""
    found = [
        episode.model_copy(update={"task": env})
        for env, count in solved.items()
        for episode in make_result(run, [index < count for index in range(episodes)]).episodes
    ]
    suites = dict.fromkeys(env.rpartition("/")[0] for env in solved)
    changes = {"env": ", ".join(suites), "episodes": tuple(found)} | success_fields(found)
    return make_result(run, [True], **changes)


def write_rollout(
    run: Path, name: str, result: RolloutResult, *, videos: int = 0, images: int = 0
) -> Path:
    """Write a result as a rollout does, with videos and images of its first episodes."""
    folder = run / "rollouts" / name
    for part in ("videos", "paths"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index, episode in enumerate(result.episodes):
        frames = moving_square(16, phase=index)
        for part in ("videos", "paths"):
            (folder / part / episode.file.parent).mkdir(exist_ok=True)
        if index < videos:
            write_video(folder / "videos" / f"{episode.file}.mp4", frames)
        if index < images:
            Image.fromarray(frames[0]).save(folder / "paths" / f"{episode.file}.png")
    write_json(folder / "result.json", result.model_dump(mode="json"))
    return folder


def moving_square(num_frames: int, phase: int = 0) -> np.ndarray:
    """Draw uint8 [t, 256, 256, 3]: a square that moves over a gradient."""
    ramp = np.linspace(60, 180, 256).astype(np.uint8)
    frames = np.repeat(np.stack([np.tile(ramp, (256, 1))] * 3, axis=-1)[None], num_frames, axis=0)
    for index, frame in enumerate(frames):
        left = (30 * phase + 10 * index) % 216
        frame[100:140, left : left + 40] = (200, 60, 40)
    return frames


def write_video(path: Path, frames: np.ndarray, fps: int = 20) -> None:
    """Write uint8 [t, h, w, 3] as H.264 in MP4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "28"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def write_log(run: Path, steps: int, every: int, *, rate: float = 1.0, seed: int = 0) -> None:
    """Write a log as a long run leaves it."""
    numbers = np.random.default_rng(seed)
    rows: list[dict[str, float]] = []
    for step in range(every, steps + 1, every):
        course = math.exp(-4 * rate * step / steps)
        rows.append(
            {
                "step": step,
                "loss": 0.2 + 0.8 * course + float(numbers.normal(0, 0.02)),
                "raw_mse": (0.01 + course) * math.exp(float(numbers.normal(0, 0.25))),
                "grad_norm": (0.4 + 4 * course) * math.exp(float(numbers.normal(0, 0.3))),
                "learning_rate": 1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps)),
            }
        )
    for index in range(1, 6):
        step = index * steps // 5
        rows.append({"step": step, "val_error": 0.09 + 0.6 * math.exp(-rate * index)})
        success = min(5, round(rate * index)) / 5
        rows.append({"step": step, "rollout_success": success, "rollout_episodes": 5})
    (run / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
