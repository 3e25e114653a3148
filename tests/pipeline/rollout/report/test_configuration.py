"""Flattening settings for the table."""

from pipeline.rollout.report.rollouts import flatten


def test_groups_become_dotted_names_and_plain_lists_stay_one_field():
    content = {
        "steps": 8,
        "agent": {"head": {"n_layer": 2, "positions": "rotary"}},
        "betas": [0.9, 0.95],
        "stores": [{"name": "a"}, {"name": "b", "weight": None}],
        "empty": {},
        "none": [],
    }
    assert flatten(content) == {
        "steps": "8",
        "agent.head.n_layer": "2",
        "agent.head.positions": "rotary",
        "betas": "[0.9, 0.95]",
        "stores.0.name": "a",
        "stores.1.name": "b",
        "stores.1.weight": "null",
        "empty": "{}",
        "none": "[]",
    }
