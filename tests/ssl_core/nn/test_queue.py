"""The queue: the last K rows, whatever the batch."""

import pytest
import torch

from ssl_core.nn.queue import EmbeddingQueue


@pytest.mark.parametrize(("length", "batch"), [(7, 3), (6, 3), (3, 7), (5, 5), (1, 2)])
def test_holds_the_last_rows_of_any_batch(length: int, batch: int) -> None:
    queue = EmbeddingQueue(length, 2)
    rows = torch.arange(batch * 4 * 2.0).view(-1, 2)
    for part in rows.split(batch):
        queue.put_(part, torch.tensor(True))
    assert sorted(queue.rows.tolist()) == sorted(rows[-length:].tolist())


def test_the_oldest_go_first() -> None:
    queue = EmbeddingQueue(5, 1)
    for part in torch.arange(9.0).view(3, 3, 1):
        queue.put_(part, torch.tensor(True))
    assert queue.rows[:, 0].tolist() == [5, 6, 7, 8, 4]
    assert int(queue.next) == 4


def test_begins_with_unit_rows() -> None:
    assert torch.allclose(EmbeddingQueue(9, 4).rows.norm(dim=1), torch.ones(9))


def test_rows_of_a_step_that_does_not_count_are_not_put_in() -> None:
    queue = EmbeddingQueue(5, 2)
    queue.put_(torch.ones(3, 2), torch.tensor(True))
    before = queue.rows.clone()
    queue.put_(torch.full((4, 2), torch.nan), torch.tensor(False))
    assert torch.equal(queue.rows, before)
    assert int(queue.next) == 3
