"""The house rules that no linter knows, read from the source with `ast`; each must find the faults planted for it.

What a general tool can check is in pyproject.toml: import layers (import-linter), style (ruff), types (pyright).
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssl_core.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipelines", "ssl_core", "cluster", "configs")

GLOBAL_GENERATOR = re.compile(
    r"(random|numpy\.random)(\..*)?"
    r"|torch\.(rand|randn|randint|rand_like|randn_like|randint_like|randperm|normal|bernoulli|multinomial|poisson)"
    r"|torch\.(seed|manual_seed|initial_seed|get_rng_state|set_rng_state|default_generator|Generator)"
    r"|torch\.(cuda|random)\.(?!fork_rng).*(seed|rng).*"
    r"|torch\.nn\.(functional\.)?(alpha_|feature_alpha_)?dropout.*",
    re.IGNORECASE,
)
DRAWS_IN_PLACE = {
    "normal_",
    "uniform_",
    "bernoulli_",
    "random_",
    "exponential_",
    "cauchy_",
    "log_normal_",
    "geometric_",
}
MAY_DRAW = dict[str, str]()  # file → why it may use a global generator outside `torch.random.fork_rng`
SAYS_NOTHING = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "managers"}
RUNS_ON_IMPORT = {"torchvision_operators.declare_missing()"}  # the one exception, see that module

Rule = Callable[[str, ast.Module], Iterator[str]]


def dotted_names(tree: ast.AST, module: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, and of every attribute of something imported, below `tree`."""
    full: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            full |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names if alias.asname}
            full |= {alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names if not alias.asname}
        elif isinstance(node, ast.ImportFrom):
            full |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute | ast.Name):
            first, *rest = ast.unparse(node).split(".")
            if first in full:
                yield node.lineno, ".".join([full[first], *rest])


def distributed_only_in_collectives(path: str, tree: ast.Module) -> Iterator[str]:
    """`torch.distributed` is known to ssl_core/collectives.py alone."""
    if path != "ssl_core/collectives.py":
        yield from (
            f"{path}:{n} {name}" for n, name in dotted_names(tree, tree) if name.startswith("torch.distributed")
        )


def no_global_generator(path: str, tree: ast.Module) -> Iterator[str]:
    """Random numbers come from `ssl_core.rng`; initial weights are drawn inside `with torch.random.fork_rng(…)`."""
    if path in MAY_DRAW:
        return
    forked = [
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and any("torch.random.fork_rng(" in ast.unparse(item) for item in node.items)
    ]
    found = [(line, name) for line, name in dotted_names(tree, tree) if GLOBAL_GENERATOR.fullmatch(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in DRAWS_IN_PLACE:
            owner = ast.unparse(node.value)
            if owner != "init" and not owner.endswith("nn.init"):
                found.append((node.lineno, f"{owner}.{node.attr}"))
    yield from (f"{path}:{n} {name}" for n, name in found if not any(n in lines for lines in forked))


def names_say_something(path: str, tree: ast.Module) -> Iterator[str]:
    """No file, folder or class is called utils, helpers, common, misc or manager."""
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    words = re.split(r"[/_.]", path) + [word for name in classes for word in re.findall("[A-Z][a-z]+", name)]
    yield from (f"{path}: {word}" for word in words if word.lower() in SAYS_NOTHING)


def losses_import_torch_alone(path: str, tree: ast.Module) -> Iterator[str]:
    """A loss is a pure function of tensors: torch, the standard library and other losses."""
    if not path.startswith("ssl_core/losses/"):
        return
    for line, name in dotted_names(tree, tree):
        if name.split(".")[0] not in {"torch", *sys.stdlib_module_names} and not name.startswith("ssl_core.losses"):
            yield f"{path}:{line} {name}"


def importing_does_nothing(path: str, tree: ast.Module) -> Iterator[str]:
    """At module level nothing is called for its effect, and nothing of another module is changed."""
    for node in tree.body:
        effect = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
        )
        changes = any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)
        runs = isinstance(node, ast.For | ast.While | ast.With)
        if (effect or changes or runs) and ast.unparse(node) not in RUNS_ON_IMPORT:
            yield f"{path}:{node.lineno} {ast.unparse(node)[:60]}"


def no_pickle(path: str, tree: ast.Module) -> Iterator[str]:
    """Nothing is unpickled: safetensors, or `torch.load(…, weights_only=True)`."""
    for line, name in dotted_names(tree, tree):
        if re.match(r"(pickle|joblib|dill|cloudpickle|shelve)(\.|$)|yaml\.(unsafe_|full_)?load(_all)?$", name):
            yield f"{path}:{line} {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            unsafe = ast.unparse(node.func) == "torch.load" and keywords.get("weights_only") != "True"
            if unsafe or keywords.get("allow_pickle") == "True":
                yield f"{path}:{node.lineno} {ast.unparse(node.func)}"


