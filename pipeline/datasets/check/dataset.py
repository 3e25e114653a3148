"""Checks a dataset before hours of compute.

Reads the numbers of every episode, and the frames, which takes long, of a few episodes spread over
the dataset, or of all. Problems become findings; nothing is changed.
"""

from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import Field
from tqdm import tqdm

from pipeline.datasets.check.columns import ColumnOddities
from pipeline.datasets.check.labels import Labels, check_action_shift, statements
from pipeline.datasets.check.numbers import ColumnStatistics, check_clock, check_shift
from pipeline.datasets.check.report import CheckReport, Findings
from pipeline.datasets.check.scan import FrameScan
from pipeline.datasets.manifest.assumed import describe_data
from pipeline.datasets.manifest.checksums import wrong_checksums
from pipeline.datasets.manifest.model import LoadedManifest, Manifest
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.errors import ConfigError, DatasetError
from pipeline.storage.local import write_atomically
from policy.spec import FrozenModel

_SHEET_EPISODES: Final = 4  # more would make the sheet too large to look at


class CheckConfig(FrozenModel):
    """What to check."""

    dataset: str
    """The dataset, or its manifest; see `describe_data`."""
    episodes: int | None = Field(default=5, ge=1)
    """Episodes whose frames are read, spread evenly over the dataset; None reads all."""
    sheet: Path | None = None
    """A `.png` to draw first, middle and last frames on; None draws none."""


def check_dataset(config: CheckConfig) -> CheckReport:
    """Check a dataset and draw the contact sheet, if one is requested and the dataset opens.

    Raises:
        ManifestError: the manifest itself is wrong.
        ConfigError: the sheet's folder is missing, or it is not a `.png`.
        OSError: the sheet cannot be written.
    """
    _require_sheet_path(config.sheet)
    loaded = describe_data(config.dataset)
    findings = Findings()
    for wrong in wrong_checksums(loaded):
        findings.add_error("checksum", config.dataset, wrong)
    try:
        reader = ManifestReader(loaded, on_problem=findings.add_error)
    except (DatasetError, OSError) as error:
        findings.add_error("unreadable", config.dataset, error)
        return CheckReport(
            manifest=config.dataset,
            name=loaded.manifest.name,
            findings=findings.all(),
        )
    try:
        return _check_open(config, loaded, reader, findings)
    finally:
        reader.close()


def _require_sheet_path(sheet: Path | None) -> None:
    # Before reading, which takes long. A mistyped name must not replace a manifest.
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ConfigError(f"{sheet}: expected a .png file, found another suffix; correct --sheet")
    if sheet is not None and not sheet.parent.is_dir():
        raise ConfigError(f"{sheet}: expected a folder {sheet.parent}, found none; create it")


def _check_open(
    config: CheckConfig, loaded: LoadedManifest, reader: ManifestReader, findings: Findings
) -> CheckReport:
    manifest = loaded.manifest
    state, action = _check_numbers(manifest, reader, findings)
    num_wanted = reader.num_episodes if config.episodes is None else config.episodes
    spread = np.linspace(0, reader.num_episodes - 1, min(num_wanted, reader.num_episodes))
    chosen = [int(episode) for episode in spread.round()]
    scan = FrameScan(reader, state.std, findings, chosen[:: -(-len(chosen) // _SHEET_EPISODES)])
    for episode in tqdm(chosen, desc="frames", unit="episode", disable=None):
        scan.read(episode)
    views = scan.report(resized=manifest.resize is not None)
    if config.sheet is not None:
        write_atomically(config.sheet, scan.sheet(resized=manifest.resize is not None))
    num_steps = sum(map(reader.episode_length, range(reader.num_episodes)))
    return CheckReport(
        manifest=config.dataset,
        name=manifest.name,
        num_episodes=reader.num_episodes,
        num_steps=num_steps,
        seconds=num_steps / reader.fps,
        frames_of=tuple(map(reader.episode_number, chosen)),
        views=views,
        dims=(*state.summaries(), *action.summaries()),
        statements=_check_labels(loaded, reader, findings),
        findings=findings.all(),
        sheet=str(config.sheet) if config.sheet else None,
    )


def _check_labels(
    loaded: LoadedManifest, reader: ManifestReader, findings: Findings
) -> tuple[str, ...]:
    """Read the metadata of every episode; return it in words."""
    labels = [Labels() for _ in reader.facts]
    for episode in range(reader.num_episodes):
        try:
            label = reader.label(episode)
        except (DatasetError, OSError) as error:
            findings.add_error("numbers", reader.episode_name(episode), error)
            continue
        labels[reader.source_of[episode]].add(reader.episode_number(episode), label)
    origin = loaded.origin
    check_action_shift(loaded.manifest.action_shift, reader.facts, origin, findings)
    texts: list[str] = []
    for source, (facts, of_source) in enumerate(zip(reader.facts, labels, strict=True)):
        where = f"{origin}: sources[{source}]" if loaded.manifest.sources else origin
        of_source.report(where, findings)
        texts += (text for text in statements(facts, of_source) if text not in texts)
    return tuple(texts)


def _check_numbers(
    manifest: Manifest, reader: ManifestReader, findings: Findings
) -> tuple[ColumnStatistics, ColumnStatistics]:
    """Read state, action and clock of every episode."""
    state, action = ColumnStatistics("state"), ColumnStatistics("action")
    odd = ColumnOddities("state"), ColumnOddities("action")
    seen: dict[bytes, str] = {}
    is_copy = []
    for episode in tqdm(range(reader.num_episodes), desc="numbers", unit="episode", disable=None):
        name = reader.episode_name(episode)
        try:
            check_clock(reader.timestamp(episode), reader.fps, name, findings)
        except (DatasetError, OSError) as error:
            findings.add_error("clock", name, error)
        check_shift(manifest.action_shift, reader.episode_length(episode), name, findings)
        try:
            values = reader.state(episode), reader.action(episode)
        except (DatasetError, OSError) as error:
            findings.add_error("numbers", name, error)
            continue
        is_copy.append(np.array_equal(*values))
        state.add(values[0])
        action.add(values[1])
        for oddities, of_role in zip(odd, values, strict=True):
            oddities.add(of_role, name)
        key = sha256(b"".join(array.tobytes() for array in values)).digest()
        if key in seen:
            findings.add(
                "warning",
                "duplicate",
                name,
                f"the same states and actions as {seen[key]}",
                "leave one of them out with `episodes = {except = [...]}`",
            )
        seen.setdefault(key, name)
    if is_copy and all(is_copy):
        findings.add(
            "warning",
            "shift",
            "action",
            "every action is the state of its own step: a policy learns to stay where it is",
            "name the commands to the robot in `action.key`; where only its state was recorded, "
            "write `action_shift = -1`, which makes the next step's state the action",
        )
    for statistics in (state, action, *odd):
        statistics.report(findings)
    return state, action
