"""The action head: shapes, symmetries, and the derivative that the objective needs."""

import pytest
import torch

from policy.network.head import ActionHead, HeadConfig
from policy.network.layers import rotary_table, rotate
from tests.policy.objectives.analytic import forward_mode_derivative

ACTION_DIM, COND_DIM, NUM_COND, HORIZON = 3, 20, 2, 8


def random_head(dtype: torch.dtype = torch.float32, num_outputs=1) -> ActionHead:
    """A small head whose output is not zero, as it would be at the start."""
    torch.manual_seed(0)
    config = HeadConfig(n_emb=64, n_layer=2, pred_horizon=HORIZON)
    head = ActionHead(
        config,
        cond_dim=COND_DIM,
        num_cond_tokens=NUM_COND,
        action_dim=ACTION_DIM,
        num_outputs=num_outputs,
    )
    with torch.no_grad():
        head.predict.weight.normal_(std=64**-0.5)  # outputs of order 1, as normalized actions
        head.residuals.query.normal_(std=0.3)
    return head.to(dtype)


def random_inputs(batch: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, HORIZON, ACTION_DIM, generator=generator).to(dtype)
    t = torch.rand(batch, generator=generator).to(dtype)
    h = t * torch.rand(batch, generator=generator).to(dtype)
    cond = torch.randn(batch, NUM_COND, COND_DIM, generator=generator).to(dtype)
    return z, t, h, cond


def test_untrained_head_predicts_zero():
    head = ActionHead(
        HeadConfig(n_emb=64, n_layer=2), cond_dim=COND_DIM, num_cond_tokens=2, action_dim=3
    )
    z, t, h, cond = torch.randn(2, 16, 3), torch.rand(2), torch.rand(2), torch.randn(2, 2, COND_DIM)
    assert torch.equal(head(z, t, h, head.encode_condition(cond)), torch.zeros(2, 16, 3))


def test_design_sizes_give_the_published_parameter_count():
    """n_emb 384, n_layer 12: about 21.2 M in the blocks and 19.2 k in the depth mixer."""
    head = ActionHead(HeadConfig(), cond_dim=384, num_cond_tokens=2, action_dim=4)
    blocks = sum(parameter.numel() for parameter in head.blocks.parameters())
    assert blocks == pytest.approx(21.2e6, rel=0.01)
    assert sum(parameter.numel() for parameter in head.residuals.parameters()) == 2 * 25 * 384


@pytest.mark.parametrize("changed", ["z", "t", "h", "cond"])
def test_every_input_reaches_the_output(changed):
    head = random_head()
    inputs = dict(zip(["z", "t", "h", "cond"], random_inputs(2), strict=True))
    before = head(inputs["z"], inputs["t"], inputs["h"], head.encode_condition(inputs["cond"]))
    inputs[changed] = inputs[changed] * 0.5
    after = head(inputs["z"], inputs["t"], inputs["h"], head.encode_condition(inputs["cond"]))
    assert (before - after).abs().amax(dim=(1, 2)).min() > 1e-4


def test_batch_rows_do_not_mix():
    head = random_head(torch.float64)
    z, t, h, cond = random_inputs(4, torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    straight = head(z, t, h, head.encode_condition(cond))
    permuted = head(z[order], t[order], h[order], head.encode_condition(cond[order]))
    torch.testing.assert_close(permuted, straight[order])


def test_one_pass_equals_the_cached_condition():
    """The inference path: what a policy runs live must be what training computed."""
    head = random_head()
    z, t, h, cond = random_inputs(3)
    two_passes = head(z, t, h, head.encode_condition(cond))
    with torch.no_grad():
        one_pass = head(z, t, h, cond)
    torch.testing.assert_close(one_pass, two_passes, rtol=1e-5, atol=1e-5)


def test_positions_matter():
    """Without positions the reversed chunk would give the reversed answer."""
    head = random_head(torch.float64)
    z, t, h, cond = random_inputs(2, torch.float64)
    condition = head.encode_condition(cond)
    reversed_answer = head(z.flip(1), t, h, condition).flip(1)
    assert not torch.allclose(reversed_answer, head(z, t, h, condition), atol=1e-3)


def test_rotary_scores_depend_on_the_distance_alone():
    torch.manual_seed(0)
    table = rotary_table(12).double()
    query, key = torch.randn(2, 1, 1, 1, 64, dtype=torch.float64)

    def score(at_query: int, at_key: int) -> float:
        turned_query = rotate(query, table[:, at_query : at_query + 1])
        turned_key = rotate(key, table[:, at_key : at_key + 1])
        return float((turned_query * turned_key).sum())

    assert score(3, 1) == pytest.approx(score(9, 7))
    assert score(3, 1) != pytest.approx(score(3, 2))


def test_derivative_equals_torchs_forward_mode_and_central_differences():
    head = random_head(torch.float64)
    z, t, h, cond = random_inputs(3, torch.float64)
    condition = head.encode_condition(cond).detach()
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(2)).double()

    derivative = head.derivative(z, t, h, condition, direction)
    oracle = forward_mode_derivative(head, (z, t, h), condition, direction)
    torch.testing.assert_close(derivative, oracle, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        step = 1e-5
        ahead = head(z + step * direction, t + step, h + step, condition)
        behind = head(z - step * direction, t - step, h - step, condition)

    # Central differences err by step^2 (1e-10) and rounding 1e-16 / step (1e-11).
    torch.testing.assert_close(derivative, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of 64"):
        HeadConfig(n_emb=100)


def test_a_head_of_earlier_versions_still_loads_and_their_variants_are_refused():
    old = {"residuals": "full", "residual_block_size": 4, "positions": "rotary"}
    assert HeadConfig.model_validate(old) == HeadConfig()
    for variant in ({"residuals": "block"}, {"residuals": "prenorm"}, {"positions": "learned"}):
        with pytest.raises(ValueError, match=next(iter(variant))):
            HeadConfig.model_validate(old | variant)
