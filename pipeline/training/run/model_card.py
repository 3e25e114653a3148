"""The model card next to every checkpoint, in Markdown."""

from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from pipeline.training.run.folder import RunDescription

NOT_STATED: Final = "not stated"
"""What stands for words that a manifest leaves out."""


def model_card(
    description: RunDescription, agent: nn.Module, step: int, figures: Mapping[str, float]
) -> str:
    """Return the card of a checkpoint, with the parameters of `agent` and the latest figures."""
    config, data, encoder = description.config, description.data, description.data.encoder
    head = config.agent.head
    pretrained = "pretrained" if encoder.pretrained else "**not pretrained**"
    sizes = {part: _count(module) for part, module in agent.named_children() if _count(module)}
    rows = [
        *(
            (
                "task data",
                f"{store.name}, {data.fps:g} steps/s, store {store.digest[:12]}, weight "
                f"{store.weight:g}; {_stated(store.manifest)}",
            )
            for store in data.stores
        ),
        ("encoder", f"{encoder.name} at {encoder.revision}, {encoder.compute_dtype}, {pretrained}"),
        ("encoder fingerprint", encoder.fingerprint),
        ("views", ", ".join(description.spec.view_names)),
        ("state", f"{description.spec.state_dim} wide, {_units(data.stores[0].manifest, 'state')}"),
        (
            "action",
            f"{description.spec.action_dim} wide, {_units(data.stores[0].manifest, 'action')}",
        ),
        *(
            (
                f"feature {feature.name}",
                f"{'x'.join(map(str, feature.shape))} per view, projected to "
                f"{config.agent.readers[feature.name].projection_dim}",
            )
            for feature in encoder.features
        ),
        ("head", f"{head.n_layer} layers of {head.n_emb}, {head.residuals} residuals"),
        ("objective", config.agent.objective.kind),
        (
            "horizons",
            f"sees {config.agent.obs_horizon} steps, predicts {head.pred_horizon}, executes "
            f"{config.agent.num_action_steps}",
        ),
        ("preset", config.preset),
        ("began with", description.init_from or "weights from the seed"),
        ("optimizer steps", f"{step} of {config.steps}, {config.batch_size} windows each"),
        *((f"parameters: {part}", f"{size:,}") for part, size in sizes.items()),
        ("parameters: all", f"{sum(sizes.values()):,}"),
        *((name, f"{value:.5g}") for name, value in figures.items()),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"# {data.name}, {config.preset}, step {step}\n\n"
        f"A visuomotor policy on frozen features. `average.safetensors` holds the weights to roll "
        f"out; `agent.safetensors` and `optimizer.safetensors` are for resuming.\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def _stated(manifest: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {manifest.get(key, NOT_STATED)}" for key in ("source", "revision", "license")
    )


def _units(manifest: Mapping[str, Any], role: str) -> str:
    return f"units {manifest.get(role, {}).get('units', NOT_STATED)}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
