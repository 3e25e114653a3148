"""SIGKILL at random moments: what was committed stays, and the end is byte-identical."""

import json
from pathlib import Path

from pipeline.features.identity.source import SOURCE_NOTE
from pipeline.features.store.units import CHUNK_ROWS
from tests.forked import start
from tests.pipeline.features.encode.drivers import write_one_view
from tests.tower import tiny_tower

PROGRAM = """
import runpy
runpy.run_module("tests.pipeline.features.encode.kill_embedding", run_name="__main__")
"""
KILLS = 16


def files(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and ".partial" not in path.name
    }


def test_kills_at_random_moments_change_no_byte_and_encode_no_unit_twice(tmp_path):
    manifest = write_one_view(tmp_path / "dataset", (2 * CHUNK_ROWS, 10, 10))
    output = tmp_path / "seen.json"
    arguments = [manifest, tmp_path, tiny_tower(), KILLS, 0]
    process = start(PROGRAM, *arguments, output=output)
    process.join()
    assert process.exitcode == 0, output.read_text()
    seen = json.loads(output.read_text().splitlines()[-1])
    assert seen["killed"] == KILLS
    assert seen["went_on_with_commits"] >= 5  # else the kills came before anything was committed
    assert seen["rewritten"] == 0
    reference = files(tmp_path / "reference.zarr")
    assert SOURCE_NOTE in reference
    for number in range(seen["stores"]):
        assert files(tmp_path / f"killed-{number}.zarr") == reference
