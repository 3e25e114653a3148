"""Presets and settings."""

import pytest

from pipeline.errors import ConfigError
from pipeline.training.config import with_settings
from pipeline.training.presets import PRESETS, preset_config
from policy.network.readers import ReaderConfig
from policy.objectives.deterministic import MipConfig
from policy.objectives.diffusion import DiffusionConfig
from policy.objectives.meanflow import ImprovedMeanFlowConfig


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("proj96", {"pooled": ReaderConfig(projection_dim=96)}),
        ("proj192", {"pooled": ReaderConfig(projection_dim=192)}),
        ("grid96", {"grid": ReaderConfig(projection_dim=96)}),
    ],
)
def test_presets_of_the_original_size_are_the_designs(name, readers):
    config = preset_config(name)
    agent = config.agent
    assert agent.readers == readers
    assert agent.objective == ImprovedMeanFlowConfig()
    assert (agent.state_scaling, agent.action_scaling) == ("range", "range")
    assert (agent.head.n_emb, agent.head.n_layer, agent.head.pred_horizon) == (384, 12, 16)
    assert (agent.num_action_steps, agent.obs_horizon, agent.cond_dim) == (8, 2, 384)
    assert (config.steps, config.batch_size, config.seed) == (50_000, 64, 0)


def test_the_demo_reads_a_grid_by_a_small_head():
    config = preset_config("demo")
    assert config.agent.readers == {"grid": ReaderConfig(projection_dim=96)}
    assert (config.agent.head.n_emb, config.agent.head.n_layer) == (128, 4)
    assert (config.agent.num_action_steps, config.agent.obs_horizon) == (8, 1)
    assert config.agent.objective == ImprovedMeanFlowConfig(time_logit_mean=1.0)
    assert (config.steps, config.batch_size) == (2_100, 32)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_carry_their_name(name):
    assert preset_config(name).preset == name


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match="proj96, proj192, grid96, demo, multitask, debug"):
        preset_config("proj48")


def test_settings_change_one_field_each():
    changed = with_settings(
        preset_config("debug"), ["steps=20", "agent.head.n_layer=3", "optimizer.schedule=constant"]
    )
    assert (changed.steps, changed.agent.head.n_layer) == (20, 3)
    assert changed.optimizer.schedule == "constant"
    assert changed.agent.readers == preset_config("debug").agent.readers


def test_another_kind_starts_from_its_own_defaults():
    changed = with_settings(
        preset_config("debug"),
        [
            "agent.objective.anchored_share=0.1",
            "agent.objective.kind=diffusion",
            "agent.objective.sampler=ddpm",
        ],
    )
    assert changed.agent.objective == DiffusionConfig(sampler="ddpm")
    assert changed.agent.head == preset_config("debug").agent.head


def test_another_feature_is_a_setting():
    changed = with_settings(preset_config("demo"), ["agent.readers.grid.projection_dim=5"])
    assert changed.agent.readers == {"grid": ReaderConfig(projection_dim=5)}
    changed = with_settings(preset_config("proj96"), ["agent.readers={grid={}}"])
    assert changed.agent == preset_config("grid96").agent


def test_settings_before_a_kind_may_only_be_valid_together():
    """Fewer steps than the warm-up takes are an error, unless the warm-up is shortened as well."""
    changed = with_settings(
        preset_config("proj96"),
        ["steps=20", "agent.objective.kind=mip", "optimizer.warmup_steps=2"],
    )
    assert (changed.steps, changed.agent.objective) == (20, MipConfig())


def test_a_field_of_another_kind_lists_the_ones_there_are():
    with pytest.raises(ConfigError, match="known fields: kind, second_time"):
        with_settings(
            preset_config("debug"), ["agent.objective.kind=mip", "agent.objective.flow_share=0.5"]
        )


@pytest.mark.parametrize(
    ("setting", "pattern"),
    [
        ("steps", "expected group.field=value"),
        ("stepz=3", "known fields: preset, agent"),
        ("agent.head.layers=3", "n_layer"),
        ("agent.readers.pooled.projection_dim.x=3", "expected group.field=value"),
        ("agent.readers.grid.projection_dim=5", "known fields: pooled"),
        ("agent.state_scaling=median", "'range', 'quantiles' or 'deviation'"),
        ("preset=demo", "expected group.field=value"),
        ("optimizer.learning_rate=inf", "finite"),
        ("optimizer.betas=[2, 2]", "less than 1"),
        ("agent.objective.time_logit_mean=nan", "finite"),
        ("seed=99999999999999999999999", "less than"),
        ("steps=-1", "steps: Input should be greater"),
        ("steps=many", "steps: Input should be a valid integer"),
        ("agent.num_action_steps=99", "num_action_steps: expected 1 to 8"),
        ("steps=1", "warmup_steps: expected fewer"),
        ("agent.objective.kind=mips", "expected tags: 'improved_meanflow', .*_jump', 'meanflow'"),
        ("agent.head.kind=mip", "known fields: n_emb"),
        ("agent.objective.tangent=none", "'boundary' or 'velocity_head'"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(setting, pattern):
    with pytest.raises(ConfigError, match=pattern) as caught:
        with_settings(preset_config("debug"), [setting])
    assert "\n" not in str(caught.value)
