"""Drafts a manifest: what the files say of themselves, and what is usual for their layout.

What no file tells and a store needs (the rate, or which of several arrays is the state) is left as
an empty string, which `load_manifest` refuses, so that a draft is never taken for a manifest.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from pipeline.datasets.base import DatasetPlace, FormatReader, FormatSurvey, every_episode
from pipeline.datasets.check.labels import Labels, statements
from pipeline.datasets.manifest.selection import choose_episodes
from pipeline.datasets.manifest.toml import toml_text
from pipeline.datasets.registry import (
    FormatName,
    detect_format,
    episode_numbers,
    format_class,
    open_format,
)
from pipeline.errors import DatasetError
from pipeline.storage.location import Location, on_disk
from policy.spec import FRAME_SIZE

_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]+")
# Keys that layouts use for the state and the action; all that fit the first pattern with any.
_USUAL_STATES: Final = (
    r"observation\.state",
    r"observations/qpos",
    r"data/state",
    r"obs/robot\d_(eef_pos|eef_quat|gripper_qpos)",
    r"obs/(ee_states|gripper_states)",
)
_USUAL_ACTIONS: Final = (r"action", r"actions", r"data/action")
_USUAL_FPS: Final[Mapping[FormatName, float]] = {"aloha_hdf5": 50.0}  # of ACT and ALOHA
_MAX_COLUMNS: Final = 32  # names of columns that a comment lists


@dataclass(frozen=True)
class Draft:
    """A manifest as far as the files tell."""

    text: str
    """TOML, with a comment at each empty string that says what to write there."""
    assumed: str
    """The choices that it makes, a line each, for people."""
    missing: tuple[str, ...]
    """What is still to be completed: key and choices."""


def draft_manifest(
    path: Location, notes: Mapping[str, str] = MappingProxyType({}), episodes: str | None = None
) -> Draft:
    """Look at a dataset and draft a manifest for it: all cameras, the one state, the one action.

    Args:
        path: the dataset: a folder, a file or an address.
        notes: `name`, `source` and `revision`, where they are known.
        episodes: which are used, as `choose_episodes` takes them; None leaves out those that the
            files mark as failed.

    Raises:
        DatasetError: there is nothing, no layout that is read, or it does not read.
        ConfigError: there are no such episodes.
    """
    root = path if on_disk(path) is None else Path(os.path.normpath(Path(str(path)).absolute()))
    name = detect_format(root)
    survey: FormatSurvey = format_class(name).survey(root)
    notes = {**survey.notes, **notes}
    state = _usual_keys(_USUAL_STATES, survey.numbers)
    action = _usual_keys(_USUAL_ACTIONS, survey.numbers)
    others = tuple(key for key in survey.numbers if key not in action)
    if action and len(others) == 1:
        state = others
    said = _Statements(name, root, state + action or others[:1], episodes)
    fps, rate = survey.fps or said.measured_fps, "as the files say"
    if not fps:
        fps, rate = _USUAL_FPS.get(name), "assumed, as of ACT and ALOHA; the files state none"
    found = ", ".join(f"{key} ({len(names)})" for key, names in survey.numbers.items()) or "none"
    size, size_lines = _sizes(survey)
    lines = [
        "# Drafted from the files. Complete what is an empty string, edit what is wrong, and embed",
        "# with it: `vla-embed THIS_FILE --store STORE`. Optional, for reports: source, revision,",
        "# license, `units` of state and action. data_manifests/README.md explains every field.",
        "",
        _line(
            "name",
            _safe_name(notes.get("name", root.name.split(".")[0])),
            "what reports call the dataset",
        ),
        *(_line(key, notes[key]) for key in ("source", "revision", "license") if key in notes),
        _line("format", name),
        _line("path", str(root), 'or relative to this file, or as "${DATA_ROOT}/x"'),
        _line("fps", fps or "", "control steps a second" + f", {rate}" * bool(fps)),
        *size_lines,
        *said.lines,
        "# If the contact sheet of `vla-data check` shows red and blue swapped:",
        '# color_order = "bgr"',
        *_view_lines(survey),
        *_array_lines("state", state, survey, found),
        "",
        *_array_lines("action", action, survey, found, said.gripper),
    ]
    wanted = {
        "fps": (fps, "a number, control steps a second"),
        "views": (survey.views, "a camera"),
        "state.key": (state, f"one or more of {found}"),
        "action.key": (action, f"one or more of {found}"),
    }
    chosen = {
        "cameras": f"{', '.join(_view_names(list(survey.views)))} ({size})",
        "state": " + ".join(state),
        "action": " + ".join(action),
        "rate": f"{fps or 0:g} Hz, {rate}",
        "episodes": said.episodes,
    }
    return Draft(
        text="\n".join(lines) + "\n",
        assumed="\n".join(f"  {what:<9} {words}" for what, words in chosen.items()),
        missing=tuple(f"{key} ({want})" for key, (value, want) in wanted.items() if not value),
    )


class _Statements:
    """What the files say of themselves, and what it means for the manifest."""

    def __init__(
        self, name: FormatName, root: Location, keys: tuple[str, ...], episodes: str | None
    ) -> None:
        """Open the dataset as a manifest would; one that does not open says so."""
        self.lines: list[str] = []
        self.gripper = ""
        self.measured_fps: float | None = None
        self.episodes = "all"
        chosen = None
        if episodes is not None:
            chosen = choose_episodes(episodes, episode_numbers(name, root))
        if not keys:
            return
        try:
            # Frames are not looked at: that takes long, and `vla-data check` does.
            keeps = set(chosen).__contains__ if chosen else every_episode
            reader = open_format(name, DatasetPlace(root, (), keys, keeps=keeps))
        except (DatasetError, OSError) as error:
            self.lines = [f"# Not all of it opens: {_one_line(str(error))}"]
            return
        try:
            self._read(reader, chosen)
        except (DatasetError, OSError) as error:
            self.lines.append(f"# Not all of it reads: {_one_line(str(error))}")
        finally:
            reader.close()

    def _read(self, reader: FormatReader, chosen: Sequence[int] | None) -> None:
        facts, labels = reader.facts, Labels()
        self.gripper = f"; gripper: {facts.gripper}" if facts.gripper else ""
        for episode in range(reader.num_episodes):
            labels.add(reader.episode_number(episode), reader.label(episode))
        self.lines += [f"# The files say: {_one_line(said)}" for said in statements(facts, labels)]
        if facts.action_shift:
            self.lines += [
                "# Files of LIBERO hold with each action the frame that was seen after it.",
                _line("action_shift", facts.action_shift),
            ]
        if len(labels.tasks) > 1:
            self.lines.append("# To choose one task: episodes = {only = [...]}, of")
            self.lines += [
                f"#   {_one_line(task[:60])}: {numbers}" for task, numbers in labels.tasks.items()
            ]
        leaves_out = labels.failed if len(labels.failed) < reader.num_episodes else []
        self.episodes = str(reader.num_episodes - len(leaves_out))
        if leaves_out:
            self.episodes += f", without {len(leaves_out)} that the files mark as failed"
        if chosen:
            only = [number for number in chosen if number not in leaves_out]
            self.lines.append(f"episodes = {{only = {only}}}")
        elif leaves_out:
            self.lines += [
                "# Episodes that the files mark as failed:",
                f"episodes = {{except = {leaves_out}}}",
            ]
        seconds = reader.timestamp(0)
        if seconds is not None and len(seconds) > 1 and 0 < seconds[-1] < np.inf:
            self.measured_fps = float(f"{(len(seconds) - 1) / seconds[-1]:.3g}")


def _line(key: str, value: Any, comment: str = "") -> str:
    """Write one `key = value`; the comment asks for a value, or explains one, after it."""
    text = toml_text({key: value}).rstrip("\n")
    if value == "":
        return f"{text}  # to complete: {_one_line(comment)}"
    return f"{text}  # {_one_line(comment)}" if comment else text


def _one_line(text: str) -> str:
    # Names come from files: a comment must not end where a file says so, and TOML forbids the rest.
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _sizes(survey: FormatSurvey) -> tuple[str, list[str]]:
    """Say in words how large the frames are, and the lines that have others resized."""
    sizes = set(survey.views.values())
    if sizes <= {FRAME_SIZE}:
        return "256x256 pixels", []
    found = ", ".join(sorted(f"{size[0]}x{size[1]}" if size else "compressed" for size in sizes))
    return f"frames of {found} resized to 256x256, stretched where not square", [
        f"# Frames are {found}. `fit` may also be `crop` (their middle) or `pad` (black bars).",
        toml_text({"resize": list(FRAME_SIZE), "fit": "stretch"}).rstrip(),
    ]


def _view_lines(survey: FormatSurvey) -> list[str]:
    keys = list(survey.views)
    lines = [
        "",
        "# Views in the order in which the policy sees them; remove those it shall not see.",
    ]
    for key, name in zip(keys, _view_names(keys), strict=True):
        size = survey.views[key]
        lines += [
            "[[views]]",
            _line("name", name, "what the environment or the robot calls this camera"),
            _line("key", key, f"{size[0]}x{size[1]} pixels" if size else ""),
            "",
        ]
    if not keys:
        lines += [
            "[[views]]",
            _line("name", "", "what the environment or the robot calls this camera"),
            _line("key", "", "none was found: where the files keep its frames"),
            "",
        ]
    return lines


def _view_names(keys: list[str]) -> list[str]:
    """Name views by the last part of their keys; by the whole key where that is not unique."""
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
        more = ", ..." if len(columns) > _MAX_COLUMNS else ""
        named = f"# columns are {', '.join(columns[:_MAX_COLUMNS])}{more}{gripper}"
        lines.append(_one_line(named))
    return lines


def _safe_name(text: str) -> str:
    return _NO_NAME.sub("_", text).strip("_") or "dataset"
