"""What a store or a run is, in a few fields, for `vla-data info`.

Knows stores and runs by their own descriptions; reads no features and no weights.
"""

from pathlib import Path

from pipeline.errors import RunError
from pipeline.features.store import FeatureStore
from pipeline.training.checkpoint import checkpoint_steps, read_run
from policy.spec import EncoderIdentity


def describe(path: Path) -> dict[str, str | int | float | bool]:
    """Describe the feature store or training run at `path`, one plain value a field.

    Raises:
        RunError: `path` is neither.
        StoreError: it is a store that this program does not read.
    """
    if (path / "zarr.json").is_file():
        return _describe_store(path)
    if (path / "run.json").is_file():
        return _describe_run(path)
    raise RunError(
        f"{path}: neither a feature store nor a training run; make one with vla-embed or vla-train"
    )


def _describe_store(path: Path) -> dict[str, str | int | float | bool]:
    store = FeatureStore.open(path, allow_incomplete=True)
    attributes, steps = store.attributes, store.read_steps()
    return {
        "kind": "feature store",
        "complete": store.is_complete,
        "dataset": str(attributes.manifest.get("name", "not named")),
        "episodes": len(steps.episode_ends),
        "steps": store.num_rows,
        "source_weights": ", ".join(f"{source.weight:g}" for source in attributes.sources),
        "heldout_episodes": (
            "the trainer's choice" if attributes.heldout is None else len(attributes.heldout)
        ),
        "views": ", ".join(attributes.view_names),
        "state_dim": steps.state.shape[1],
        "action_dim": steps.action.shape[1],
        "fps": attributes.fps,
        **_describe_encoder(attributes.encoder),
        "digest": store.digest() if store.is_complete else "none until complete",
    }


def _describe_run(path: Path) -> dict[str, str | int | float | bool]:
    run = read_run(path)
    steps = checkpoint_steps(path)
    latest = steps[-1] if steps else 0
    head = run.config.agent.head
    return {
        "kind": "training run",
        "complete": latest == run.config.steps,
        "preset": run.config.preset,
        "step": latest,
        "steps": run.config.steps,
        "dataset": run.data.name,
        "views": ", ".join(run.spec.view_names),
        "state_dim": run.spec.state_dim,
        "action_dim": run.spec.action_dim,
        "fps": run.data.fps,
        "projection_dim": run.config.agent.projection_dim,
        "head": f"{head.n_layer} layers of {head.n_emb}",
        **_describe_encoder(run.data.encoder),
        "store_digest": run.data.store_digest,
    }


def _describe_encoder(encoder: EncoderIdentity) -> dict[str, str | int | float | bool]:
    return {
        "encoder": encoder.name,
        "encoder_revision": encoder.revision,
        "encoder_pretrained": encoder.pretrained,
        "encoder_dtype": encoder.compute_dtype,
        "encoder_fingerprint": encoder.fingerprint,
    }
