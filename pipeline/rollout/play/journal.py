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

from pydantic import BaseModel, Field, ValidationError

from pipeline.rollout.gate.camera_check import StartFinding
from pipeline.rollout.play.result import EpisodeResult
from pipeline.storage.local import write_atomically

JOURNAL: Final = "episodes.jsonl"
RESULT: Final = "result.json"


class Episode(BaseModel):
    """One episode of a rollout, with numbers of each decision; durations in seconds."""

    env: str
    seed: int
    start: StartFinding | None = None
    """Whether its cameras showed what they showed in training; None where that was not compared."""
    render_s: list[float] = Field(default_factory=list)
    """Rendering the observation steps."""
    encode_s: list[float] = Field(default_factory=list)
    """Encoding their views, together with those of episodes that ran at the same time."""
    head_s: list[float] = Field(default_factory=list)
    """Condition and action head."""
    first_actions: tuple[tuple[float, ...], ...] = ()
    """See `EpisodeResult`."""
    result: EpisodeResult | None = None
    """None before the episode ends."""


class Journal:
    """The finished episodes of one rollout."""

    def __init__(self, out: Path, identity: Mapping[str, Any]):
        """Read what an interrupted rollout of this identity has finished; write nothing yet."""
        self._path = out / JOURNAL
        self._identity = json.dumps(identity, sort_keys=True)
        self.episodes = self._read()
        """In the order in which they finished."""

    def begin(self) -> None:
        """Write the identity and the episodes that were read (OSError: the disk is full)."""
        lines = [self._identity, *(episode.model_dump_json() for episode in self.episodes)]
        write_atomically(self._path, "".join(f"{line}\n" for line in lines).encode())

    def append(self, episode: Episode) -> None:
        """Add a finished episode (OSError: the disk is full)."""
        self.episodes.append(episode)
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{episode.model_dump_json()}\n".encode())
            os.fsync(file.fileno())

    def _read(self) -> list[Episode]:
        if not self._path.exists() or self._path.with_name(RESULT).exists():
            return []
        identity, *lines = self._path.read_text(errors="replace").split("\n")
        if identity != self._identity:
            return []
        episodes = []
        for line in lines[:-1]:  # what follows the last newline was cut short
            try:
                episodes.append(Episode.model_validate_json(line))
            except ValidationError:
                break
        return episodes
