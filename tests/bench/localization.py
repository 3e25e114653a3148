"""How well do cached features tell where the object is? A linear probe, feature by feature.

    python -m tests.bench.localization RECORDINGS STORE [STORE ...] --env metaworld/pick-place-v3

Ridge regression from the features of all views to the object's x and y before the grasp, on 32
recorded episodes; the root mean squared error on the following 8, in centimeters. Every value is
standardized, and the penalty is chosen on 8 of the 32. The position of the object is read from the
simulator, reset to each seed of the recording; it does not move before the gripper closes.
"""

import argparse
from pathlib import Path

import h5py
import numpy as np

from pipeline.features.store.feature_store import FeatureStore
from pipeline.rollout.envs.metaworld import MetaWorldEnv

TRAINED, VALIDATION, CHOSEN_ON = 32, 8, 8  # episodes
OBJECT = slice(4, 6)  # x and y of the first object in Meta-World's observation, meters
EVERY = 4  # control steps between two that are used
PENALTIES = 10.0 ** np.arange(-2, 7)  # per value and step; covers every feature's best


def positions(recordings: Path, env: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, episode and object position of the steps before the grasp."""
    task = MetaWorldEnv(env.removeprefix("metaworld/"), ("corner",), 64)
    rows, episodes, objects, first = [], [], [], 0
    paths = sorted(recordings.glob("episode_*.hdf5"), key=lambda path: int(path.stem[8:]))
    for episode, path in enumerate(paths[: TRAINED + VALIDATION]):
        with h5py.File(path) as file:
            effort, seed = file["action"][:, 3], int(file.attrs["seed"])
        task.reset(seed)
        closing = np.flatnonzero(effort > 0)
        steps = np.arange(0, closing[0] if len(closing) else len(effort), EVERY)
        rows.append(first + steps)
        episodes.append(np.full(len(steps), episode))
        objects.append(np.tile(task._observed()[OBJECT], (len(steps), 1)))
        first += len(effort)
    task.close()
    return np.concatenate(rows), np.concatenate(episodes), np.concatenate(objects)


def ridge(known: np.ndarray, targets: np.ndarray, asked: np.ndarray, penalty: float) -> np.ndarray:
    """Predict targets of `asked` from `known`, both standardized by `known`; in its dual form."""
    mean, std = known.mean(axis=0), known.std(axis=0)
    scale = np.where(std > 1e-6, std, np.inf) * np.sqrt(known.shape[1])
    left, right = (known - mean) / scale, (asked - mean) / scale
    center = targets.mean(axis=0)
    weights = np.linalg.solve(left @ left.T + penalty * np.eye(len(left)), targets - center)
    return right @ (left.T @ weights) + center


def rms_cm(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the root mean squared error per axis, in centimeters."""
    return 100 * np.sqrt(np.square(found - expected).mean(axis=0))


def probe(features: np.ndarray, episodes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Return the validation error in x and y, in centimeters."""
    fitted = episodes < TRAINED - CHOSEN_ON
    chosen, trained, out = ~fitted & (episodes < TRAINED), episodes < TRAINED, episodes >= TRAINED
    errors = [
        rms_cm(ridge(features[fitted], objects[fitted], features[chosen], p), objects[chosen]).sum()
        for p in PENALTIES
    ]
    best = PENALTIES[int(np.argmin(errors))]
    return rms_cm(ridge(features[trained], objects[trained], features[out], best), objects[out])


def main() -> None:
    """Probe every feature of every store; print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recordings", type=Path)
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--env", default="metaworld/pick-place-v3")
    arguments = parser.parse_args()
    rows, episodes, objects = positions(arguments.recordings, arguments.env)
    spread = 100 * objects[np.unique(episodes, return_index=True)[1]].std(axis=0)
    print(f"{arguments.env}: {len(rows)} steps; spread of x {spread[0]:.1f}, y {spread[1]:.1f} cm")
    print("| encoder | feature | values per view | error in x, cm | error in y, cm |")
    print("|---|---|---|---|---|")
    for path in arguments.stores:
        store = FeatureStore.open(path)
        views = len(store.attributes.view_names)
        for spec in store.encoder.features:
            held = store.read_features(spec.name)[rows, :views].astype(np.float64)
            x, y = probe(held.reshape(len(rows), -1), episodes, objects)
            size = "x".join(map(str, spec.shape))
            print(
                f"| {store.encoder.name} | {spec.name} | {size} | {x:.2f} | {y:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
