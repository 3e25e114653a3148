"""SIGKILL at random moments: what was committed stays, and the end is byte-identical."""

import json
import subprocess
import sys
from pathlib import Path

from pipeline.features.identity.source import SOURCE_NOTE
from pipeline.features.store.units import CHUNK_ROWS
from tests.pipeline.features.encode.drivers import write_one_view
from tests.tower import tiny_tower

KILLS = 30


def files(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and ".partial" not in path.name
    }


def test_thirty_kills_change_no_byte_and_encode_no_unit_twice(tmp_path):
    manifest = write_one_view(tmp_path / "dataset", (2 * CHUNK_ROWS, 100, 100))
    command = [sys.executable, "-m", "tests.pipeline.features.encode.kill_embedding"]
    arguments = [str(manifest), str(tmp_path), tiny_tower(), str(KILLS), "0"]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    seen = json.loads(done.stdout)
    assert seen["killed"] == KILLS
    assert seen["went_on_with_commits"] >= 5  # else the kills came before anything was committed
    assert seen["rewritten"] == 0
    reference = files(tmp_path / "reference.zarr")
    assert SOURCE_NOTE in reference
    for number in range(seen["stores"]):
        assert files(tmp_path / f"killed-{number}.zarr") == reference
