"""One linear projection a camera, from the tower's 768 features to the width of the experiment.

Knows features; nothing about the robot's state or the head.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policy.network.normalizer import FeatureStandardizer
from policy.spec import FEATURE_DIM


class ViewProjectors(nn.Module):
    """Standardises the features of each view and projects them with that view's own matrix."""

    def __init__(self, num_views: int, projection_dim: int):
        super().__init__()
        self.standardizer = FeatureStandardizer(num_views, FEATURE_DIM)
        self.per_view = nn.ModuleList(
            nn.Linear(FEATURE_DIM, projection_dim) for _ in range(num_views)
        )

    def forward(self, features: Float[Tensor, "b t v 768"]) -> Float[Tensor, "b t v p"]:
        """Project every view; raw features in, as the store keeps them."""
        standardised = self.standardizer(features)
        projected = [
            project(standardised[:, :, view]) for view, project in enumerate(self.per_view)
        ]
        return torch.stack(projected, dim=2)
