"""Losses: pure functions of tensors and floats; the caller gathers."""

from ssl_core.losses.contrastive import MIN_TEMPERATURE, info_nce, info_nce_partial, nt_xent, nt_xent_partial
from ssl_core.losses.reconstruction import masked_patch_error, unstandardised

__all__ = [
    "MIN_TEMPERATURE",
    "info_nce",
    "info_nce_partial",
    "masked_patch_error",
    "nt_xent",
    "nt_xent_partial",
    "unstandardised",
]
