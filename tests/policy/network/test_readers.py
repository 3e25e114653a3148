"""Feature readers, each against numpy or a pattern planted by hand."""

import numpy as np
import pytest
import torch

from policy.errors import AgentMismatchError
from policy.network.readers import (
    AttentionReaderConfig,
    GridReaderConfig,
    KeypointsReaderConfig,
    LinearReaderConfig,
    build_reader,
)

VIEWS = 2
ROWS, COLUMNS, CHANNELS = GRID = (3, 5, 4)


def make(config, shape):
    torch.manual_seed(0)
    return build_reader(config, name="grid", num_views=VIEWS, shape=shape)


def random_features(shape, steps: int = 40) -> np.ndarray:
    """[b, 2, VIEWS, *shape], with another mean and spread at every value."""
    numbers = np.random.default_rng(0)
    mean, std = numbers.normal(size=(VIEWS, *shape)), numbers.uniform(0.5, 3, (VIEWS, *shape))
    return (numbers.normal(size=(steps, 2, VIEWS, *shape)) * std + mean).astype(np.float32)


def fit(reader, features: np.ndarray) -> None:
    """Take the statistics of the features, value by value, as training does."""
    over = features.reshape(-1, *features.shape[2:]).astype(np.float64)
    mean, std = (torch.from_numpy(found).float() for found in (over.mean(0), over.std(0)))
    reader.standardizer.fit(mean, std)


def test_linear_standardizes_value_by_value_and_maps_each_view_by_its_own_matrix():
    reader, features = make(LinearReaderConfig(projection_dim=6), (10,)), random_features((10,))
    fit(reader, features)
    flat = features.reshape(-1, VIEWS, 10)
    standardized = (features - flat.mean(0)) / flat.std(0)
    found = reader(torch.from_numpy(features)).detach().numpy()
    for view, project in enumerate(reader.per_view):
        weight, bias = project.weight.detach().numpy(), project.bias.detach().numpy()
        expected = standardized[:, :, view] @ weight.T + bias
        np.testing.assert_allclose(found[:, :, view], expected, atol=2e-5)


def test_grid_standardizes_channel_by_channel_over_steps_and_positions_and_keeps_positions():
    reader, features = make(GridReaderConfig(projection_dim=6), GRID), random_features(GRID)
    fit(reader, features)
    found = reader(torch.from_numpy(features)).detach().numpy()
    for view, project in enumerate(reader.per_view):
        seen = features[:, :, view]
        over = seen.reshape(-1, CHANNELS)
        standardized = (seen - over.mean(0)) / over.std(0)
        weight, bias = project.weight.detach().numpy(), project.bias.detach().numpy()
        expected = standardized.reshape(*seen.shape[:2], -1) @ weight.T + bias
        np.testing.assert_allclose(found[:, :, view], expected, atol=2e-5)


def planted(row: int, column: int, channel: int, height: float = 100.0) -> torch.Tensor:
    """Zeros but for one value in the second view."""
    features = torch.zeros(1, 1, VIEWS, *GRID)
    features[0, 0, 1, row, column, channel] = height
    return features


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 1), (1, 4)])
def test_keypoints_are_the_row_and_column_of_a_planted_peak(row, column):
    """Rows and columns count from -1 to 1; a pattern without a peak lies in the middle."""
    reader = make(KeypointsReaderConfig(num_keypoints=2, projection_dim=4), GRID)
    with torch.no_grad():
        reader.patterns[1].weight.copy_(torch.eye(CHANNELS)[:2])
        reader.per_view[1].weight.copy_(torch.eye(4))
        reader.per_view[1].bias.zero_()
    found = reader(planted(row, column, channel=1))[0, 0, 1]
    expected = [0.0, 0.0, 2 * row / (ROWS - 1) - 1, 2 * column / (COLUMNS - 1) - 1]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


def test_attention_gathers_the_channels_of_a_planted_pattern_alone():
    """Two queries look for a channel each; the answer is the vector where it is strong."""
    config = AttentionReaderConfig(num_queries=2, projection_dim=2 * CHANNELS)
    reader = make(config, GRID)
    with torch.no_grad():
        reader.positions.zero_()
        reader.keys[1].weight.copy_(torch.eye(CHANNELS)[:2])  # channels 0 and 1 are the keys
        reader.queries[1].copy_(torch.eye(2))
        reader.per_view[1].weight.copy_(torch.eye(2 * CHANNELS))
        reader.per_view[1].bias.zero_()
    features = planted(0, 3, channel=0) + planted(2, 2, channel=1)
    features[0, 0, 1, 0, 3, 2:] = torch.tensor([5.0, -6.0])
    features[0, 0, 1, 2, 2, 2:] = torch.tensor([7.0, 8.0])
    expected = [100.0, 0.0, 5.0, -6.0, 0.0, 100.0, 7.0, 8.0]
    found = reader(features)[0, 0, 1]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        LinearReaderConfig(),
        GridReaderConfig(),
        KeypointsReaderConfig(),
        AttentionReaderConfig(),
    ],
    ids=lambda config: config.kind,
)
def test_every_reader_learns_from_every_view_by_weights_of_its_own(config):
    reader = make(config, GRID)
    found = reader(torch.from_numpy(random_features(GRID, steps=2)))
    assert found.shape == (2, 2, VIEWS, 96)
    found[:, :, 0].square().sum().backward()
    for name, parameter in reader.named_parameters():
        of_view = name.split(".")[1] if "." in name else None
        assert parameter.grad.any() == (of_view != "1"), name


@pytest.mark.parametrize(
    "config", [GridReaderConfig(), KeypointsReaderConfig(), AttentionReaderConfig()]
)
def test_a_reader_of_grids_refuses_a_vector_in_one_line(config):
    with pytest.raises(AgentMismatchError) as refused:
        build_reader(config, name="pooled", num_views=3, shape=(768,))
    (line,) = str(refused.value).splitlines()
    assert f"reader '{config.kind}' of feature `pooled`" in line
    assert "found shape [768]" in line
    assert 'kind="linear"' in line
