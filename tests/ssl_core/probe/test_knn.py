"""k-NN against a naive transcription; ties, tiles and odd sizes."""

import math

import pytest
import torch
from torch import Tensor

from ssl_core.probe import knn
from ssl_core.probe.features import Features


def drawn(num_rows: int, num_features: int = 6, *, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, num_features, generator=torch.Generator().manual_seed(seed))


def naive(bank: Features, queries: Tensor, num_classes: int, k: int, temperature: float) -> list[int]:
    """Wu et al., §3.4, one query at a time."""
    result: list[int] = []
    for query in queries.double():
        similarity = [float(query @ row / (query.norm() * row.norm())) for row in bank.x.double()]
        nearest = sorted(range(len(similarity)), key=lambda i: -similarity[i])[:k]
        votes = [0.0] * num_classes
        for i in nearest:
            votes[int(bank.y[i])] += math.exp(similarity[i] / temperature)
        result.append(votes.index(max(votes)))
    return result


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (5, 0.07), (20, 0.1), (20, 10.0)])
def test_predictions_are_those_of_the_definition(k: int, temperature: float) -> None:
    bank = Features(x=drawn(60, seed=1) + 0.5, y=torch.arange(60) % 4)
    queries = drawn(25, seed=2) + 0.5
    found = knn.knn_predict(bank, queries, num_classes=4, k=k, temperature=temperature)
    assert found.tolist() == naive(bank, queries, 4, k, temperature)


@pytest.mark.parametrize(("query_tile", "bank_tile"), [(1, 1), (3, 7), (4, 100)])
def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch, query_tile: int, bank_tile: int) -> None:
    # rows of ±1 of norm 4: similarities are exact, so the same however the product is blocked, with many ties
    bank = drawn(50, 16).sign()
    queries = drawn(10, 16, seed=1).sign()
    whole = knn.nearest(bank, queries, 9)
    monkeypatch.setattr(knn, "_QUERY_TILE", query_tile)
    monkeypatch.setattr(knn, "_BANK_TILE", bank_tile)
    tiled = knn.nearest(bank, queries, 9)
    assert torch.equal(whole[1], tiled[1])
    assert torch.equal(whole[0], tiled[0])


def test_no_matrix_of_queries_by_bank_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_QUERY_TILE", 8)
    monkeypatch.setattr(knn, "_BANK_TILE", 16)
    largest = [0]

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # pyright: ignore (torch's hook has no types)
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest[0] = max(largest[0], result.numel())
            return result

    with Sizes():
        knn.nearest(drawn(400, 2), drawn(300, 2), 3)
    assert largest[0] <= 300 * 3  # the result


def test_of_equally_near_rows_those_with_the_lower_index_are_taken() -> None:
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
    similarity, index = knn.nearest(bank, torch.tensor([[1.0, 0.0], [0.0, -1.0]]), 3)
    assert index.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert similarity.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_similarities_come_back_exactly_with_either_sign() -> None:
    bank, queries = drawn(30), drawn(5, seed=3)
    similarity, index = knn.nearest(bank, queries, 30)
    unit = torch.nn.functional.normalize
    expected, order = (unit(queries) @ unit(bank).T).sort(1, descending=True)
    assert torch.equal(index, order)
    torch.testing.assert_close(similarity, expected, rtol=0, atol=1e-6)
    assert (similarity < 0).any()


def test_a_bank_smaller_than_k_votes_as_a_whole() -> None:
    bank = Features(x=drawn(7), y=torch.tensor([0, 1, 1, 1, 0, 1, 1]))
    similarity, index = knn.nearest(bank.x, drawn(3, seed=4), 200)
    assert index.shape == similarity.shape == (3, 7)
    assert knn.knn_predict(bank, drawn(3, seed=4), num_classes=2, k=200, temperature=100.0).tolist() == [1, 1, 1]


def test_of_equal_votes_the_lower_class_wins() -> None:
    bank = Features(x=torch.tensor([[1.0, 0.0], [1.0, 0.0]]), y=torch.tensor([2, 1]))
    query = torch.tensor([[3.0, 0.0]])
    assert knn.knn_predict(bank, query, num_classes=3, k=2, temperature=0.1).tolist() == [1]


def test_a_small_temperature_does_not_overflow() -> None:
    bank = Features(x=torch.tensor([[1.0, 1.0], [1.0, 0.0]]), y=torch.tensor([0, 1]))
    query = torch.tensor([[3.0, 0.0]])
    assert knn.knn_predict(bank, query, num_classes=2, k=2, temperature=1e-5).tolist() == [1]


def test_a_row_of_zeros_is_unlike_everything() -> None:
    similarity, _ = knn.nearest(drawn(4), torch.zeros(1, 6), 2)
    assert similarity.tolist() == [[0, 0]]
