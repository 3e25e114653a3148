"""Does the camera check name what is wrong with the cameras, and is it silent where nothing is?

    python -m tests.bench.camera_check --env metaworld/pick-place-v3 --views corner,topview,...

Training's starts are the first frames of the first 40 seeds that the scripted expert solves: those
that `vla-data record --episodes 40` records. Clean starts are the first frames of 200 seeds that no
recording uses, as they are and 5 % brighter and darker. Every mistake is planted in every view, and
every pair of views is swapped. The check sees pictures alone, so the figures hold for every
encoder. A mistake that hardly changes the picture (a mirror-symmetric scene flipped, a gray one
with red and blue exchanged) cannot be named; such trials are counted apart: those whose picture
differs from the clean one by `MIN_DIFFERENCE` gray levels or less.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from pipeline.features.store.start_frames import StartFrames, shrink_frames
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED, ExpertEnv
from pipeline.rollout.envs.registry import make_expert_env
from pipeline.rollout.gate.camera_check import MIN_DIFFERENCE, CameraCheck

EPISODES = 40  # training starts
CLEAN_STARTS = 200
PLANTED_STARTS = 20  # of each mistake in each view and pair: 300 trials of three views
BRIGHTNESS = (1.0, 1.05, 0.95)

MISTAKES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flipped left to right": lambda frame: frame[:, ::-1],
    "flipped upside down": lambda frame: frame[::-1],
    "rotated by 180 degrees": lambda frame: frame[::-1, ::-1],
    "red and blue exchanged": lambda frame: frame[..., ::-1],
}


@dataclass
class Tally:
    """Trials of one mistake in one place."""

    named: int = 0
    symmetric: int = 0
    """Trials whose picture the mistake hardly changes."""
    wrong: list[str] = field(default_factory=list)


def is_solved(env: ExpertEnv, seed: int) -> bool:
    """Whether the expert solves a seed, as the recorder finds out."""
    env.reset(seed)
    for _ in range(env.max_steps):
        outcome = env.step(env.expert_action())
        if outcome.success or outcome.truncated:
            return outcome.success
    return False


def first_frames(env: ExpertEnv, seed: int) -> np.ndarray:
    """Return what an episode begins with."""
    env.reset(seed)
    return env.render()


def recorded_starts(env: ExpertEnv) -> StartFrames:
    """Return the starts of the episodes that a recording would keep."""
    seeds: list[int] = []
    seed = 0
    while len(seeds) < EPISODES:
        if is_solved(env, seed):
            seeds.append(seed)
        seed += 1
    frames = np.stack([first_frames(env, seed) for seed in seeds])
    return StartFrames(shrink_frames(frames), np.arange(EPISODES))


def relit(frames: np.ndarray, factor: float) -> np.ndarray:
    """Return the frames in other light."""
    return np.rint(np.clip(frames * factor, 0, 255)).astype(np.uint8)


def planted(frames: np.ndarray, names: tuple[str, ...]) -> list[tuple[str, str, np.ndarray]]:
    """Return every mistake in every view and every swap: its place, the mistake, the frames."""
    trials = []
    for view, name in enumerate(names):
        for mistake, plant in MISTAKES.items():
            shown = frames.copy()
            shown[view] = plant(frames[view])
            trials.append((name, mistake, shown))
    for first, second in combinations(range(len(names)), 2):
        order = list(range(len(names)))
        order[first], order[second] = second, first
        pair = f"views `{names[first]}` and `{names[second]}` are swapped"
        trials.append(("pairs", pair, frames[order]))
    return trials


def is_named(check: CameraCheck, names: tuple[str, ...], place: str, mistake: str, shown) -> str:
    """Return nothing where the verdict names the mistake in its place alone, else the verdict."""
    verdict = check.examine_start(shown)
    if place == "pairs":
        return "" if verdict.line() == mistake else verdict.line()
    found = {finding.view: finding for finding in verdict.views if finding.mistake}
    is_right = list(found) == [place] and found[place].mistake == mistake
    return "" if is_right and not found[place].alternatives else verdict.line()


def main() -> None:
    """Print false alarms, and one row per mistake and view."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="metaworld/pick-place-v3")
    parser.add_argument("--views", default="corner,topview,gripperPOV")
    options = parser.parse_args()
    names = tuple(options.views.split(","))
    env = make_expert_env(options.env, names)
    check = CameraCheck(recorded_starts(env), names)
    seeds = range(FIRST_ROLLOUT_SEED, FIRST_ROLLOUT_SEED + CLEAN_STARTS)
    clean = [first_frames(env, seed) for seed in seeds]
    env.close()
    print(options.env)
    for factor in BRIGHTNESS:
        verdicts = [check.examine_start(relit(frames, factor)) for frames in clean]
        alarms = [verdict.line() for verdict in verdicts if not verdict.matches]
        print(f"clean, brightness x {factor}: {len(alarms)} of {len(clean)} refused {alarms[:2]}")
    tallies: dict[tuple[str, str], Tally] = {}
    for frames in clean[:PLANTED_STARTS]:
        for place, mistake, shown in planted(frames, names):
            tally = tallies.setdefault((place, mistake), Tally())
            changed = shrink_frames(shown).astype(int) - shrink_frames(frames)
            if place != "pairs" and np.abs(changed[names.index(place)]).mean() <= MIN_DIFFERENCE:
                tally.symmetric += 1
                continue
            wrong = is_named(check, names, place, mistake, shown)
            tally.named += not wrong
            tally.wrong += [wrong] if wrong else []
    print("| view | planted | named | picture hardly changed |\n|---|---|---|---|")
    for (place, mistake), tally in tallies.items():
        total = tally.named + len(tally.wrong)
        print(f"| {place} | {mistake} | {tally.named} of {total} | {tally.symmetric} |")
    named = sum(tally.named for tally in tallies.values())
    total = named + sum(len(tally.wrong) for tally in tallies.values())
    print(f"named: {named} of {total} ({named / total:.1%})")
    for line in sorted({line for tally in tallies.values() for line in tally.wrong})[:5]:
        print(f"  otherwise: {line}")


if __name__ == "__main__":
    main()
