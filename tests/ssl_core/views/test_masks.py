"""Masks: permutations that are a function of their keys, each of the shape it is named for."""

import numpy as np
import pytest
import torch

from ssl_core import rng
from ssl_core.views.masks import MaskKind, visible_first

KINDS: tuple[MaskKind, ...] = ("random", "block", "grid")


def keys(count: int) -> torch.Tensor:
    return torch.from_numpy(rng.key(3, "mask", 0, np.arange(count)))


def hidden(kind: MaskKind, count: int, rows: int, cols: int, masked: int) -> np.ndarray:
    order = visible_first(kind, keys(count), rows=rows, cols=cols)
    mask = torch.ones(count, rows * cols).scatter(1, order[:, : rows * cols - masked], 0)
    return mask.view(count, rows, cols).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_is_a_permutation_of_its_key_alone(kind: MaskKind) -> None:
    order = visible_first(kind, keys(20), rows=5, cols=7)
    assert torch.equal(order.sort(1).values, torch.arange(35).expand(20, -1))
    assert torch.equal(visible_first(kind, keys(20)[11:12], rows=5, cols=7)[0], order[11])
    assert len({tuple(one) for one in order.tolist()}) == 20


def test_random_hides_every_patch_as_often() -> None:
    often = hidden("random", 4000, 4, 4, 12).mean(0)
    assert np.abs(often - 0.75).max() < 5 * np.sqrt(0.75 * 0.25 / 4000)


def test_a_block_is_a_rectangle_but_for_its_last_patches() -> None:
    for mask in hidden("block", 50, 14, 14, 100):
        y, x = np.nonzero(mask)
        box = (np.ptp(y) + 1) * (np.ptp(x) + 1)
        assert box - 100 < max(np.ptp(y), np.ptp(x)) * 2 + 2


def test_a_grid_shows_one_patch_of_each_two_by_two() -> None:
    for mask in hidden("grid", 50, 8, 8, 48):
        shown = 1 - mask
        assert (shown.reshape(4, 2, 4, 2).sum((1, 3)) == 1).all()
        assert len(np.unique(np.nonzero(shown)[0] % 2)) == 1
