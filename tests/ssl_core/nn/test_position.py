"""The sine-cosine position embedding against its definition, scalar by scalar."""

import math

import pytest
import torch

from ssl_core.nn.position import sincos_position_embedding


@pytest.mark.parametrize(("rows", "cols", "dim"), [(2, 3, 8), (4, 4, 4), (1, 7, 12), (14, 14, 64)])
def test_every_number_is_the_definition(rows: int, cols: int, dim: int) -> None:
    embedding = sincos_position_embedding(rows, cols, dim)
    assert embedding.shape == (rows * cols, dim)
    assert embedding.dtype == torch.float32
    quarter = dim // 4
    for y in range(rows):
        for x in range(cols):
            expected: list[float] = []
            for position in (x, y):
                angles = [position * 10000 ** (-k / quarter) for k in range(quarter)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            assert embedding[y * cols + x].tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("dim", [2, 6, 191])
def test_a_width_that_has_no_quarters_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim={dim} must be a multiple of 4"):
        sincos_position_embedding(2, 2, dim)
