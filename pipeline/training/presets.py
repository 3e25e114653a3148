"""The named experiments. A preset is a function; `--set` changes single fields of it.

`proj96` and `proj192` are the original design's two runs; `demo` is small enough for two CPU cores.
"""

from collections.abc import Callable, Collection
from typing import Final

from pipeline.errors import ConfigError
from pipeline.training.config import OptimizerConfig, TrainConfig
from policy.agent import AgentConfig
from policy.network.head import HeadConfig
from policy.network.readers import InstructionReaderConfig, ReaderConfig
from policy.objectives.meanflow import ImprovedMeanFlowConfig


def proj96() -> TrainConfig:
    """Return the original run with views projected to 96 features."""
    return TrainConfig(preset="proj96")


def proj192() -> TrainConfig:
    """Return the original run with views projected to 192 features."""
    readers = {"pooled": ReaderConfig(projection_dim=192)}
    return TrainConfig(preset="proj192", agent=AgentConfig(readers=readers))


def grid96() -> TrainConfig:
    """Return the original sizes on a spatial grid instead of the pooled feature."""
    return TrainConfig(preset="grid96", agent=AgentConfig(readers={"grid": ReaderConfig()}))


def demo() -> TrainConfig:
    """Return a run that two CPU cores finish in minutes on one scripted task."""
    grid, head = {"grid": ReaderConfig()}, HeadConfig(n_emb=128, n_layer=4)
    near_noise = ImprovedMeanFlowConfig(time_logit_mean=1.0)  # why: policy/objectives/README.md
    return TrainConfig(
        preset="demo",
        agent=AgentConfig(readers=grid, obs_horizon=1, head=head, objective=near_noise),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=50),
        steps=2_100,
        batch_size=32,
        log_every=20,
        validate_every=300,
        checkpoint_every=300,
    )


def multitask() -> TrainConfig:
    """Return a run on several tasks, whose instructions name the one to do."""
    base = demo()
    return base.model_copy(
        update={
            "preset": "multitask",
            "agent": base.agent.model_copy(update={"language": InstructionReaderConfig()}),
            "balance_instructions": True,
            "steps": 6_000,
            "validate_every": 1_000,
            "checkpoint_every": 1_000,
        }
    )


def debug() -> TrainConfig:
    """Return a run of seconds that shows whether everything fits together, and learns nothing."""
    return TrainConfig(
        preset="debug",
        agent=AgentConfig(
            readers={"pooled": ReaderConfig(projection_dim=8)},
            cond_dim=16,
            head=HeadConfig(n_emb=64, n_layer=2, pred_horizon=8),
        ),
        optimizer=OptimizerConfig(warmup_steps=2),
        steps=8,
        batch_size=8,
        log_every=1,
        validate_every=4,
        checkpoint_every=4,
    )


PRESETS: Final[dict[str, Callable[[], TrainConfig]]] = {
    preset.__name__: preset for preset in (proj96, proj192, grid96, demo, multitask, debug)
}


def preset_for(features: Collection[str], *, has_instructions: bool = False) -> str:
    """Name a preset to begin with that reads none but these features; `proj96` if none does.

    `has_instructions`: whether there are vectors of several instructions.
    """
    names = ["multitask"] if has_instructions else []
    names += ["demo", *(name for name in PRESETS if name != "multitask")]
    fitting = (name for name in names if PRESETS[name]().agent.readers.keys() <= set(features))
    return next(fitting, "proj96")


def preset_config(name: str) -> TrainConfig:
    """Return the configuration of a preset (ConfigError: there is no preset of that name)."""
    if name not in PRESETS:
        raise ConfigError(f"--preset: expected one of {', '.join(PRESETS)}, found {name!r}")
    return PRESETS[name]()
