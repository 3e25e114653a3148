"""The `DATASET` argument of commands: a manifest, or data, of which a manifest is drafted.

A draft follows from the files' metadata and the usual keys of their format. What a store needs and
the files do not contain (the rate, or which of several arrays is the state) is left as an empty
string, which `load_manifest` refuses.
"""

import logging
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.datasets.base import DatasetConfig, FormatReader, FormatSurvey, every_episode
from pipeline.datasets.check.labels import Labels, statements
from pipeline.datasets.hub import HUB, download_dataset
from pipeline.datasets.manifest.model import LoadedManifest, load_manifest, parse_manifest
from pipeline.datasets.manifest.parts import toml_text
from pipeline.datasets.manifest.selection import choose_episodes
from pipeline.datasets.registry import (
    FormatName,
    detect_format,
    episode_numbers,
    format_class,
    open_format,
)
from pipeline.errors import ConfigError, DatasetError, ManifestError
from pipeline.storage.local import write_atomically
from pipeline.storage.location import Location, on_disk, parse_location
from policy.spec import FRAME_SIZE

MANIFEST_SUFFIX: Final = ".toml"
_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]+")
# Usual keys of the state and the action; all that match the first pattern with a match.
_USUAL_STATES: Final = (
    r"observation\.state",
    r"observations/qpos",
    r"data/state",
    r"obs/robot\d_(eef_pos|eef_quat|gripper_qpos)",
    r"obs/(ee_states|gripper_states)",
)
_USUAL_ACTIONS: Final = (r"action", r"actions", r"data/action")
_USUAL_FPS: Final[Mapping[FormatName, float]] = {"aloha_hdf5": 50.0}  # of ACT and ALOHA

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draft:
    """A manifest as far as it is known from the files."""

    text: str
    """TOML, with a comment at each empty string."""
    assumed: str
    """The assumptions, one per line, for people."""
    missing: tuple[str, ...]
    """Key and choices of each empty string."""


def describe_data(dataset: str) -> LoadedManifest:
    """Load a manifest, or draft one of data; writes nothing.

    Args:
        dataset: a manifest (`.toml`); or data: a folder, a file, an address, `hf://owner/name`.

    Raises:
        ManifestError: the manifest is wrong, or cannot be completed from the files.
        DatasetError: there is no data, not of a known format, or it does not read.
    """
    if dataset.endswith(MANIFEST_SUFFIX):
        return load_manifest(dataset)
    draft = _complete_draft(dataset)
    logger.info("%s: no manifest was passed, using:\n%s", dataset, draft.assumed)
    return parse_manifest(tomllib.loads(draft.text), Path(dataset))


def manifest_next_to(store: Location, dataset: str, episodes: str | None = None) -> Path:
    """Return the manifest to embed: `dataset` itself, or one that is drafted next to the store.

    Args:
        store: `s.zarr` gets `s.toml`; a store in object storage gets it in the working directory.
        dataset: as `describe_data`.
        episodes: argument of `choose_episodes`; None uses all.

    Raises:
        ManifestError, DatasetError: as `describe_data`.
        ConfigError: there are no such episodes, or a different manifest is next to the store.
    """
    if dataset.endswith(MANIFEST_SUFFIX):
        if episodes is not None:
            raise ConfigError(f"--episodes: write `episodes = {{only = [..]}}` into {dataset}")
        return Path(dataset)
    place = on_disk(store)
    folder = Path() if place is None else place.parent
    path = folder / f"{store.name.removesuffix('.zarr')}{MANIFEST_SUFFIX}"
    draft = _complete_draft(dataset, episodes, path)
    command = f"vla-embed {path} --store"
    try:
        is_same = tomllib.loads(path.read_text()) == tomllib.loads(draft.text)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, draft.text.encode())
        is_same = True
    except ValueError:  # not TOML
        is_same = False
    if not is_same:
        raise ConfigError(
            f"{path}: expected the manifest drafted from {dataset}, found a different one; to use "
            f"it, run `{command} {store}`, else move it away or use another --store"
        )
    advice = f"To change this, edit {path}, then run `{command} NEW_STORE`"
    logger.info("%s: no manifest was passed, using:\n%s\n%s", dataset, draft.assumed, advice)
    return path


