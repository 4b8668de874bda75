"""Loops over pixels as machine code."""

import hashlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import llvmlite.binding
import numba

from ssl_core.storage.local import cache_folder

Function = TypeVar("Function", bound=Callable[..., Any])
config: Any = import_module(
    "numba.core.config"
)  # its values are made as it is imported, so that types know none of them

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",  # division by zero is no exception
    # no value is infinite or NaN, and zero has no sign; sums are not reordered, nor a product and a sum made one
    "fastmath": {"nnan", "ninf", "nsz"},
}


def compiled(function: Function) -> Function:
    """Compile a function of arrays and numbers when it is first called; it runs without Python's lock.

    Results are the same bytes on every processor. The code is kept for later processes in `code_folder`; where that
    cannot be written each process compiles its own. Indices are not checked: callers see to them.
    """
    compile_: Any = numba.njit
    named = config.CACHE_DIR
    config.CACHE_DIR = str(code_folder(Path(function.__code__.co_filename)))
    try:
        return compile_(cache=True, **OPTIONS)(function)
    except RuntimeError:  # Numba found no folder that it may write to
        return compile_(**OPTIONS)(function)
    finally:
        config.CACHE_DIR = named


def code_folder(source: Path) -> Path:
    """Where the machine code of a file's functions lies: in `$NUMBA_CACHE_DIR`, else in this package's cache folder.

    Below that is a folder for each file, set of options, version of the compiler and kind of processor. Numba itself
    looks at the file alone, and would mix up processors that share a folder.
    """
    kind = hashlib.sha256(source.read_bytes() if source.is_file() else b"")
    options = sorted((name, sorted(value) if isinstance(value, set) else value) for name, value in OPTIONS.items())
    processor = (
        config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
        config.CPU_FEATURES or llvmlite.binding.get_host_cpu_features().flatten(),
    )
    kind.update(repr((options, numba.__version__, llvmlite.__version__, processor)).encode())
    root = Path(config.CACHE_DIR) if config.CACHE_DIR else cache_folder() / "compiled"
    return root / kind.hexdigest()[:16]
