"""The main job end to end, through the commands, on the real three-view simulator."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.cli.test_commands import invoke, refusal
from tests.forked import start
from tests.pipeline.features.encode.drivers import wait_until

TASK = "metaworld/handle-press-v3"  # solved in 35 to 41 steps
VIEWS = "corner,topview,gripperPOV"
SIZE = 64  # of pictures in pixels: rendering takes most of a step

INSTALLED = f"""
import runpy
runpy.run_path({str(Path(sys.executable).with_name("vla-rollout"))!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("way") / "recordings"
    words = ("--env", TASK, "--views", VIEWS, "--episodes", 2, "--out", out)
    words += ("--render-size", SIZE)
    result = invoke("vla-data", "record", *words)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def embedded(recorded):
    """Embed, be interrupted by Ctrl-C, and go on with the same command."""
    store = recorded.parent / "features.zarr"
    words = ["vla-embed", recorded / "manifest.toml", "--store", store]
    words += ["--encoder", "efficientnet-lite0", "--features", "pooled"]
    output = store.with_suffix(".txt")
    process = start("from cli.embed import main; main()", *words[1:], output=output)
    wait_until((store / "commits").is_dir)
    os.kill(process.pid, signal.SIGINT)
    process.join(600)
    stderr = output.read_text()
    assert process.exitcode == 130, stderr
    assert "the same command resumes" in stderr
    assert "Traceback" not in stderr
    assert not (store / "COMPLETE.json").exists()
    assert "units; run the same" in refusal("vla-train", store, "--out", store.parent / "no")

    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    assert "by efficientnet-lite0" in result.stdout
    return store


@pytest.fixture(scope="module")
def trained(embedded):
    """Train half the way, resume with the same command and finish."""
    out = embedded.parent / "run"
    words = ("vla-train", embedded, "--preset", "debug", "--out", out, "--set", "steps=40")
    words += ("--set", "checkpoint_every=10", "--set", "validate_every=40")
    program = "from cli.train import main; main()"
    process = start(program, *words[1:], output=out.with_suffix(".txt"))
    wait_until(lambda: any((out / "checkpoints").glob("step_*/checkpoint.json")))
    process.kill()
    process.join()

    assert "--resume" in refusal(*words)
    result = invoke(*words, "--resume")
    assert result.exit_code == 0, result.stderr
    assert "resumed at step" in result.stdout
    return out


@pytest.mark.sim
def test_the_way_from_demonstrations_to_a_rollout(trained):
    words = ("--env", TASK, "--episodes", 2)
    words += ("--set", "max_steps=12", "--set", f"render_size={SIZE}")
    output = trained.parent / "rolled_out.txt"
    process = start(INSTALLED, trained, *words, output=output)
    process.join(600)
    said = output.read_text()
    assert process.exitcode == 0, said
    assert "of 2 unseen episodes" in said
    assert "Wilson interval" in said
    path = trained / "rollouts/metaworld-handle-press-v3/result.json"
    found = json.loads(path.read_text())
    assert [episode["seed"] for episode in found["episodes"]] == [100_000, 100_001]
    assert [episode["steps"] for episode in found["episodes"]] == [12, 12]
    assert found["nfe"] == 1
    assert found["encoder"]["pretrained"]

    again = trained.parent / "again"
    assert invoke("vla-rollout", trained, *words, "--out", again).exit_code == 0
    repeated = json.loads((again / "result.json").read_text())
    assert repeated["episodes"] == found["episodes"]


@pytest.mark.sim
def test_the_run_and_the_store_describe_themselves(trained, embedded):
    store = json.loads(invoke("vla-data", "info", embedded, "--json").stdout)
    fields = json.loads(invoke("vla-data", "info", trained, "--json").stdout)
    assert store["complete"]
    assert store["episodes"] == 2
    assert fields["complete"]
    assert fields["store_digests"] == store["digest"]
    assert fields["encoder_fingerprint"] == store["encoder_fingerprint"]


@pytest.mark.sim
def test_a_policy_does_not_move_a_robot_it_was_not_trained_for(trained):
    seen = refusal("vla-rollout", trained, "--env", TASK, "--seed", 3)
    assert "recording may have used" in seen
    unknown = refusal("vla-rollout", trained, "--env", "metaworld/drawer-opne-v3")
    assert "drawer-open-v3" in unknown
