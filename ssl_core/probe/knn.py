"""Weighted k-nearest-neighbour classification by cosine similarity.

Wu et al., "Unsupervised feature learning via non-parametric instance discrimination" (arXiv 1805.01978, §3.4): each of
the k nearest training images votes for its class with weight exp(s / T), s its cosine similarity. Features are used as
the encoder gives them, not centred, as in DINO and lightly, so that numbers compare.

Legend: Q queries, N bank rows, D features.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ssl_core.probe.features import Features

_QUERY_TILE, _BANK_TILE = 1024, 4096  # similarities that exist at a time
_INDEX_BITS, _INDEX_MASK = 32, (1 << 32) - 1


def nearest(bank_ND: Tensor, queries_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar bank rows of each query, nearest first; of equally similar rows the one with the lower index.

    Memory: O(Q · k + tile) besides the features; no [Q, N] matrix exists.

    Args:
        bank_ND: float32 features, at least one row.
        queries_QD: float32 features.
        k: how many; the whole bank where it has fewer rows.

    Returns:
        cosine similarities float32 [Q, k] and bank indices int64 [Q, k].
    """
    k = min(k, len(bank_ND))
    queries_QD = normalize(queries_QD)
    best = torch.empty(len(queries_QD), 0, dtype=torch.int64, device=bank_ND.device)
    for first in range(0, len(bank_ND), _BANK_TILE):
        tile_ND = normalize(bank_ND[first : first + _BANK_TILE])
        kept = [
            _merged(best[rows : rows + _QUERY_TILE], queries_QD[rows : rows + _QUERY_TILE] @ tile_ND.T, first, k)
            for rows in range(0, len(queries_QD), _QUERY_TILE)
        ]
        best = torch.cat(kept) if kept else best
    return _similarity(best), _INDEX_MASK - (best & _INDEX_MASK)


def predict(
    similarity: Tensor, index: Tensor, bank_y: Tensor, *, num_classes: int, k: int, temperature: float
) -> Tensor:
    """Let the k nearest vote.

    Args:
        similarity: float32 [Q, ≥ k], nearest first, as `nearest` gives it.
        index: int64 [Q, ≥ k].
        bank_y: int64 [N], the bank's labels.
        num_classes: labels are below it.
        k: voters; all there are where there are fewer.
        temperature: T of the weights.

    Returns:
        int64 [Q]; of classes with equal votes the one with the lower number.
    """
    similarity, index = similarity[:, :k].double().cpu(), index[:, :k]
    # the greatest weight is 1 whatever T is; on the CPU, where sums have one order
    weights = torch.exp((similarity - similarity[:, :1]) / temperature)
    votes = torch.zeros(len(weights), num_classes, dtype=torch.float64)
    return votes.scatter_add_(1, bank_y[index].cpu(), weights).argmax(1).to(bank_y.device)


def knn_predict(bank: Features, queries_QD: Tensor, *, num_classes: int, k: int, temperature: float) -> Tensor:
    """Classify queries by their k nearest bank rows: int64 [Q]; see `nearest` and `predict`."""
    similarity, index = nearest(bank.x, queries_QD, k)
    return predict(similarity, index, bank.y, num_classes=num_classes, k=k, temperature=temperature)


def _merged(best: Tensor, similarity: Tensor, first: int, k: int) -> Tensor:
    """The k best of those so far and of a tile whose rows start at bank index `first`, as ranks: int64 [q, ≤ k]."""
    index = torch.arange(first, first + similarity.shape[1], device=similarity.device).expand_as(similarity)
    if similarity.shape[1] <= k:
        candidates = _ranks(similarity, index)
    else:
        values, places = similarity.topk(k + 1, 1)  # on floats, several times faster than ranking the whole tile
        candidates = _ranks(values[:, :k], first + places[:, :k])
        # which of equal rows at the edge topk took is its own affair: decide those by rank
        tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
        candidates[tied] = _ranks(similarity[tied], index[tied]).topk(k, 1).values
    ranks = torch.cat([best, candidates], 1)
    return ranks.topk(min(k, ranks.shape[1]), 1).values


def _ranks(similarity: Tensor, index: Tensor) -> Tensor:
    """int64 that order like (similarity, −index): the similarity's bits above, the reversed index below.

    No two are equal, so what is kept does not depend on tiles or on how a sort treats ties.
    """
    bits = (similarity + 0.0).view(torch.int32)  # + 0.0: there is one zero
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # floats order like these integers
    return (ordered << _INDEX_BITS) + (_INDEX_MASK - index)


def _similarity(ranks: Tensor) -> Tensor:
    """The similarities that ranks carry: the reverse of `_ranks`'s order-keeping map."""
    ordered = (ranks >> _INDEX_BITS).int()
    return torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)
