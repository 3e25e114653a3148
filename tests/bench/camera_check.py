"""Does the camera check name what is wrong with the cameras, and is it silent where nothing is?

    python -m tests.bench.camera_check [--store demo/features.zarr] [--env metaworld/drawer-open-v3]

Without `--store` the expert is recorded on 40 seeds and the stand-in embeds them (a quarter of an
hour). Then, on seeds that no recording used: every mistake is planted in every view and every pair
of views, and clean first frames are shown. Last, the expert plays, and a decision's distance is
taken every 8 steps, on its frames as they are and with a mistake in one view. Prints two tables.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from pipeline.features.encode.embed import EmbedConfig, embed_dataset
from pipeline.features.encode.frames import hash_frames
from pipeline.features.identity.encoder import load_same_encoder
from pipeline.features.store.feature_store import FeatureStore
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED
from pipeline.rollout.envs.registry import ExpertEnv, make_expert_env
from pipeline.rollout.gate.camera_check import CameraCheck
from pipeline.rollout.play.record import RecordConfig, record_dataset
from pipeline.training.data.windows import WindowData
from pipeline.training.run.camera_reference import take_reference
from policy.encoders.siglip2 import STAND_IN, FrozenSiglip2

VIEWS = ("corner", "topview", "gripperPOV")
EPISODES, HELDOUT_SHARE = 40, 0.1
CLEAN_RESETS = 200
PLANTED_SEEDS = 14  # of each mistake in each view and pair: 210 trials of three views
EXPERT_EPISODES, EXPERT_STRIDE, EXPERT_STEPS = 4, 8, 160

MISTAKES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flipped left to right": lambda frame: frame[:, ::-1],
    "flipped upside down": lambda frame: frame[::-1],
    "rotated by 180 degrees": lambda frame: frame[::-1, ::-1],
    "red and blue exchanged": lambda frame: frame[..., ::-1],
}


class OnceEncoder:
    """An encoder that never encodes the same frame twice."""

    def __init__(self, encoder: FrozenSiglip2):
        self._encoder = encoder
        self._known: dict[int, np.ndarray] = {}

    def encode_views(self, frames: torch.Tensor) -> torch.Tensor:
        hashes = hash_frames(frames.numpy())
        for step, step_hashes in zip(frames, hashes, strict=True):
            if any(int(name) not in self._known for name in step_hashes):
                features = self._encoder.encode_views(step[None])[0].numpy()
                self._known.update(zip(map(int, step_hashes), features, strict=True))
        return torch.from_numpy(np.stack([[self._known[int(n)] for n in row] for row in hashes]))


@dataclass
class Tally:
    """Trials of one mistake in one place."""

    right: int = 0
    found: list[str] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    undone: list[float] = field(default_factory=list)


def open_store(path: Path | None, env: str, folder: Path) -> FeatureStore:
    """Open a store, or record and embed one."""
    if path is None:
        recordings, path = folder / "recordings", folder / "features.zarr"
        record_dataset(RecordConfig(env=env, views=VIEWS, episodes=EPISODES, out=recordings))
        manifest = recordings / "manifest.toml"
        embed_dataset(EmbedConfig(manifest=manifest, store=path, backbone=STAND_IN))
    return FeatureStore.open(path)


def plant(frames: np.ndarray, view: int, mistake: str) -> np.ndarray:
    """Return the frames with a mistake in one view."""
    planted = frames.copy()
    planted[view] = MISTAKES[mistake](frames[view])
    return planted


def swap(frames: np.ndarray, first: int, second: int) -> np.ndarray:
    """Return the frames with two views exchanged."""
    order = list(range(len(frames)))
    order[first], order[second] = second, first
    return frames[order]


def spread(values: list[float]) -> str:
    """Print least, median and largest."""
    return " / ".join(f"{value:.2f}" for value in np.percentile(values, [0, 50, 100]))


def examine_planted(
    check: CameraCheck, encoder: OnceEncoder, resets: list[np.ndarray]
) -> dict[str, Tally]:
    """Plant every mistake in every place, and a swap in every pair."""
    tallies: dict[str, Tally] = {}
    for view, name in enumerate(VIEWS):
        for mistake in MISTAKES:
            tally = tallies.setdefault(f"`{name}` {mistake}", Tally())
            for frames in resets:
                verdict = check.examine_start(plant(frames, view, mistake), encoder)
                wrong = {found.view: found.mistake for found in verdict.views if found.mistake}
                tally.right += wrong == {name: mistake}
                tally.found.append(verdict.line())
                tally.distances.append(verdict.views[view].distance)
                tally.undone.append(verdict.views[view].undone_distance or np.nan)
    for first, second in combinations(range(len(VIEWS)), 2):
        pair = f"views `{VIEWS[first]}` and `{VIEWS[second]}` are swapped"
        tally = tallies.setdefault(pair, Tally())
        for frames in resets:
            verdict = check.examine_start(swap(frames, first, second), encoder)
            tally.right += verdict.line() == pair
            tally.found.append(verdict.line())
            for view in (first, second):
                tally.distances.append(verdict.views[view].distance)
                tally.undone.append(verdict.views[view].undone_distance or np.nan)
    return tallies


def expert_frames(env: ExpertEnv, seed: int) -> list[np.ndarray]:
    """Play the expert and return what every decision would see."""
    env.reset(seed)
    seen = []
    for step in range(EXPERT_STEPS):
        if step % EXPERT_STRIDE == 0:
            seen.append(env.render())
        if env.step(env.expert_action()).success:
            break
    return seen


def print_planted(tallies: dict[str, Tally]) -> None:
    """Print one row a mistake and place."""
    print("| planted | right | distance (min / median / max) | undone |\n|---|---|---|---|")
    for name, tally in tallies.items():
        distances = f"{spread(tally.distances)} | {spread(tally.undone)}"
        print(f"| {name} | {tally.right} of {len(tally.found)} | {distances} |")
    right = sum(tally.right for tally in tallies.values())
    total = sum(len(tally.found) for tally in tallies.values())
    print(f"named right: {right} of {total} ({right / total:.1%})", flush=True)


def print_clean(check: CameraCheck, encoder: OnceEncoder, resets: list[np.ndarray]) -> None:
    """Print how often clean first frames were called wrong, and their distances."""
    verdicts = [check.examine_start(frames, encoder) for frames in resets]
    alarms = [verdict.line() for verdict in verdicts if not verdict.matches]
    print(f"false alarms: {len(alarms)} of {len(verdicts)} clean resets {alarms[:3]}")
    for view, name in enumerate(VIEWS):
        distances = [verdict.views[view].distance for verdict in verdicts]
        print(f"clean `{name}`: {spread(distances)}, spread {verdicts[0].views[view].spread:.2f}")


def print_alarms(check: CameraCheck, encoder: OnceEncoder, decisions: list[np.ndarray]) -> None:
    """Print how many decisions alarm, clean and with a mistake in one view."""
    print(f"| decisions of the expert | alarms (threshold {check.threshold:.2f}) | distance |")
    print("|---|---|---|")
    cases = {"clean": decisions}
    for view, name in enumerate(VIEWS):
        for mistake in MISTAKES:
            planted = [plant(frames, view, mistake) for frames in decisions]
            cases[f"`{name}` {mistake}"] = planted
    for first, second in combinations(range(len(VIEWS)), 2):
        swapped = [swap(frames, first, second) for frames in decisions]
        cases[f"`{VIEWS[first]}` and `{VIEWS[second]}` swapped"] = swapped
    for name, shown in cases.items():
        distances = [
            check.distance(encoder.encode_views(torch.from_numpy(frames)[None])[0])
            for frames in shown
        ]
        alarms = sum(distance > check.threshold for distance in distances)
        share = f"{alarms} of {len(distances)} ({alarms / len(distances):.1%})"
        print(f"| {name} | {share} | {spread(distances)} |", flush=True)


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--env", default="metaworld/drawer-open-v3")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(options.store, options.env, Path(folder))
        data = WindowData(store, heldout_share=HELDOUT_SHARE)
        check = CameraCheck(take_reference(data), store.attributes.view_names)
        made_by = store.attributes.encoder
        encoder = OnceEncoder(load_same_encoder(made_by, None, where=str(store.path)))
    print(f"encoder {made_by.name}, {len(data.episode_of.unique())} episodes", flush=True)
    env = make_expert_env(options.env, VIEWS)
    resets = []
    for seed in range(FIRST_ROLLOUT_SEED, FIRST_ROLLOUT_SEED + CLEAN_RESETS):
        env.reset(seed)
        resets.append(env.render())
    print_planted(examine_planted(check, encoder, resets[:PLANTED_SEEDS]))
    print_clean(check, encoder, resets)
    played = range(FIRST_ROLLOUT_SEED, FIRST_ROLLOUT_SEED + EXPERT_EPISODES)
    print_alarms(check, encoder, [frames for seed in played for frames in expert_frames(env, seed)])
    env.close()


if __name__ == "__main__":
    main()
