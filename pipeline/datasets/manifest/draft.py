"""Starts a manifest: what the files say of themselves is filled in, the rest is left to complete.

What no file can know (units, license, ...) is left as an empty string, which `load_manifest`
refuses, so that a draft cannot be taken for a manifest.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.datasets.base import DatasetPlace, FormatReader, FormatSurvey
from pipeline.datasets.check.labels import Labels, statements
from pipeline.datasets.manifest.toml import toml_text
from pipeline.datasets.registry import FormatName, detect_format, format_class, open_format
from pipeline.errors import DatasetError
from policy.spec import FRAME_SIZE

_NO_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]+")
# Keys that layouts use for the state and the action; the first whose keys are all there is taken.
_USUAL_STATES: Final = (
    ("observation.state",),
    ("observations/qpos",),
    ("data/state",),
    ("obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos"),
    ("obs/ee_states", "obs/gripper_states"),
)
_USUAL_ACTIONS: Final = (("action",), ("actions",), ("data/action",))
_MAX_COLUMNS: Final = 32  # names of columns that a comment lists


def draft_manifest(path: Path) -> str:
    """Look at a dataset and write the text of a manifest for it.

    Args:
        path: the dataset: a folder or a file.

    Returns:
        TOML with a comment at each empty string that says what to write there.

    Raises:
        DatasetError: there is nothing, no layout that is read, or it does not read.
    """
    root = Path(os.path.normpath(path.absolute()))  # links stay, as in manifests
    name = detect_format(root)
    survey: FormatSurvey = format_class(name).survey(root)
    notes = survey.notes
    said = _Statements(name, root, survey)
    fps = said.measured_fps if survey.fps is None else survey.fps
    lines = [
        "# Started by `vla-data init`. Complete each empty string; until then this manifest is",
        "# refused. Then run `vla-data check` on this file, and look at its contact sheet.",
        "",
        _line("name", _safe_name(root.name.split(".")[0]), "what reports call the dataset"),
        _line("source", notes.get("source", ""), "an address, a paper, or how it was made"),
        _line("revision", notes.get("revision", ""), "a commit, a date, a version of that source"),
        _line("license", notes.get("license", ""), "the terms of use, as CC-BY-4.0"),
        _line("format", name),
        _line("path", str(root), 'or relative to this file, or as "${DATA_ROOT}/x"'),
        _line("fps", "" if fps is None else fps, "a number: control steps a second"),
        *_resize_lines(survey),
        *said.lines,
        "# If the contact sheet shows red and blue swapped:",
        '# color_order = "bgr"',
        *_view_lines(survey),
        *_array_lines("state", _USUAL_STATES, survey),
        *_array_lines("action", _USUAL_ACTIONS, survey, said.gripper),
    ]
    return "\n".join(lines) + "\n"


class _Statements:
    """What the files say of themselves, and what it means for the manifest."""

    def __init__(self, name: FormatName, root: Path, survey: FormatSurvey) -> None:
        """Open the whole dataset as a manifest would; one that does not open says so."""
        self.lines: list[str] = []
        self.gripper = ""
        self.measured_fps: float | None = None
        keys = (*_usual_keys(_USUAL_STATES, survey), *_usual_keys(_USUAL_ACTIONS, survey))
        keys = keys or tuple(survey.numbers)[:1]
        if not keys:
            return
        try:
            # Frames are not looked at: that takes long, and `vla-data check` does.
            place = DatasetPlace(root, (), keys)
            reader = open_format(name, place)
        except (DatasetError, OSError) as error:
            self.lines = [f"# Not all of it opens: {_one_line(str(error))}"]
            return
        try:
            self._read(reader)
        except (DatasetError, OSError) as error:
            self.lines.append(f"# Not all of it reads: {_one_line(str(error))}")
        finally:
            reader.close()

    def _read(self, reader: FormatReader) -> None:
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
        if 0 < len(labels.failed) < reader.num_episodes:
            self.lines += [
                "# Episodes that the files mark as failed:",
                f"episodes = {{except = {labels.failed}}}",
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


def _resize_lines(survey: FormatSurvey) -> list[str]:
    sizes = {size for size in survey.views.values() if size not in (None, FRAME_SIZE)}
    if not sizes:
        return []
    found = ", ".join(f"{height}x{width}" for height, width in sorted(filter(None, sizes)))
    return [
        f"# Frames are {found}. To allow them to be resized to what the encoder takes:",
        f"# {toml_text({'resize': list(FRAME_SIZE)}).rstrip()}",
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


def _usual_keys(usual: Iterable[tuple[str, ...]], survey: FormatSurvey) -> tuple[str, ...]:
    return next((keys for keys in usual if survey.numbers.keys() >= set(keys)), ())


def _array_lines(
    role: str, usual: Iterable[tuple[str, ...]], survey: FormatSurvey, gripper: str = ""
) -> list[str]:
    keys = _usual_keys(usual, survey)
    found = ", ".join(f"{key} ({len(names)})" for key, names in survey.numbers.items()) or "none"
    columns = [name for key in keys for name in survey.numbers[key]]
    ask = "each column and its unit, in words"
    if columns:
        more = ", ..." if len(columns) > _MAX_COLUMNS else ""
        ask += f"; columns are {', '.join(columns[:_MAX_COLUMNS])}{more}{gripper}"
    value: str | list[str] = keys[0] if len(keys) == 1 else list(keys) or ""
    return [
        f"[{role}]",
        _line("key", value, f"one key or a list, of (width) {found}"),
        _line("units", "", ask),
        *([""] if role == "state" else []),
    ]


def _safe_name(text: str) -> str:
    return _NO_NAME.sub("_", text).strip("_") or "dataset"
