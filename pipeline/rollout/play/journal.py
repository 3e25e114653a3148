"""`episodes.jsonl`: the episodes of a rollout as they finish, so that a killed rollout resumes.

The first line identifies the rollout by all that determines its episodes. Each further line is one
finished episode. A line is appended in one write and flushed to the disk; a line that a crash cut
short is dropped. A file of another rollout, or next to a result, is replaced.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from pipeline.rollout.gate.camera_verdict import StartFinding
from pipeline.rollout.play.result import EpisodeResult
from pipeline.storage.local import write_atomically
from policy.spec import FrozenModel

JOURNAL: Final = "episodes.jsonl"
RESULT: Final = "result.json"


class FinishedEpisode(FrozenModel):
    """One episode; durations in seconds per decision."""

    result: EpisodeResult
    start: StartFinding | None
    """Whether its cameras showed what they showed in training; None where that was not compared."""
    render_s: tuple[float, ...]
    """Rendering the observation steps."""
    encode_s: tuple[float, ...]
    """Encoding their views, together with those of episodes that ran at the same time."""
    head_s: tuple[float, ...]
    """Condition and action head."""
    disagreement: tuple[float, ...]
    """Of the head with itself; empty where the objective learns no jumps."""


class Journal:
    """The finished episodes of one rollout."""

    def __init__(self, out: Path, identity: Mapping[str, Any]):
        """Read the episodes of an interrupted rollout of the same identity; write nothing yet.

        `identity` is all that determines the rollout's episodes; JSON values.
        """
        self._path = out / JOURNAL
        self._identity = json.dumps(identity, sort_keys=True)
        self.episodes = self._read()
        """In the order in which they finished."""

    def begin(self) -> None:
        """Write the identity and the episodes that were read, and nothing else.

        Raises:
            OSError: the disk is full or not writable.
        """
        lines = [self._identity, *(episode.model_dump_json() for episode in self.episodes)]
        write_atomically(self._path, "".join(f"{line}\n" for line in lines).encode())

    def append(self, episode: FinishedEpisode) -> None:
        """Add a finished episode (OSError: the disk is full or not writable)."""
        self.episodes.append(episode)
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{episode.model_dump_json()}\n".encode())
            os.fsync(file.fileno())

    def _read(self) -> list[FinishedEpisode]:
        if not self._path.exists() or self._path.with_name(RESULT).exists():
            return []
        identity, *lines = self._path.read_text(errors="replace").split("\n")
        if identity != self._identity:
            return []
        episodes = []
        for line in lines[:-1]:  # what follows the last newline was cut short
            try:
                episodes.append(FinishedEpisode.model_validate_json(line))
            except ValidationError:
                break
        return episodes
