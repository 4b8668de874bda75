"""A first-in, first-out queue of embeddings, of any length for any batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EmbeddingQueue(nn.Module):
    """The last `length` rows that were put in; part of the state that a checkpoint holds.

    Args:
        length: K rows.
        dim: D, their width.

    It begins with random unit rows, as in MoCo's code.
    """

    rows: Tensor
    next: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(nn.init.normal_(torch.empty(length, dim)), dim=1))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def put_(self, rows_ND: Tensor, keep: Tensor) -> None:
        """Replace the oldest rows; of more than K rows the last K stay. With a false `keep` nothing changes."""
        length = len(self.rows)
        kept_ND = rows_ND[-length:]
        first = self.next + (len(rows_ND) - len(kept_ND))
        index = (first + torch.arange(len(kept_ND), device=rows_ND.device)) % length
        self.rows[index] = torch.where(keep, kept_ND.to(self.rows.dtype), self.rows[index])
        self.next.copy_((self.next + len(rows_ND) * keep) % length)
