"""Checks a dataset before hours of compute.

Reads the numbers of every episode, and the frames, which takes long, of a few episodes spread over
the dataset, or of all. Problems become findings; nothing is changed.
"""

from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64
from tqdm import tqdm

from pipeline.datasets.causes import clock_unit
from pipeline.datasets.check.columns import Episodes, check_columns
from pipeline.datasets.check.labels import Labels, statements
from pipeline.datasets.check.report import CheckReport, Findings
from pipeline.datasets.check.scan import FrameScan
from pipeline.datasets.manifest.draft import describe_data
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.datasets.manifest.sources import wrong_checksums
from pipeline.errors import ConfigError, DatasetError
from pipeline.storage.local import write_atomically
from policy.network.normalizer import CONSTANT_RANGE

_MOVED_SHARE: Final = 0.05  # of a column's standard deviation; less may change no pixel
_SHEET_EPISODES: Final = 4  # more would make the sheet too large to look at
_FPS_TOLERANCE: Final = 0.02  # of a control step; clocks of computers are a hundred times better
_LONG_STEP: Final = 1.5  # control steps; more means that something was not recorded
_MANY: Final = 0.1  # of an episode's steps; more long ones are the rate or jitter, not gaps


def check_dataset(
    dataset: str, *, episodes: int | None = 5, sheet: Path | None = None
) -> CheckReport:
    """Check a dataset and draw the contact sheet, if one is requested and the dataset opens.

    Args:
        dataset: the dataset, or its manifest; see `describe_data`.
        episodes: number of episodes whose frames are read, spread evenly; None reads all.
        sheet: a `.png` to draw first, middle and last frames on.

    Raises:
        ManifestError: the manifest itself is wrong.
        ConfigError: the sheet's folder is missing, or it is not a `.png`.
        OSError: the sheet cannot be written.
    """
    # Before reading, which takes long. A mistyped name must not replace a manifest.
    if sheet is not None and (sheet.suffix.lower() != ".png" or not sheet.parent.is_dir()):
        raise ConfigError(f"--sheet {sheet}: expected a .png file in a folder that exists")
    loaded = describe_data(dataset)
    findings = Findings()
    for wrong in wrong_checksums(loaded):
        findings.add_error("checksum", dataset, wrong)
    try:
        reader = ManifestReader(loaded, on_problem=findings.add_error)
    except (DatasetError, OSError) as error:
        findings.add_error("unreadable", dataset, error)
        return CheckReport(dataset, loaded.manifest.name, findings.all())
    with closing(reader):
        states, actions = _read_numbers(reader, findings)
        dims = check_columns("state", states, findings)
        least = np.array([max(_MOVED_SHARE * dim.std, CONSTANT_RANGE) for dim in dims])
        dims += check_columns("action", actions, findings)
        num_read = min(episodes or reader.num_episodes, reader.num_episodes)
        chosen = np.linspace(0, reader.num_episodes - 1, num_read).round().astype(int).tolist()
        on_sheet = chosen[:: -(-len(chosen) // _SHEET_EPISODES)]
        scan = FrameScan(reader, states, least, findings, on_sheet)
        for episode in tqdm(chosen, desc="frames", unit="episode", disable=None):
            scan.read(episode)
        views = scan.report()
        if sheet is not None:
            write_atomically(sheet, scan.sheet())
        num_steps = sum(map(reader.episode_length, range(reader.num_episodes)))
        return CheckReport(
            manifest=dataset,
            name=loaded.manifest.name,
            num_episodes=reader.num_episodes,
            num_steps=num_steps,
            seconds=num_steps / reader.fps,
            frames_of=tuple(map(reader.episode_number, chosen)),
            views=views,
            dims=tuple(dims),
            statements=_check_labels(reader, findings),
            findings=findings.all(),
            sheet=str(sheet) if sheet else None,
        )


def _check_labels(reader: ManifestReader, findings: Findings) -> tuple[str, ...]:
    """Read the metadata of every episode; return it in words."""
    labels = [Labels() for _ in reader.facts]
    for episode in range(reader.num_episodes):
        try:
            label = reader.label(episode)
        except (DatasetError, OSError) as error:
            findings.add_error("numbers", reader.episode_name(episode), error)
            continue
        labels[reader.source_of[episode]].add(reader.episode_number(episode), label)
    loaded = reader.loaded
    texts: list[str] = []
    for source, (facts, of_source) in enumerate(zip(reader.facts, labels, strict=True)):
        where = f"{loaded.origin}: sources[{source}]" if loaded.manifest.sources else loaded.origin
        shift = loaded.manifest.action_shift
        if facts.action_shift not in (0, shift):
            found = f"`action_shift` is {shift}; frames of LIBERO were seen after their actions"
            to_do = f"write `action_shift = {facts.action_shift}` into the manifest"
            findings.add("warning", "shift", where, found, to_do)
        of_source.report(where, findings)
        texts += statements(facts, of_source)
    return tuple(dict.fromkeys(texts))


def _read_numbers(reader: ManifestReader, findings: Findings) -> tuple[Episodes, Episodes]:
    """Read state and action of every episode that reads, and check their clocks."""
    shift = reader.loaded.manifest.action_shift
    states: Episodes = {}
    actions: Episodes = {}
    seen: dict[bytes, str] = {}
    for episode in tqdm(range(reader.num_episodes), desc="numbers", unit="episode", disable=None):
        name, length = reader.episode_name(episode), reader.episode_length(episode)
        if shift and abs(shift) >= max(length - 1, 1):
            found = f"`action_shift` of {shift} gives all {length} steps the same action"
            to_do = "correct `action_shift` in the manifest, or leave the episode out"
            findings.add("error", "shift", name, found, to_do)
        try:
            _check_clock(reader.timestamp(episode), reader.fps, name, findings)
        except (DatasetError, OSError) as error:
            findings.add_error("clock", name, error)
        try:
            state, action = reader.state(episode), reader.action(episode)
        except (DatasetError, OSError) as error:
            findings.add_error("numbers", name, error)
            continue
        states[episode], actions[episode] = (name, state), (name, action)
        key = sha256(state.tobytes() + action.tobytes()).digest()
        if key in seen:
            found = f"the same states and actions as {seen[key]}"
            to_do = "leave one of them out with `episodes = {except = [...]}`"
            findings.add("warning", "duplicate", name, found, to_do)
        seen.setdefault(key, name)
    if states and all(np.array_equal(states[e][1], actions[e][1]) for e in states):
        found = "every action is the state of its own step: a policy learns to stay where it is"
        to_do = "name the commands in `action.key`; where only states were recorded, write "
        to_do += "`action_shift = -1`, which makes the next step's state the action"
        findings.add("warning", "shift", "action", found, to_do)
    return states, actions


def _check_clock(
    seconds: Float64[np.ndarray, " t"], fps: float, place: str, findings: Findings
) -> None:
    """Compare an episode's clock, finite seconds since its first step, with the manifest's rate."""
    with np.errstate(over="ignore"):  # infinite values are reported below
        steps = np.diff(seconds) * fps  # in control steps
    if not len(steps):
        return
    if unit := clock_unit(float(seconds[-1]), len(steps) / fps):
        to_do = "write them in seconds, or remove the clock, which makes the steps even"
        findings.add("error", "clock", place, f"times are {unit}", to_do)
        return
    is_step = np.isfinite(steps) & (steps > 0)
    if not is_step.all():
        wrong = int(np.flatnonzero(~is_step)[0])
        now, then = seconds[wrong : wrong + 2]
        found = f"time goes from {now:.6g} s to {then:.6g} s at step {wrong + 1}"
        to_do = "correct the clock (float32 cannot hold times since 1970), or leave the episode out"
        findings.add("error", "clock", place, found, to_do)
        return
    is_long = steps > _LONG_STEP
    # Clocks that are rounded, or run unevenly, are right on average and in no single step. A few
    # gaps change the average, and not the rate between them.
    rates = [steps] if is_long.mean() > _MANY else [steps, steps[~is_long]]
    tolerance = _FPS_TOLERANCE + np.ptp(rates[-1]) / len(steps)
    if all(abs(of.mean() - 1) > tolerance for of in rates):
        rate = fps / rates[-1].mean()
        found = f"{rate:.4g} steps per second from the first to the last, not {fps:g}"
        to_do = "correct `fps` in the manifest, and in meta/info.json of LeRobot"
        findings.add("error", "fps", place, found, to_do)
        return
    is_uneven = is_long | (steps < 2 - _LONG_STEP)
    if is_uneven.mean() > _MANY:
        found = (
            f"steps between {steps.min() / fps:.3g} and {steps.max() / fps:.3g} s: "
            f"{int(is_uneven.sum())} of {len(steps)} differ from the mean by half a step or more"
        )
        to_do = "the policy sees even steps: record with a steady clock, or bring them to one"
        findings.add("warning", "jitter", place, found, to_do)
    elif is_long.any():
        longest, first = steps.max() / fps, int(np.argmax(is_long)) + 1
        found = f"{is_long.sum()} gaps of up to {longest:.3g} s, the first before step {first}"
        to_do = "look at what was not recorded; leave the episode out if the robot moved"
        findings.add("warning", "clock", place, found, to_do)
