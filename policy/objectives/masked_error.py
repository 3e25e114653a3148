"""Squared errors over the valid steps of action chunks, and their adaptive weight."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def summed_error(
    predicted: Float[Tensor, "b horizon a"],
    target: Float[Tensor, "b horizon a"],
    valid: Bool[Tensor, "b horizon"],
) -> Float[Tensor, " b"]:
    """Return each row's squared error, summed over action dimensions and valid steps."""
    return masked((predicted - target).square(), valid).sum(dim=(1, 2))


def adaptively_weighted(
    error: Float[Tensor, " b"], power: float, constant: float
) -> Float[Tensor, " b"]:
    """Divide squared errors by their own (error + constant)^power, which has no gradient.

    Source: MeanFlow, arXiv 2505.13447. Power 0 leaves them; 0.5 makes them distances, for small
    constants; 1 gives each the same weight, whatever its size.
    """
    return error * (error.detach() + constant) ** -power


def mean_error(
    predicted: Float[Tensor, "b horizon a"],
    target: Float[Tensor, "b horizon a"],
    valid: Bool[Tensor, "b horizon"],
) -> Float[Tensor, ""]:
    """Return the squared error per valid action value, over the whole batch."""
    return summed_error(predicted, target, valid).sum() / num_values(target, valid)


def masked_rms(
    values: Float[Tensor, "b horizon a"], valid: Bool[Tensor, "b horizon"]
) -> Float[Tensor, ""]:
    """Return the root mean square of the valid values of the whole batch."""
    return (masked(values.square(), valid).sum() / num_values(values, valid)).sqrt()


def num_values(
    chunks: Float[Tensor, "b horizon a"], valid: Bool[Tensor, "b horizon"]
) -> Float[Tensor, ""]:
    """Return how many action values of the batch are valid, in the dtype of `chunks`."""
    return valid.to(chunks).sum() * chunks.shape[-1]


def masked(
    chunks: Float[Tensor, "b horizon a"], valid: Bool[Tensor, "b horizon"]
) -> Float[Tensor, "b horizon a"]:
    """Return the chunks with zeros at the steps that do not count, whatever their values."""
    return torch.where(valid[..., None], chunks, 0.0)
