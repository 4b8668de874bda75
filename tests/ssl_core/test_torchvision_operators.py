"""torchvision and timm can be imported after `declare_missing`, and an install whose operators load is left alone."""

import subprocess
import sys

import pytest


def _python(code: str) -> list[str]:
    """Run code in a fresh process (what is imported here already must not matter) and return its lines."""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_timm_can_be_imported_after_the_declaration() -> None:
    lines = _python(
        "from ssl_core.torchvision_operators import declare_missing\n"
        "declare_missing()\n"
        "import timm, torch, torchvision.transforms.v2.functional as functional\n"
        "print(timm.create_model('test_resnet', num_classes=0).eval()(torch.zeros(1, 3, 32, 32)).ndim)\n"
        "print(functional.hflip(torch.tensor([[[1, 2]]])).tolist())\n"
        "print(declare_missing())\n"
    )
    assert lines == ["2", "[[[2, 1]]]", "()"]


@pytest.mark.parametrize(
    ("library_loads", "declared"),
    [(True, "()"), (False, "('nms', 'qnms')")],
    ids=["operators load", "operators missing"],
)
def test_declares_only_what_the_operator_library_does_not_bring(library_loads: bool, declared: str) -> None:
    lines = _python(
        "import torch\n"
        "from ssl_core.torchvision_operators import declare_missing\n"
        "kept = []\n"
        "def load_library(path):\n"  # in the place of torchvision's own C++ library
        f"    if not {library_loads}: raise OSError('libtorch_cuda.so: cannot open shared object file')\n"
        "    kept.append(torch.library.Library('torchvision', 'FRAGMENT'))\n"
        "    for name in ('nms', 'qnms'):\n"
        "        kept[0].define(name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "torch.ops.load_library = load_library\n"
        "print(declare_missing())\n"
        "print(declare_missing())\n"
    )
    assert lines == [declared, "()"]
