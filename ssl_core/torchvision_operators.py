"""Makes torchvision importable beside a CPU build of torch; does nothing on an install whose operators load.

torchvision's Linux wheels on the package index are CUDA builds. Beside a CPU torch their operator library cannot load,
and then `import torchvision` itself fails with `operator torchvision::nms does not exist`, because it registers shape
functions for operators that nobody declared. timm imports torchvision, so it fails too. Declaring the missing schemas
first makes both importable; models and transforms work, the operators themselves (`torchvision.ops.nms`) and
torchvision's decoders do not, and nothing here uses them.

Call `declare_missing()` before the first import of torchvision or timm.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_NEEDED_TO_IMPORT = ("nms", "qnms")  # those that torchvision's Python modules register shape functions for

_declared: list[torch.library.Library] = []  # a Library's schemas live as long as the object does


def declare_missing() -> tuple[str, ...]:
    """Declare the operators without which torchvision cannot be imported.

    An install whose operators load is left alone: the library is loaded here as torchvision would load it a moment
    later, so that nothing is declared twice. A second call, or one after torchvision was imported, does nothing.

    Returns:
        The names of the operators declared by this call.
    """
    if "torchvision" in sys.modules or find_spec("torchvision") is None or not _missing():
        return ()
    _load_operators()
    missing = _missing()
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(name + _SCHEMA)
        _declared.append(library)
    return missing


def _missing() -> tuple[str, ...]:
    return tuple(name for name in _NEEDED_TO_IMPORT if not hasattr(torch.ops.torchvision, name))


def _load_operators() -> None:
    """Load torchvision's operator library without importing torchvision (`torchvision/extension.py` does the same)."""
    package = find_spec("torchvision")
    assert package is not None
    library = PathFinder.find_spec("_C", package.submodule_search_locations)
    if library is None or library.origin is None:
        return
    try:
        torch.ops.load_library(library.origin)
    except OSError:  # a CUDA build beside a CPU torch: libtorch_cuda is not there
        return