RULES: tuple[Rule, ...] = (
    distributed_only_in_collectives,
    no_global_generator,
    names_say_something,
    losses_import_torch_alone,
    importing_does_nothing,
    no_pickle,
)

PLANTED: list[tuple[Rule, str, str]] = [
    (distributed_only_in_collectives, "ssl_core/train/step.py", "import torch.distributed as dist"),
    (distributed_only_in_collectives, "ssl_core/train/step.py", "from torch import distributed"),
    (distributed_only_in_collectives, "pipelines/worker.py", "import torch\ndef f(): torch.distributed.barrier()"),
    (no_global_generator, "ssl_core/views/masks.py", "import numpy as np\ndef f(): return np.random.rand(3)"),
    (no_global_generator, "ssl_core/data/order.py", "from random import shuffle"),
    (no_global_generator, "ssl_core/nn/heads.py", "import torch\ndef f(): torch.manual_seed(0)"),
    (no_global_generator, "ssl_core/nn/heads.py", "from torch import randn as draw\ndef f(): return draw(3)"),
    (no_global_generator, "ssl_core/nn/heads.py", "from torch import nn\ndef f(): return nn.Dropout(0.1)"),
    (no_global_generator, "ssl_core/nn/heads.py", "def f(weight): weight.normal_()"),
    (names_say_something, "ssl_core/data/tar_utils.py", ""),
    (names_say_something, "ssl_core/data/cache.py", "class CacheManager: ..."),
    (losses_import_torch_alone, "ssl_core/losses/siamese.py", "from ssl_core.collectives import Collectives"),
    (losses_import_torch_alone, "ssl_core/losses/siamese.py", "import numpy as np"),
    (importing_does_nothing, "ssl_core/nn/heads.py", "import torch\ntorch.set_num_threads(1)"),
    (importing_does_nothing, "ssl_core/nn/heads.py", "import os\nos.environ['A'] = '1'"),
    (no_pickle, "ssl_core/train/checkpoint.py", "import torch\ndef f(p): return torch.load(p)"),
    (no_pickle, "ssl_core/train/checkpoint.py", "import numpy as np\ndef f(p): return np.load(p, allow_pickle=True)"),
    (no_pickle, "pipelines/serving.py", "import cloudpickle"),
    (no_pickle, "pipelines/config.py", "import yaml\ndef f(p): return yaml.load(p)"),
]

ALLOWED: list[tuple[Rule, str, str]] = [
    (
        no_global_generator,
        "a.py",
        "import torch\ndef f():\n with torch.random.fork_rng(devices=[]):\n  torch.manual_seed(0)",
    ),
    (no_global_generator, "a.py", "from torch import nn\ndef f(weight): nn.init.normal_(weight)"),
    (no_global_generator, "a.py", "from ssl_core import rng\ndef random(x): return rng.random_bits(x, 1)"),
    (importing_does_nothing, "a.py", '"""Docstring."""\nX: int = 1\nif __name__ == "__main__":\n    print(X)'),
    (no_pickle, "a.py", "import torch\ndef f(p): return torch.load(p, weights_only=True)"),
]


def test_rules_hold() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 20
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}
    assert [fault for rule in RULES for path, tree in trees.items() for fault in rule(path, tree)] == []


@pytest.mark.parametrize(("rule", "path", "source"), PLANTED)
def test_rule_finds_a_planted_fault(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, ast.parse(source)))


@pytest.mark.parametrize(("rule", "path", "source"), ALLOWED)
def test_rule_lets_good_code_pass(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, ast.parse(source))) == []


def test_configs_hold_values_only() -> None:
    trees = sorted((ROOT / "configs").rglob("*.yaml"))
    assert trees
    assert [path.name for path in trees if "_target_" in path.read_text(encoding="utf-8")] == []


def test_every_method_has_its_line_its_config_and_its_test() -> None:
    files = {path.stem for path in (ROOT / "ssl_core/methods").glob("*.py")} - {"__init__", "base"}
    assert {str(entry.build.__module__).rsplit(".", 1)[1] for entry in METHODS.values()} == files
    assert {path.stem for path in (ROOT / "configs/method").glob("*.yaml")} == set(METHODS)
    assert {path.stem for path in (ROOT / "tests/ssl_core/methods").glob("test_*.py")} >= {
        f"test_{name}" for name in files
    }