def draft_manifest(dataset: Path | str, episodes: str | None = None) -> Draft:
    """Draft a manifest of data, with all cameras; `hf://` is downloaded.

    `episodes` is the argument of `choose_episodes`, None all that are not marked as failed.

    Raises:
        DatasetError: there is no data, not of a known format, or it does not read.
        ConfigError: there are no such episodes, or `dataset` is an invalid address.
        ObjectStorageError: the hub refuses, or does not answer.
    """
    root, notes = _locate(str(dataset), episodes)
    name = detect_format(root)
    survey: FormatSurvey = format_class(name).survey(root)
    notes = {**survey.notes, **notes}
    state = _usual_keys(_USUAL_STATES, survey.numbers)
    action = _usual_keys(_USUAL_ACTIONS, survey.numbers)
    others = tuple(key for key in survey.numbers if key not in action)
    if action and len(others) == 1:
        state = others
    metadata = _Metadata(name, root, state + action or others[:1], episodes)
    fps, rate = survey.fps or metadata.measured_fps, "from the files"
    if not fps:
        fps, rate = _USUAL_FPS.get(name), "assumed, as of ACT and ALOHA; not in the files"
    found = ", ".join(f"{key} ({len(names)})" for key, names in survey.numbers.items()) or "none"
    size, size_lines = _sizes(survey)
    lines = [
        "# Drafted from the files. Complete empty strings, edit what is wrong, and embed:",
        "# `vla-embed THIS_FILE --store STORE`. Optional, for reports: source, revision,",
        "# license, `units` of state and action. data_manifests/README.md explains every field.",
        "",
        _line("name", _safe_name(notes.get("name", root.name.split(".")[0])), "for reports"),
        *(_line(key, notes[key]) for key in ("source", "revision", "license") if key in notes),
        _line("format", name),
        _line("path", str(root), 'or relative to this file, or as "${DATA_ROOT}/x"'),
        _line("fps", fps or "", "control steps per second" + f", {rate}" * bool(fps)),
        *size_lines,
        *metadata.lines,
        "# If the contact sheet of `vla-data check` shows red and blue swapped:",
        '# color_order = "bgr"',
        *_view_lines(survey),
        *_array_lines("state", state, survey, found),
        "",
        *_array_lines("action", action, survey, found, metadata.gripper),
    ]
    wanted = {
        "fps": (fps, "a number, control steps per second"),
        "views": (survey.views, "a camera"),
        "state.key": (state, f"one or more of {found}"),
        "action.key": (action, f"one or more of {found}"),
    }
    chosen = {
        "cameras": f"{', '.join(_view_names(list(survey.views)))} ({size})",
        "state": " + ".join(state),
        "action": " + ".join(action),
        "rate": f"{fps or 0:g} Hz, {rate}",
        "episodes": metadata.episodes,
    }
    return Draft(
        text="\n".join(lines) + "\n",
        assumed="\n".join(f"  {what:<9} {words}" for what, words in chosen.items()),
        missing=tuple(f"{key} ({want})" for key, (value, want) in wanted.items() if not value),
    )


def _locate(dataset: str, episodes: str | None) -> tuple[Location, dict[str, str]]:
    """Return where data is, downloading it for `hf://`, and the hub's notes about it."""
    root: Location
    notes: dict[str, str] = {}
    if dataset.startswith(HUB):
        root, notes = download_dataset(dataset, episodes)
    else:
        root = parse_location(dataset)
    path = on_disk(root)
    return root if path is None else Path(os.path.normpath(path.absolute())), notes


def _complete_draft(
    dataset: str, episodes: str | None = None, path: Path = Path("my.toml")
) -> Draft:
    draft = draft_manifest(dataset, episodes)
    if draft.missing:
        raise ManifestError(
            f"{dataset}: the files do not contain {'; '.join(draft.missing)}; run `vla-data init "
            f"{dataset} --out {path}`, complete that file, and pass it instead of the data"
        )
    return draft


