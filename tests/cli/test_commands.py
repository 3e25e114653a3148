"""The commands as a user meets them: their flags, and one line for every wrong input."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner, Result

import cli.data
import cli.embed
import cli.rollout
import cli.serve
import cli.train
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.units import SHARD_ROWS
from tests.pipeline.tiny import (
    complete_store,
    create_store,
    tiny_environment,
    tiny_identity,
    tiny_probe,
    write_dataset,
)
from tests.tower import tiny_tower

APPS = {
    "vla-embed": cli.embed.main,
    "vla-train": cli.train.main,
    "vla-rollout": cli.rollout.main,
    "vla-data": cli.data.main,
    "vla-serve": cli.serve.main,
}

RUN_NETWORKS = {
    "vla-embed": ("MANIFEST", "--store", "STORE"),
    "vla-train": ("STORE", "--preset", "debug", "--out", "RUN"),
    "vla-rollout": ("RUN", "--env", "metaworld/drawer-open-v3"),
    "vla-data verify": ("STORE",),
    "vla-serve": ("RUN",),
}
"""Commands that run a network, with words that get them as far as their device."""


def invoke(*words: object) -> Result:
    """Run a command in this process, which spares the seconds of loading torch."""
    command, *rest = map(str, words)
    return CliRunner().invoke(APPS[command], rest)


def refusal_line(exit_code: int, stderr: str) -> str:
    """Return the one line of a user's error; anything else fails."""
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert exit_code == 2, stderr
    assert "Traceback" not in stderr
    assert len(lines) == 1, stderr
    return lines[0]


def refusal(*words: object) -> str:
    """Run a command that must fail as a user's error, and return what it says."""
    result = invoke(*words)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return refusal_line(result.exit_code, result.stderr)


def flags(app: typer.Typer, name: str | None = None) -> set[str]:
    command = typer.main.get_command(app)
    if name is not None:
        command = command.commands[name]
    return {option for parameter in command.params for option in parameter.opts}


def subcommands(app: typer.Typer) -> list[str | None]:
    """Return the names of a command's own commands; one without any is its own."""
    return list(getattr(typer.main.get_command(app), "commands", {None: None}))


def test_flags_are_what_users_know():
    assert flags(cli.embed.main) == {
        "dataset",
        "--store",
        "--episodes",
        "--encoder",
        "--features",
        "--text-encoder",
        "--revision",
        "--device",
        "--variants",
        "--units",
        "--ray-workers",
        "--set",
    }
    assert flags(cli.train.main) == {
        "stores",
        "--out",
        "--preset",
        "--set",
        "--resume",
        "--init-from",
        "--seeds",
        "--device",
        "--track",
        "--rollout-env",
    }
    assert flags(cli.rollout.main) == {
        "run",
        "--env",
        "--episodes",
        "--seed",
        "--device",
        "--encoder",
        "--instruction",
        "--instruction-check",
        "--out",
        "--envs",
        "--checkpoint",
        "--videos",
        "--set",
    }
    assert flags(cli.data.main, "record") == {
        "--env",
        "--episodes",
        "--out",
        "--views",
        "--first-seed",
        "--render-size",
    }
    assert flags(cli.data.main, "info") == {"path", "--json"}
    assert flags(cli.data.main, "verify") == {
        "store",
        "--manifest",
        "--sample",
        "--seed",
        "--checksums",
        "--encoder",
        "--device",
    }
    assert flags(cli.data.main, "check") == {"dataset", "--json", "--sheet", "--episodes", "--all"}
    assert flags(cli.data.main, "init") == {"path", "--out"}


