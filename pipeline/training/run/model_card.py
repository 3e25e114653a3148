"""A run in words: the fields that `vla-data info` shows, and the card next to every checkpoint."""

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from pipeline.training.run.folder import RunDescription
from policy.spec import EncoderIdentity

Fields = dict[str, str | int | float | bool]

NOT_STATED: Final = "not stated"
"""What stands for words that a manifest leaves out."""


def run_fields(run: RunDescription) -> Fields:
    """Return what a run is, one plain value per field."""
    config, data, spec, agent = run.config, run.data, run.spec, run.config.agent
    head, manifest, readers = agent.head, data.stores[0].manifest, agent.readers.items()
    return {
        "preset": config.preset,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "began_with": run.init_from or "weights from the seed",
        "dataset": data.name,
        "source": " / ".join(_stated(store.manifest) for store in data.stores),
        "stores": len(data.stores),
        "store_weights": ", ".join(f"{store.weight:g}" for store in data.stores),
        "views": ", ".join(spec.view_names),
        "state_dim": spec.state_dim,
        "state_units": manifest.get("state", {}).get("units", NOT_STATED),
        "action_dim": spec.action_dim,
        "action_units": manifest.get("action", {}).get("units", NOT_STATED),
        "fps": data.fps,
        "instructions": " / ".join(data.instructions) or "none",
        "text_encoder": data.text_encoder.name if data.text_encoder else "none",
        "readers": ", ".join(f"{name} to {one.projection_dim} per view" for name, one in readers),
        "head": f"{head.n_layer} layers of {head.n_emb}, {head.residuals} residuals",
        "objective": agent.objective.kind,
        "horizons": f"sees {agent.obs_horizon} steps, predicts {head.pred_horizon}, executes "
        f"{agent.num_action_steps}",
        **encoder_fields(data.encoder),
        "store_digests": ", ".join(store.digest for store in data.stores),
    }


def encoder_fields(encoder: EncoderIdentity) -> Fields:
    """Return what an encoder is, one plain value per field."""
    return {
        "encoder": encoder.name,
        "encoder_revision": encoder.revision,
        "encoder_pretrained": encoder.pretrained,
        "encoder_dtype": encoder.compute_dtype,
        "encoder_fingerprint": encoder.fingerprint,
        "features": ", ".join(
            f"{feature.name} {'x'.join(map(str, feature.shape))}" for feature in encoder.features
        ),
    }


def model_card(
    run: RunDescription, agent: nn.Module, step: int, figures: Mapping[str, float]
) -> str:
    """Return the card of a checkpoint in Markdown, with its parameters and latest figures."""
    sizes = {
        part: sum(parameter.numel() for parameter in module.parameters())
        for part, module in agent.named_children()
    }
    rows = {
        **run_fields(run),
        "instructions": len(run.data.instructions) or "none",
        **{f"parameters: {part}": f"{size:,}" for part, size in sizes.items() if size},
        "parameters: all": f"{sum(sizes.values()):,}",
        **{name: f"{value:.5g}" for name, value in figures.items()},
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"# {run.data.name}, {run.config.preset}, step {step}\n\n"
        f"A visuomotor policy on frozen features. `average.safetensors` holds the weights to roll "
        f"out; `agent.safetensors` and `optimizer.safetensors` are for resuming.\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def _stated(manifest: Mapping[str, Any]) -> str:
    source, *rest = (manifest.get(key, NOT_STATED) for key in ("source", "revision", "license"))
    return "{}, revision {}, license {}".format(source, *rest)
