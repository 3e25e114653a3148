"""Presets and settings."""

import pytest

from pipeline.errors import ConfigError
from pipeline.training.config import with_settings
from pipeline.training.presets import PRESETS, preset_config
from policy.objectives.deterministic import MipConfig
from policy.objectives.diffusion import DiffusionConfig


@pytest.mark.parametrize(("name", "width"), [("proj96", 96), ("proj192", 192)])
def test_original_presets_are_the_designs(name, width):
    config = preset_config(name)
    agent = config.agent
    assert agent.projection_dim == width
    assert (agent.head.n_emb, agent.head.n_layer, agent.head.pred_horizon) == (384, 12, 16)
    assert (agent.num_action_steps, agent.obs_horizon, agent.cond_dim) == (8, 2, 384)
    assert config.steps == 50_000


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_carry_their_name(name):
    assert preset_config(name).preset == name


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match="proj96, proj192, demo, debug"):
        preset_config("proj48")


def test_settings_change_one_field_each():
    changed = with_settings(
        preset_config("debug"),
        ["steps=20", "agent.head.n_layer=3", "optimizer.schedule=constant"],
    )
    assert (changed.steps, changed.agent.head.n_layer) == (20, 3)
    assert changed.optimizer.schedule == "constant"
    assert changed.agent.projection_dim == preset_config("debug").agent.projection_dim


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


def test_settings_before_a_kind_may_only_be_valid_together():
    """Fewer steps than the warm-up takes are an error, unless the warm-up is shortened as well."""
    changed = with_settings(
        preset_config("proj96"),
        ["steps=20", "agent.objective.kind=mip", "optimizer.warmup_steps=2"],
    )
    assert (changed.steps, changed.agent.objective) == (20, MipConfig())


def test_a_field_of_another_kind_lists_the_ones_there_are():
    with pytest.raises(ConfigError, match="known here: kind, second_time"):
        with_settings(
            preset_config("debug"),
            ["agent.objective.kind=mip", "agent.objective.flow_share=0.5"],
        )


@pytest.mark.parametrize(
    ("setting", "pattern"),
    [
        ("steps", "want group.field=value"),
        ("stepz=3", "known here: preset, agent"),
        ("agent.head.layers=3", "n_layer"),
        ("agent.projection_dim.x=3", "want group.field=value"),
        ("preset=demo", "want group.field=value"),
        ("optimizer.learning_rate=inf", "finite"),
        ("optimizer.betas=[2, 2]", "less than 1"),
        ("agent.objective.time_logit_mean=nan", "finite"),
        ("seed=99999999999999999999999", "less than"),
        ("steps=-1", "steps: Input should be greater"),
        ("steps=many", "steps: Input should be a valid integer"),
        ("agent.num_action_steps=99", "num_action_steps=99, want 1..8"),
        ("steps=1", "warmup_steps=2, want fewer"),
        ("agent.objective.kind=mips", "expected tags: 'improved_meanflow', .*_jump', 'meanflow'"),
        ("agent.head.kind=mip", "known here: n_emb"),
        ("agent.objective.tangent=none", "'boundary' or 'velocity_head'"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(setting, pattern):
    with pytest.raises(ConfigError, match=pattern) as caught:
        with_settings(preset_config("debug"), [setting])
    assert "\n" not in str(caught.value)
