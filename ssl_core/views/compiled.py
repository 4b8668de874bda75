"""Loops over pixels as machine code.

`kept` is for what Python calls, `compiled` for what that calls in its turn. Results are the same bytes on every
processor. Indices are not checked: callers see to them.
"""

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from importlib import import_module
from pathlib import Path
from threading import Lock
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
    "nogil": True,  # Python's lock is not held
    "error_model": "numpy",  # division by zero is no exception
    # no value is infinite or NaN, and zero has no sign; sums are not reordered, nor a product and a sum made one
    "fastmath": {"nnan", "ninf", "nsz"},
}
_preparing = Lock()  # of `config`, which is one for all threads


def compiled(function: Function) -> Function:
    """A function of arrays and numbers that becomes part of the machine code of its callers."""
    compile_: Any = numba.njit
    return compile_(**OPTIONS)(function)


def kept(function: Function) -> Function:
    """Compile a function of arrays and numbers when it is first called, and keep the code for later processes.

    Where `code_folder` cannot be written or read, each process compiles its own.
    """
    made: Any = None

    @wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal made
        if made is None:
            made = _from_folder(function)
        try:
            return made(*arguments)
        except Exception:  # noqa: BLE001 (a file that a power failure cut, a full disk; the function's own comes again)
            shutil.rmtree(code_folder(function), ignore_errors=True)
            made = compiled(function)
            return made(*arguments)

    kept_: Any = call
    return kept_


def code_folder(function: Callable[..., Any]) -> Path:
    """Where a function's machine code lies: in `$NUMBA_CACHE_DIR`, else in this package's cache folder.

    Below that is a folder for each source file, set of options, version of the compiler and kind of processor. Numba
    itself looks at the file alone, and would mix up processors that share a folder.
    """
    source = Path(function.__code__.co_filename)
    kind = hashlib.sha256(source.read_bytes() if source.is_file() else b"")
    options = sorted((name, sorted(value) if isinstance(value, set) else value) for name, value in OPTIONS.items())
    processor = (
        config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
        config.CPU_FEATURES or llvmlite.binding.get_host_cpu_features().flatten(),
    )
    kind.update(repr((options, numba.__version__, llvmlite.__version__, processor)).encode())
    root = Path(config.CACHE_DIR) if config.CACHE_DIR else cache_folder() / "compiled"
    return root / kind.hexdigest()[:16]


def _from_folder(function: Callable[..., Any]) -> Any:
    """The function, which looks for its code in its folder when it is called, and leaves it there."""
    made: Any = compiled(function)
    with _preparing:
        before = config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES
        config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = str(code_folder(function)), "UserProvidedCacheLocator"
        try:
            with suppress(RuntimeError, AttributeError):  # the folder cannot be written; Numba is switched off
                made.enable_caching()
        finally:
            config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = before
    return made
