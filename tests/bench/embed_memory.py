"""Does memory grow with the dataset? Peak resident memory of embedding 2,000 and 20,000 frames.

    python -m tests.bench.embed_memory

Every frame is another one, so that nothing is saved by repetition; stand-in encoder, three views,
each size in a process of its own. Prints both peaks and their ratio.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline.datasets.hdf5.recording import RecordedEpisode, write_episode
from tests.pipeline.tiny import FPS, MANIFEST, VIEWS

SIZES = (2_000, 20_000)  # frames
EPISODE_STEPS = 100


def write_frames(folder: Path, num_steps: int) -> Path:
    """Write episodes of frames that all differ, and return the manifest's path."""
    (folder / "data").mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for episode, start in enumerate(range(0, num_steps, EPISODE_STEPS)):
        length = min(EPISODE_STEPS, num_steps - start)
        coarse = numbers.integers(0, 256, (len(VIEWS), length, 8, 8, 3), np.uint8)
        frames = coarse.repeat(32, axis=2).repeat(32, axis=3)
        write_episode(
            folder / "data" / f"episode_{episode}.hdf5",
            RecordedEpisode(
                frames=dict(zip(VIEWS, frames, strict=True)),
                state=numbers.normal(size=(length, 2)).astype(np.float32),
                action=numbers.normal(size=(length, 2)).astype(np.float32),
                env="noise",
                seed=episode,
                fps=FPS,
            ),
        )
    manifest = folder / "noise.toml"
    manifest.write_text(MANIFEST)
    return manifest


def embed(manifest: Path, store: Path) -> None:
    """Embed in this process and print its peak in MB."""
    from pipeline.features.encode.embed import EmbedConfig, embed_dataset

    embed_dataset(EmbedConfig(manifest=manifest, store=store, encoder="stand-in"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Measure each size, print the ratio."""
    peaks = []
    for num_frames in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            manifest = write_frames(Path(folder) / "dataset", num_frames // len(VIEWS))
            command = [sys.executable, "-m", "tests.bench.embed_memory", str(manifest)]
            done = subprocess.run(
                [*command, str(Path(folder) / "store.zarr")], check=True, stdout=subprocess.PIPE
            )
            peaks.append(float(done.stdout))
            print(f"{num_frames} frames: {peaks[-1]:.0f} MB", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    embed(Path(sys.argv[1]), Path(sys.argv[2])) if len(sys.argv) == 3 else main()
