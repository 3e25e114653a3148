"""How fast is embedding, end to end, against the plain way and against the machine itself?

    python -m tests.bench.embed_speed [--compiled] [--threads 2] [--steps 960]

A full-size tower with random weights: recorded HDF5 to committed store, in images a second, against
transformers' own image processor and `SiglipVisionModel` in float32 at batch 32 on the same frames
(bar: 3.3 x); and the operations of those images against the machine's own rate of bfloat16 matrix
products (bar: 0.7). Loading weights is in neither time, reading frames is in both. The rival runs
before and after, and so does the measurement of the machine, so that a drifting load hits all.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipImageProcessorPil, SiglipVisionModel

from pipeline.datasets.manifest.model import load_manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from tests.bench.embed_memory import write_frames
from tests.policy.encoders.test_siglip2 import save_checkpoint
from tests.tower import load

RIVAL_BATCH: Final = 32
RIVAL_STEPS: Final = 32  # three batches each time, before and after
MIN_SPEEDUP: Final = 3.3
MIN_MATMUL_SHARE: Final = 0.7
MEASURED_S: Final = 0.3  # seconds of matrix products; dozens of them even on a slow core
TOKENS: Final = 768  # rows of a product: one step of three views, 256 tokens each
WIDTH: Final = 768  # of the tower, whose hidden layers have four times as many units


def rival_images_per_s(checkpoint: Path, manifest: Path, device: str = "cpu") -> float:
    """Encode the first steps of the dataset the plain way and return its rate."""
    processor = SiglipImageProcessorPil.from_pretrained(checkpoint)
    tower = SiglipVisionModel.from_pretrained(checkpoint, dtype=torch.float32).eval().to(device)
    reader = ManifestReader(load_manifest(manifest))
    with torch.no_grad():
        # Picks kernels, wakes threads.
        tower(pixel_values=torch.zeros(RIVAL_BATCH, 3, 256, 256, device=device))
        started = time.perf_counter()
        images = np.concatenate(reader.frames(0, 0, RIVAL_STEPS))
        features = []
        for batch in np.split(images, range(RIVAL_BATCH, len(images), RIVAL_BATCH)):
            pixels = processor(images=list(batch), return_tensors="pt")["pixel_values"]
            features.append(tower(pixel_values=pixels.to(device)).pooler_output.cpu())
        assert torch.cat(features).isfinite().all()
        elapsed = time.perf_counter() - started
    reader.close()
    return len(images) / elapsed


def operations_per_image(checkpoint: Path) -> int:
    """Return the floating-point operations of one image's matrix products, as torch counts them."""
    encoder = load(str(checkpoint), images_per_pass=1, compute_dtype="float32")
    with FlopCounterMode(display=False) as counter:
        encoder.encode(np.zeros((1, 256, 256, 3), np.uint8))
    return counter.get_total_flops()


def measured_matmul_rate() -> float:
    """Return the operations a second, two per multiply-add, of bfloat16 products of these sizes."""
    shapes = [(WIDTH, WIDTH)] * 4  # query, key, value and output of attention
    shapes += [(4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
    pairs = [
        (torch.randn(TOKENS, columns).bfloat16(), torch.randn(rows, columns).bfloat16())
        for rows, columns in shapes
    ]
    operations = 2 * TOKENS * sum(rows * columns for rows, columns in shapes)
    spent: list[float] = []
    with torch.inference_mode():
        while sum(spent) < MEASURED_S:
            started = time.perf_counter()
            for left, right in pairs:
                torch.nn.functional.linear(left, right)
            spent.append(time.perf_counter() - started)
    return operations / sorted(spent)[len(spent) // 2]


def main() -> None:
    """Print every figure and whether it meets its bar."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--compiled", action="store_true")
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument(
        "--steps", type=int, default=960, help="of three views; few hardly pay for the probe"
    )
    arguments.add_argument("--layers", type=int, default=12, help="of the tower; fewer to try out")
    chosen = arguments.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(Path(folder) / "tower", num_layers=chosen.layers)
        manifest = write_frames(Path(folder) / "dataset", chosen.steps)
        config = EmbedConfig(
            manifest=manifest,
            store=Path(folder) / "store.zarr",
            encoder=str(checkpoint),
            compute_dtype="bfloat16",
            compiled=chosen.compiled,
        )
        flops = operations_per_image(checkpoint)
        rivals = [rival_images_per_s(checkpoint, manifest)]
        rates = [measured_matmul_rate()]
        if chosen.compiled:  # a real job pays for compiling once; torch keeps the kernels on disk
            few = write_frames(Path(folder) / "few", 1)
            embed_dataset(
                config.model_copy(update={"manifest": few, "store": Path(folder) / "few.zarr"})
            )
        report = embed_dataset(config)
        rates.append(measured_matmul_rate())
        rivals.append(rival_images_per_s(checkpoint, manifest))
    ours = report.counts.encoded / report.elapsed_s
    rival, rate = sum(rivals) / 2, sum(rates) / 2
    share = ours * flops / rate
    encoding = report.counts.encoded / report.seconds["encode"]
    print(report.summary())
    print(f"{chosen.threads} threads, load {os.getloadavg()[0]:.1f}, {flops / 1e9:.1f} GFLOP/image")
    print(f"plain way {rivals[0]:.2f} and {rivals[1]:.2f} images/s", end=", ")
    print(f"matrix products {rates[0] / 1e9:.0f} and {rates[1] / 1e9:.0f} GFLOP/s")
    print(f"end to end {ours:.2f} images/s, the encoder alone {encoding:.2f}")
    print(f"{ours / rival:.2f} x the plain way (bar {MIN_SPEEDUP})")
    print(f"{share:.2f} of the machine's matrix-product rate (bar {MIN_MATMUL_SHARE})")


if __name__ == "__main__":
    main()
