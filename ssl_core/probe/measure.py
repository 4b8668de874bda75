"""An accuracy and how far it may be off."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Measure:
    """An accuracy as a share of 1, and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        """In percent."""
        return f"{100 * self.value:.1f} ± {100 * self.error:.1f}"


def score(predictions: Tensor, labels: Tensor) -> Measure:
    """The mean accuracy of some classifiers that are alike, on the same queries.

    Its variance is that over queries (for one classifier p (1 − p) / Q, the binomial one) plus, of several, that over
    classifiers.

    Args:
        predictions: int64 [classifiers, Q].
        labels: int64 [Q].
    """
    correct = (predictions == labels).double()
    variance = float(correct.mean(0).var(unbiased=False)) / len(labels)
    if len(predictions) > 1:
        variance += float(correct.mean(1).var()) / len(predictions)
    return Measure(value=float(correct.mean()), error=math.sqrt(variance))