def test_every_command_that_runs_a_network_refuses_a_device_that_is_not_there(tmp_path):
    """So each has the option, and passes it on."""
    manifest, store = write_dataset(tmp_path, lengths=(2, 2)), tmp_path / "s.zarr"
    assert invoke("vla-embed", manifest, "--store", store, "--encoder", tiny_tower()).exit_code == 0
    words = ("vla-train", store, "--preset", "debug", "--out", tmp_path / "run", "--device", "cpu")
    assert invoke(*words).exit_code == 0

    places = {"MANIFEST": manifest, "STORE": store, "RUN": tmp_path / "run"}
    assert len(RUN_NETWORKS) == sum(
        "--device" in flags(app, name) for app in APPS.values() for name in subcommands(app)
    )
    for command, words in RUN_NETWORKS.items():
        typed = [*command.split(), *(places.get(word, word) for word in words)]
        line = refusal(*typed, "--device", "cuda:99")
        assert "device 'cuda:99': this machine and this torch have " in line, command
        assert "device: expected auto, cpu, cuda" in refusal(*typed, "--device", "gpu"), command


def test_a_setting_of_an_embedding_reaches_the_store_and_a_wrong_one_is_one_line(tmp_path):
    manifest, store = write_dataset(tmp_path, lengths=(2,)), tmp_path / "s.zarr"
    words = ("vla-embed", manifest, "--store", store, "--encoder", tiny_tower())
    for wrong, message in (
        ("codec=zip", "codec=zip: Input should be"),
        ("x=1", "compute_dtype, images"),
    ):
        assert f"--set {wrong}" in (said := refusal(*words, "--set", wrong))
        assert message in said
    chosen = ("--set", "codec=blosc", "--set", "shard_above=1", "--set", "compute_dtype=float32")
    assert invoke(*words, *chosen).exit_code == 0
    held = FeatureStore.open(store).attributes
    assert (held.codec, held.encoder.compute_dtype) == ("blosc", "float32")
    assert held.rows_per_unit == SHARD_ROWS


@pytest.mark.usefixtures("no_hub")
def test_hub_that_cannot_be_reached_names_the_ways_out(tmp_path):
    manifest = write_dataset(tmp_path, lengths=(2,))
    message = refusal("vla-embed", manifest, "--store", tmp_path / "s.zarr")
    assert "google/siglip2-base-patch16-256" in message
    assert "folder" in message
    assert "stand-in" in message
    assert not (tmp_path / "s.zarr").exists()


def test_wrong_manifests_and_data_leave_no_store(tmp_path):
    manifest = write_dataset(tmp_path / "good", lengths=(2,))
    store = tmp_path / "s.zarr"

    def refused(text: str) -> str:
        manifest.write_text(text)
        message = refusal("vla-embed", manifest, "--store", store, "--encoder", tiny_tower())
        assert not store.exists()
        return message

    text = manifest.read_text()
    assert "color" in refused("color = 1\n" + text)
    assert "elsewhere" in refused(text.replace('path = "data"', 'path = "elsewhere"'))
    message = refused(text.replace("images/r_vis", "images/wrist"))
    assert "wrist" in message
    assert "r_vis" in message  # the cameras that are there
    with h5py.File(tmp_path / "good/data/episode_0.hdf5", "r+") as file:
        file["observations/qpos"][1, 2] = np.nan
    assert "step 1" in refused(text)


def test_a_manifest_that_is_not_there_is_refused(tmp_path):
    message = refusal("vla-embed", tmp_path / "no.toml", "--store", tmp_path / "s.zarr")
    assert "no.toml" in message


def test_stores_that_cannot_be_trained_on_are_refused(tmp_path):
    unmade = refusal("vla-train", tmp_path, "--out", tmp_path / "run")
    assert "expected a feature store, found none" in unmade
    create_store(tmp_path / "s.zarr", (4, 4))
    message = refusal("vla-train", tmp_path / "s.zarr", "--out", tmp_path / "run")
    assert "0 of 1 units" in message
    assert not (tmp_path / "run").exists()


def test_wrong_settings_are_refused_before_anything_is_written(tmp_path):
    store = complete_store(tmp_path / "s.zarr")
    out = tmp_path / "run"
    assert "known" in refusal("vla-train", store.path, "--out", out, "--set", "lr=1")
    assert "proj96" in refusal("vla-train", store.path, "--out", out, "--preset", "large")
    assert not out.exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    message = refusal("vla-rollout", tmp_path, "--env", "metaworld/drawer-open-v3")
    assert "expected a training run, found none" in message
    assert "expected one of the formats" in refusal("vla-data", "info", tmp_path)