class _Metadata:
    """The files' metadata, and the lines of the manifest that follow from it."""

    def __init__(
        self, name: FormatName, root: Location, keys: tuple[str, ...], episodes: str | None
    ) -> None:
        """Open the dataset without cameras; an error becomes a comment."""
        self.lines: list[str] = []
        self.gripper = ""
        self.measured_fps: float | None = None
        self.episodes = "all"
        chosen = None
        if episodes is not None:
            chosen = choose_episodes(episodes, episode_numbers(name, root))
        if not keys:
            return
        # Frames are not read: that takes long, and `vla-data check` does it.
        keeps = set(chosen).__contains__ if chosen else every_episode
        try:
            with closing(open_format(name, DatasetConfig(root, (), keys, keeps=keeps))) as reader:
                self._read(reader, chosen)
        except (DatasetError, OSError) as error:
            if chosen is not None:  # a manifest without the choice would be one of all episodes
                raise
            self.lines.append(f"# Not all of it reads: {_one_line(str(error))}")

    def _read(self, reader: FormatReader, chosen: Sequence[int] | None) -> None:
        facts, labels = reader.facts, Labels()
        self.gripper = f"; gripper: {facts.gripper}" if facts.gripper else ""
        for episode in range(reader.num_episodes):
            labels.add(reader.episode_number(episode), reader.label(episode))
        self.lines += [
            f"# The files state: {_one_line(text)}" for text in statements(facts, labels)
        ]
        if facts.action_shift:
            self.lines += [
                "# Files of LIBERO contain with each action the frame that was seen after it.",
                _line("action_shift", facts.action_shift),
            ]
        if len(labels.tasks) > 1:
            self.lines.append("# To choose one task: episodes = {only = [...]}, of")
            self.lines += [
                f"#   {_one_line(task[:60])}: {numbers}" for task, numbers in labels.tasks.items()
            ]
        left_out = labels.failed if len(labels.failed) < reader.num_episodes else []
        self.episodes = str(reader.num_episodes - len(left_out))
        if left_out:
            self.episodes += f", without {len(left_out)} marked as failed"
        if chosen:
            only = [number for number in chosen if number not in left_out]
            self.lines.append(f"episodes = {{only = {only}}}")
        elif left_out:
            self.lines += ["# Episodes marked as failed:", f"episodes = {{except = {left_out}}}"]
        seconds = reader.timestamp(0)
        if seconds is not None and len(seconds) > 1 and 0 < seconds[-1] < np.inf:
            self.measured_fps = float(f"{(len(seconds) - 1) / seconds[-1]:.3g}")


def _line(key: str, value: Any, comment: str = "") -> str:
    """Write one `key = value` with a comment, which explains the value or what to write."""
    text = toml_text({key: value}).rstrip("\n")
    if value == "":
        return f"{text}  # to complete: {_one_line(comment)}"
    return f"{text}  # {_one_line(comment)}" if comment else text


def _one_line(text: str) -> str:
    # Names come from files: a line break would end the comment.
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _sizes(survey: FormatSurvey) -> tuple[str, list[str]]:
    """Describe the frames' size, and return the lines that allow resizing."""
    sizes = set(survey.views.values())
    if sizes <= {FRAME_SIZE}:
        return "256x256 pixels", []
    found = ", ".join(sorted(f"{size[0]}x{size[1]}" if size else "compressed" for size in sizes))
    return f"frames of {found} resized to 256x256, stretched if not square", [
        f"# Frames are {found}. `fit` may also be `crop` (their middle) or `pad` (black bars).",
        toml_text({"resize": list(FRAME_SIZE), "fit": "stretch"}).rstrip(),
    ]


def _view_lines(survey: FormatSurvey) -> list[str]:
    lines = ["", "# Views in the order in which the policy sees them; remove unused ones."]
    keys = list(survey.views) or [""]
    for key, name in zip(keys, _view_names(keys) if survey.views else [""], strict=True):
        size = survey.views.get(key)
        lines += [
            "[[views]]",
            _line("name", name, "the camera's name in the environment or robot"),
            _line("key", key, f"{size[0]}x{size[1]} pixels" if size else "the camera's key"),
            "",
        ]
    return lines


def _view_names(keys: list[str]) -> list[str]:
    """Name views by the last name of their keys; by the whole key if that is not unique."""
    short = [_safe_name(re.split(r"[/.]", key)[-1]) for key in keys]
    whole = [_safe_name(key) for key in keys]
    return [
        name if short.count(name) == 1 else long for name, long in zip(short, whole, strict=True)
    ]


def _usual_keys(usual: Iterable[str], numbers: Iterable[str]) -> tuple[str, ...]:
    found = (tuple(key for key in numbers if re.fullmatch(pattern, key)) for pattern in usual)
    return next(filter(None, found), ())


def _array_lines(
    role: str, keys: tuple[str, ...], survey: FormatSurvey, found: str, gripper: str = ""
) -> list[str]:
    columns = [name for key in keys for name in survey.numbers[key]]
    value: str | list[str] = keys[0] if len(keys) == 1 else list(keys) or ""
    lines = [f"[{role}]", _line("key", value, f"one key or a list, of (width) {found}")]
    if columns:
        lines.append(_one_line(f"# columns are {', '.join(columns)}{gripper}"))
    return lines


def _safe_name(text: str) -> str:
    return _NO_NAME.sub("_", text).strip("_") or "dataset"
