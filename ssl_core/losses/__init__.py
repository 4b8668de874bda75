"""Losses: pure functions of tensors and floats; the caller gathers."""

from ssl_core.losses.contrastive import info_nce, nt_xent, nt_xent_partial

__all__ = ["info_nce", "nt_xent", "nt_xent_partial"]