def test_a_disk_that_cannot_be_written_is_refused(tmp_path):
    store = complete_store(tmp_path / "s.zarr")
    (tmp_path / "file").write_text("")
    message = refusal("vla-train", store.path, "--preset", "debug", "--out", tmp_path / "file/run")
    assert "file/run" in message


def test_info_speaks_to_people_and_to_programs(tmp_path):
    store = complete_store(tmp_path / "s.zarr")
    people = invoke("vla-data", "info", store.path)
    programs = invoke("vla-data", "info", store.path, "--json")
    assert "steps" in people.stdout
    fields = json.loads(programs.stdout)
    assert fields["steps"] == 31
    assert fields["encoder_fingerprint"] == tiny_identity().fingerprint
    assert fields["features"] == "pooled 768"
    assert fields["digest"] == store.digest()
    assert fields["source_digest"] == store.source_digest()
    assert fields["hardware"] == "abacus"
    assert fields["threads"] == 1
    assert fields["environment_digest"] == tiny_environment().digest()
    assert fields["probe_digest"] == tiny_probe().digest()
    assert fields["tolerance"] == tiny_probe().tolerance
    assert all(name in people.stdout for name in fields)


def test_info_of_an_unfinished_store_says_so(tmp_path):
    create_store(tmp_path / "s.zarr", (4, 4))
    fields = json.loads(invoke("vla-data", "info", tmp_path / "s.zarr", "--json").stdout)
    assert not fields["complete"]
    assert fields["digest"] == fields["source_digest"] == "none until complete"


def test_verify_ends_with_1_where_something_is_wrong_and_2_where_it_cannot_tell(tmp_path):
    manifest = write_dataset(tmp_path, lengths=(2, 2))
    store, encoder = tmp_path / "s.zarr", ("--encoder", tiny_tower())
    assert invoke("vla-embed", manifest, "--store", store, *encoder).exit_code == 0

    good = invoke("vla-data", "verify", store, "--sample", 2, *encoder)
    assert good.exit_code == 0, good.output
    assert "100.0000%" in good.stdout
    assert "OK" in good.stdout
    with h5py.File(tmp_path / "data/episode_0.hdf5", "r+") as file:
        file["observations/images/top"][...] = 0
    bad = invoke("vla-data", "verify", store, *encoder)
    assert bad.exit_code == 1
    assert "2 frames of the dataset have changed since they were embedded" in bad.stdout

    assert invoke("vla-data", "verify", store, "--checksums").exit_code == 0
    path = store / "state/c/0/0"
    content = bytearray(path.read_bytes())
    content[7] ^= 4
    path.write_bytes(content)
    damaged = invoke("vla-data", "verify", store, "--checksums")
    assert damaged.exit_code == 1
    assert f"{store}: state: {store}/state: " in damaged.stdout

    unmade = refusal("vla-data", "verify", tmp_path, "--checksums")
    assert "expected a feature store, found none" in unmade
    assert "expected a feature store, found none" in refusal("vla-data", "verify", tmp_path)
    assert "--manifest" in refusal(
        "vla-data", "verify", complete_store(tmp_path / "tiny.zarr").path
    )


def test_the_agent_imports_no_store_and_embedding_and_training_no_simulator():
    code = (
        "import sys, policy.agent; "
        "print([m for m in ('zarr', 'h5py', 'mujoco', 'transformers') if m in sys.modules]); "
        "import cli.embed, cli.train; "
        "print([m for m in ('mujoco', 'metaworld', 'ray', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert result.stdout.split() == ["[]", "[]"]


def test_help_of_every_command_works():
    for words in (("vla-embed",), ("vla-train",), ("vla-rollout",), ("vla-data", "record")):
        assert "Usage" in invoke(*words, "--help").stdout
