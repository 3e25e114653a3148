"""Does a store bear ten million frames? What committing, marking and opening cost as it grows.

    python -m tests.bench.scale [--frames 100000 1000000 10000000] [--folder FOLDER]

A stub stands for the encoder: it gives a unit's features at once and counts as having taken what
6,000 images a second take, one H100 by the design's assumption. Everything else is the real store
on the real disk: shards, three views, and 15 numbers of state and action a step as in DROID. Ten
million frames take 32 GB below FOLDER. A worker's process commits the units; a coordinator's
creates the store, takes stock of it as a resumed run does, marks it complete and opens it. Prints
for every size:

    commit        what committing the units took, as a share of the encoder's time
      beyond raw  the part that a plain write and fsync of the same bytes does not take: hashes,
                  checks, checksums, records
    store us      microseconds that creating, committing and marking took, for a frame
    coordinator   its peak resident memory in MB; in brackets what its imports took of it
    open          seconds to open the complete store
    metadata      kB in all, and how many, of the files that are neither features nor steps
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.features.encode.known_frames import FrameIndex
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.integrity import mark_complete
from pipeline.features.store.layout import FEATURES, FRAME_HASH
from pipeline.features.store.steps import STEP_ARRAYS, StepArrays
from pipeline.features.store.units import SHARD_ROWS
from tests.pipeline.tiny import VIEWS, create_store, tiny_environment, tiny_probe

IMAGES_PER_S = 6_000
STATE_DIM, ACTION_DIM = 8, 7
EPISODE_STEPS = 250  # DROID: 18.9 million steps in 76 thousand episodes
SIZES = (100_000, 1_000_000, 10_000_000)


def random_steps(num_steps: int) -> StepArrays:
    """Draw numbers of DROID's shapes."""
    numbers, ends = np.random.default_rng(0), np.arange(EPISODE_STEPS, num_steps, EPISODE_STEPS)
    return StepArrays(
        state=numbers.random((num_steps, STATE_DIM), np.float32),
        action=numbers.random((num_steps, ACTION_DIM), np.float32),
        timestamp=numbers.random(num_steps),
        episode_ends=np.append(ends, num_steps),
    )


def create(path: Path, num_steps: int) -> dict[str, float]:
    """Create a store of DROID's shapes."""
    imports = peak_mb()
    described = create_store(path.with_suffix(".one"), (1,), rows_per_unit=SHARD_ROWS).attributes
    started = time.perf_counter()
    FeatureStore.create(path, described, random_steps(num_steps), tiny_probe())
    return {"create_s": time.perf_counter() - started, "imports_mb": imports}


def commit(path: Path) -> dict[str, float]:
    """Commit every unit; write the same bytes plainly beside the store, to compare."""
    store = FeatureStore.open(path, allow_incomplete=True, writable=True)
    numbers, environments = np.random.default_rng(0), {tiny_environment().digest()}
    drawn = numbers.standard_normal((SHARD_ROWS, len(VIEWS), 768), np.float32).astype(np.float16)
    spent = {"commit_s": 0.0, "raw_s": 0.0}
    plain = path.with_suffix(".raw")
    plain.mkdir()
    for unit in range(store.num_units):
        start, stop = store.unit_rows(unit)
        features = np.roll(drawn, unit, axis=0)[: stop - start]
        hashes = numbers.integers(2**64, size=(stop - start, len(VIEWS)), dtype=np.uint64)
        ways = {
            "commit_s": partial(store.write_unit, unit, {"pooled": features}, hashes, environments),
            "raw_s": partial(write_plainly, plain / str(unit), features, hashes),
        }
        for way in sorted(ways, reverse=bool(unit % 2)):
            started = time.perf_counter()
            ways[way]()
            spent[way] += time.perf_counter() - started
    return spent


def write_plainly(path: Path, features: np.ndarray, hashes: np.ndarray) -> None:
    """Write a unit's numbers to a file of its own.

    A new one each time, as the store's are: what it costs to take a page of memory that the kernel
    has not handed out before is several times a copy into it, and both must pay it.
    """
    with path.open("wb") as file:
        file.write(features.data)
        file.write(hashes.data)
        file.flush()
        os.fsync(file.fileno())


def finish(path: Path) -> dict[str, float]:
    """Take stock of units and frames as a resumed run does, and mark the store complete."""
    store = FeatureStore.open(path, allow_incomplete=True, writable=True)
    started = time.perf_counter()
    num_rows = len(store.read_steps().state)
    index = FrameIndex.of([(store, store.valid_units())], place_matters=False)
    stock_s = time.perf_counter() - started
    assert len(index.hashes) == num_rows * len(VIEWS)
    del index  # handed to the workers
    started = time.perf_counter()
    mark_complete(store)
    mark_s = time.perf_counter() - started
    started = time.perf_counter()
    FeatureStore.open(path)
    return {"stock_s": stock_s, "mark_s": mark_s, "open_s": time.perf_counter() - started}


def peak_mb() -> float:
    """Return the largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(*words: object) -> dict[str, float]:
    """Run one of the tasks above in a process of its own; adds its peak."""
    command = [sys.executable, "-m", "tests.bench.scale", "--task", *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def metadata(path: Path) -> tuple[float, int]:
    """Return the kB and the number of the files that hold no numbers of the dataset."""
    arrays = {FEATURES, FRAME_HASH, *STEP_ARRAYS}
    sizes = [
        file.stat().st_size
        for file in path.rglob("*")
        if file.is_file() and not (file.name != "zarr.json" and arrays & set(file.parts))
    ]
    return sum(sizes) / 1e3, len(sizes)


def measure(num_frames: int, folder: Path) -> float:
    """Print one line; return the microseconds that the store took for a frame."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "scale.zarr"
        made = in_own_process("create", path, num_frames // len(VIEWS))
        written = in_own_process("commit", path)
        marked = in_own_process("finish", path)
        kilobytes, files = metadata(path)
    encode_s = num_frames / IMAGES_PER_S
    in_store = made["create_s"] + written["commit_s"] + marked["mark_s"]
    beyond = written["commit_s"] - written["raw_s"]
    peak = max(made["peak_mb"], marked["peak_mb"])
    shares = [100 * spent / encode_s for spent in (written["commit_s"], beyond)]
    memory = [peak, made["imports_mb"], written["peak_mb"]]
    print(
        f"{num_frames:,} frames: commit {shares[0]:.2f} %, beyond raw {shares[1]:.2f} %; "
        f"store {1e6 * in_store / num_frames:.2f} us; "
        "coordinator {:.0f} MB (imports {:.0f}), worker {:.0f} MB; ".format(*memory)
        + "stock {stock_s:.1f} s, mark {mark_s:.1f} s, open {open_s:.3f} s; ".format(**marked)
        + f"metadata {kilobytes:.0f} kB in {files} files",
        flush=True,
    )
    return 1e6 * in_store / num_frames


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=SIZES)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.task is not None:
        task, path, *rest = asked.task
        tasks = {"create": create, "commit": commit, "finish": finish}
        print(json.dumps(tasks[task](Path(path), *map(int, rest)) | {"peak_mb": peak_mb()}))
        return
    spent = [measure(num_frames, asked.folder) for num_frames in asked.frames]
    encoder = 1e6 / IMAGES_PER_S
    print(
        f"time per frame, largest size over smallest: store {spent[-1] / spent[0]:.3f}, with "
        f"the encoder {(encoder + spent[-1]) / (encoder + spent[0]):.3f}"
    )


if __name__ == "__main__":
    main()
