"""Reconstruction losses, one number a sample."""

import torch
from torch import Tensor


def masked_patch_error(
    predicted_NTV: Tensor, target_NTV: Tensor, masked_NT: Tensor, *, normalised: bool = True
) -> Tensor:
    """Mean squared error on masked patches (MAE, arXiv 2111.06377, section 3 and appendix A).

    Args:
        predicted_NTV: a prediction for every patch.
        target_NTV: the patches' pixels.
        masked_NT: 1 where the patch was hidden; at least one a sample.
        normalised: compare with each patch standardised by its own mean and (unbiased) variance, ε = 1e-6.

    Returns:
        [N] in float32 or better.
    """
    with torch.autocast(predicted_NTV.device.type, enabled=False):
        target = target_NTV.to(torch.promote_types(target_NTV.dtype, torch.float32))
        if normalised:
            target = (target - target.mean(-1, keepdim=True)) / _deviation(target)
        error_NT = (predicted_NTV.to(target.dtype) - target).square().mean(-1)
        masked_NT = masked_NT.to(target.dtype)
        return (error_NT * masked_NT).sum(1) / masked_NT.sum(1)


def unstandardised(predicted_NTV: Tensor, target_NTV: Tensor) -> Tensor:
    """A prediction of standardised patches, as pixels, with the mean and deviation of the patch that it should be."""
    return predicted_NTV * _deviation(target_NTV) + target_NTV.mean(-1, keepdim=True)


def _deviation(patches_NTV: Tensor) -> Tensor:
    return (patches_NTV.var(-1, keepdim=True) + 1e-6).sqrt()
