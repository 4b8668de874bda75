"""MAE's loss against a loop over patches."""

import pytest
import torch

from ssl_core.losses import masked_patch_error, unstandardised


@pytest.mark.parametrize("normalised", [True, False])
def test_is_the_mean_over_hidden_patches(normalised: bool) -> None:
    torch.manual_seed(0)
    predicted, target = torch.randn(2, 5, 7).double(), torch.randn(2, 5, 7).double()
    masked = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1]])
    expected: list[float] = []
    for sample in range(2):
        errors: list[float] = []
        for patch in range(5):
            pixels = target[sample, patch]
            if normalised:
                pixels = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            if masked[sample, patch]:
                errors.append(float(((predicted[sample, patch] - pixels) ** 2).mean()))
        expected.append(sum(errors) / len(errors))
    assert masked_patch_error(predicted, target, masked, normalised=normalised).tolist() == pytest.approx(expected)


def test_a_perfect_prediction_of_standardised_patches_is_shown_as_the_patches() -> None:
    target = torch.rand(2, 5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    standardised = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(unstandardised(standardised, target), target)
