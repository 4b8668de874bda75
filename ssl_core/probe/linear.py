"""Linear classifiers on frozen, standardised features, with all labels or a share of them.

Everything here sees the labelled training set and nothing else. The L2 decay is chosen on a seeded fifth of the labels
that are used: the best held-out log-loss on a grid walked from strong to weak. Then all of these labels are fitted.
Below five labels a class a fifth says nothing, and the decay is fixed. Means, deviations and covariance of the features
come from all training images, also where few of their labels are used: they need no label.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ssl_core.data.splits import holdout_split, label_subset
from ssl_core.probe.features import Features
from ssl_core.probe.softmax import CurvatureBound, fit_softmax, logits

DECAYS = tuple(10 ** (1 - half / 2) for half in range(13))  # 10 … 1e-5
FEW_LABELS_DECAY = 1.0
MIN_LABELS_A_CLASS = 5  # on average, for the decay to be chosen
HELD_OUT = 0.2
_COARSE, _FINE = 1e-3, 1e-4  # tolerances of the fits that choose the decay and of the one that counts


@dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """Logits of (x − mean) / scale."""

    mean: Tensor  # float32 [D]
    scale: Tensor  # float32 [D]
    weights: Tensor  # float32 [C, D + 1], the bias last
    decay: float

    def predict(self, x_ND: Tensor) -> Tensor:
        """The most likely class of each row: int64 [N]."""
        return logits((x_ND - self.mean) / self.scale, self.weights).argmax(1)


class LinearProbe:
    """Fits classifiers on one encoder's training features.

    Args:
        train: features and labels to fit on.
        num_classes: labels are below it.
        seed: of the splits and subsets.
    """

    def __init__(self, train: Features, *, num_classes: int, seed: int) -> None:
        self._num_classes, self._seed = num_classes, seed
        self._mean = train.x.mean(0)
        deviation = (train.x - self._mean).square_().mean(0).sqrt_()
        # a feature that does not vary stays at 0; rounding can leave it a deviation of about 1e-7 of its size
        constant = deviation <= 1e-6 * self._mean.abs()
        self._scale = deviation.masked_fill(constant, torch.inf)
        self._x = (train.x - self._mean).div_(self._scale)
        self._y = train.y
        self._curvature = CurvatureBound(self._x)

    def fit(self) -> LinearClassifier:
        """With all labels."""
        return self._fit(self._x, self._y)

    def fit_subset(self, fraction: float, index: int) -> LinearClassifier:
        """With a stratified share of the labels, at least one a class.

        Args:
            fraction: which share, in (0, 1].
            index: which of the subsets of this size.
        """
        labels = self._y.cpu().numpy()
        chosen = label_subset(labels, fraction, classes=self._num_classes, seed=self._seed, index=index)
        rows = torch.from_numpy(chosen).to(self._x.device)
        return self._fit(self._x[rows], self._y[rows])

    def _fit(self, x_ND: Tensor, y_N: Tensor) -> LinearClassifier:
        start = x_ND.new_zeros(self._num_classes, x_ND.shape[1] + 1)
        decay = FEW_LABELS_DECAY
        if len(y_N) >= MIN_LABELS_A_CLASS * len(torch.unique(y_N)):
            decay, start = self._choose(x_ND, y_N, start)
        weights = fit_softmax(x_ND, y_N, start=start, decay=decay, curvature=self._curvature, tolerance=_FINE)
        return LinearClassifier(mean=self._mean, scale=self._scale, weights=weights, decay=decay)

    def _choose(self, x_ND: Tensor, y_N: Tensor, start: Tensor) -> tuple[float, Tensor]:
        """The decay with the lowest held-out log-loss, and the weights that it gave there."""
        kept, held = (
            torch.from_numpy(rows).to(x_ND.device)
            for rows in holdout_split(y_N.cpu().numpy(), HELD_OUT, seed=self._seed, purpose="probe.decay")
        )
        x_kept, y_kept, x_held, y_held = x_ND[kept], y_N[kept], x_ND[held], y_N[held]
        best_loss, best_decay, best_weights = torch.inf, DECAYS[0], start
        for decay in DECAYS:
            start = fit_softmax(x_kept, y_kept, start=start, decay=decay, curvature=self._curvature, tolerance=_COARSE)
            loss = float(cross_entropy(logits(x_held, start).double(), y_held))
            if loss >= best_loss:
                break  # weaker decays overfit more, and cost the most
            best_loss, best_decay, best_weights = loss, decay, start
        return best_decay, best_weights
