"""The fields of a store, a run or a dataset that `vla-data info` shows."""

from contextlib import closing
from pathlib import Path

from pipeline.datasets.hub import HUB
from pipeline.datasets.manifest.draft import describe_data
from pipeline.datasets.manifest.reader import ManifestReader
from pipeline.features.identity.probe import Probe
from pipeline.features.store.feature_store import FeatureStore
from pipeline.features.store.layout import ROOT
from pipeline.storage.location import Location, on_disk, parse_location
from pipeline.storage.open import open_folder
from pipeline.training.run.checkpoint import checkpoint_steps
from pipeline.training.run.folder import read_probe, read_run
from pipeline.training.run.model_card import NOT_STATED, Fields, encoder_fields, run_fields


def describe(what: str) -> Fields:
    """Describe what a path, address or manifest (`.toml`) names, one plain value per field.

    Raises:
        DatasetError: it is none of them, or a dataset that does not read.
        StoreError: it is a store that this program does not read.
    """
    if what.startswith(HUB):
        return _describe_dataset(what)
    path = parse_location(what)
    if open_folder(path).exists(ROOT):
        return _describe_store(path)
    run = on_disk(path)
    if run is not None and (run / "run.json").is_file():
        return _describe_run(run)
    return _describe_dataset(what)


def _describe_dataset(what: str) -> Fields:
    loaded = describe_data(what)
    manifest = loaded.manifest
    with closing(ManifestReader(loaded)) as reader:
        episodes = range(reader.num_episodes)
        sizes = [(view, *reader.frame_size(0, view)) for view in reader.view_names]
        instructions = sorted({reader.instruction(episode) for episode in episodes})
        return {
            "kind": "dataset",
            "dataset": manifest.name,
            "format": ", ".join(place.format or "detected" for place in manifest.data_sources),
            "path": ", ".join(map(str, loaded.roots)),
            "episodes": len(episodes),
            "steps": sum(map(reader.episode_length, episodes)),
            "views": ", ".join(f"{view} {height}x{width}" for view, height, width in sizes),
            "fit": manifest.fit if manifest.resize else "as it is",
            "state": " + ".join(manifest.state.key_paths),
            "state_dim": reader.state(0).shape[1],
            "action": " + ".join(manifest.action.key_paths),
            "action_dim": reader.action(0).shape[1],
            "fps": manifest.fps,
            "instructions": " / ".join(instructions) or "none",
            "license": manifest.license or NOT_STATED,
        }


def _describe_store(path: Location) -> Fields:
    store = FeatureStore.open(path, allow_incomplete=True)
    attributes, steps = store.attributes, store.read_steps()
    digests = ("none until complete",) * 2
    if store.is_complete:
        digests = store.digest(), store.source_digest()
    return {
        "kind": "feature store",
        "complete": store.is_complete,
        "dataset": str(attributes.manifest.get("name", "not named")),
        "episodes": len(steps.episode_ends),
        "steps": store.num_rows,
        "source_weights": ", ".join(f"{source.weight:g}" for source in attributes.sources),
        "validation_episodes": (
            "the trainer's choice" if attributes.validation is None else len(attributes.validation)
        ),
        "views": ", ".join(attributes.view_names),
        "state_dim": steps.state.shape[1],
        "action_dim": steps.action.shape[1],
        "fps": attributes.fps,
        "fit": attributes.fit,
        "instructions": " / ".join(attributes.instructions) or "none",
        "text_encoder": attributes.text_encoder.name if attributes.text_encoder else "none",
        **encoder_fields(attributes.encoder),
        **_describe_probe(store.read_probe()),
        "codec": attributes.codec,
        "variants": attributes.num_variants,
        "digest": digests[0],
        "source_digest": digests[1],
    }


def _describe_run(path: Path) -> Fields:
    run = read_run(path)
    latest = max(checkpoint_steps(path), default=0)
    return {
        "kind": "training run",
        "complete": latest == run.config.steps,
        "step": latest,
        **run_fields(run),
        **_describe_probe(read_probe(path, run)),
    }


def _describe_probe(probe: Probe) -> Fields:
    environment = probe.environment
    fields = environment.model_dump() | {"hardware": ", ".join(environment.hardware)}
    return fields | {
        "torch": fields.pop("torch_version"),
        "environment_digest": environment.digest(),
        "probe": f"{len(probe.frames)} steps, {len(probe.real_frames)} of them real",
        "probe_digest": probe.digest(),
        "tolerance": probe.tolerance,
    }
