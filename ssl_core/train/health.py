"""Whether features still say anything: their spread, effective rank, alignment and uniformity.

What a loss curve does not show: an encoder that gives every image the same features can have a falling loss.

Legend: V views, N images, D features.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

_LEAST_SPREAD = 0.02
_LEAST_RANK = 1.5


@torch.no_grad()
def measure(features_VND: Tensor) -> dict[str, float]:
    """Describe the features of some images.

    Args:
        features_VND: one or more views of each of at least two images, as the encoder gives them.

    Returns:
        feature_std: standard deviation of a coordinate of unit-length features, times √D: 1 for features in all
            directions, 0 where all are the same (Chen and He, arXiv 2011.10566, section 4.1).
        effective_rank: RankMe, exp of the entropy of the singular values' shares, at most min(V · N, D) (Garrido et
            al., arXiv 2210.02885, eq. 1).
        uniformity: log of the mean of exp(−2 ‖x − y‖²) over pairs of first views; less is more uniform.
        alignment: mean ‖x − y‖² of two views of an image, where there are two (Wang and Isola, arXiv 2005.10242).
    """
    raw_RD = features_VND.flatten(0, 1).double()
    unit_VND = normalize(features_VND.double(), dim=2)
    spread = unit_VND.flatten(0, 1).std(0, unbiased=False).mean() * math.sqrt(raw_RD.shape[1])
    singular = torch.linalg.svdvals(raw_RD)
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    values = {
        "feature_std": float(spread),
        "effective_rank": float(torch.special.entr(share).sum().exp()),
        "uniformity": float(torch.pdist(unit_VND[0]).square().mul(-2).exp().mean().log()),
    }
    if len(unit_VND) > 1:
        values["alignment"] = float((unit_VND[0] - unit_VND[1]).square().sum(1).mean())
    return values


class CollapseWatch:
    """Says once, in words, that features have collapsed; again only after they had recovered."""

    def __init__(self) -> None:
        self._collapsed = False

    def complaint(self, values: Mapping[str, float]) -> str | None:
        """What to tell the user of these measurements, if anything."""
        collapsed = values["feature_std"] < _LEAST_SPREAD or values["effective_rank"] < _LEAST_RANK
        new, self._collapsed = collapsed and not self._collapsed, collapsed
        if not new:
            return None
        return (
            f"warning: the features collapse (feature_std {values['feature_std']:.3g} of 1, effective_rank "
            f"{values['effective_rank']:.3g}): images look alike to the encoder; lower optim.base_rate, lengthen "
            "optim.warmup, or look at the views and at method's temperature"
        )
