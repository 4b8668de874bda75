"""Loops over pixels as machine code."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function of arrays and numbers when it is first called; it runs without Python's lock.

    The code is kept for later processes beside the source or, where that cannot be written, in the user's cache folder
    (`NUMBA_CACHE_DIR` names another). Results are the same on every processor: sums are not reordered, nor a product
    and a sum made one; what may be assumed is only that nothing is infinite or no number.
    """
    compile_: Any = numba.njit
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"nnan", "ninf", "nsz"}}
    try:
        return compile_(cache=True, **options)(function)
    except RuntimeError:  # there is no folder to keep it in: each process compiles its own
        return compile_(**options)(function)
