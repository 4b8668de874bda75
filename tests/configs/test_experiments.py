"""Every recipe composes, can be planned and built, and means what its golden text says.

After an intended change: `python -m tests.configs.test_experiments` writes the golden texts again; read their diff.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

import ssl_core.data.data_set
from pipelines.config import compose
from pipelines.plan import Plan, make_plan
from ssl_core.data.manifest import Manifest, ShardInfo, Statistics
from ssl_core.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))
IMAGES = {"digits": 1438, "cifar10": 50_000, "imagenet": 1_281_167}


def manifest_of(experiment: str) -> Manifest:
    """A data set of the size that the recipe is for; no shard exists."""
    samples = IMAGES[experiment.rsplit("_", 1)[1]]
    return Manifest(
        root="nowhere",
        classes=("a", "b"),
        shards=(ShardInfo(name="shard-000000.tar", samples=samples, bytes=samples, sha256="0" * 64),),
        labelled_samples=samples,
        channels=3,
        width=(32, 32),
        height=(32, 32),
        statistics=Statistics(mean=(0.5,) * 3, deviation=(0.25,) * 3, grey_mean=0.5, grey_deviation=0.25),
    )


def planned(experiment: str, monkeypatch: pytest.MonkeyPatch) -> Plan:
    def load(_: str) -> Manifest:
        return manifest_of(experiment)

    monkeypatch.setattr(ssl_core.data.data_set, "load_manifest", load)
    return make_plan(compose("pretrain", [f"experiment={experiment}", "data.train=train", "data.val=val"]), workers=1)


def text_of(plan: Plan) -> str:
    """All that the recipe decides, with what follows from it."""
    follows: dict[str, Any] = {
        "method": asdict(plan.method),
        "views": asdict(plan.views),
        "lanes": plan.lanes.count,
        "steps": plan.total_steps,
    }
    content = json.loads(json.dumps({"composed": plan.values, "follows": follows}))
    return yaml.safe_dump(content, sort_keys=True)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_means_what_its_golden_text_says(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_of(planned(experiment, monkeypatch)) == (GOLDEN / f"{experiment}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if not name.endswith("imagenet")])
def test_can_be_built(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(experiment, monkeypatch)
    method = plan.build_method(plan.random_encoder())
    assert method.recipe.num_views == plan.views.views


def test_every_method_has_the_papers_recipe_and_one_that_was_run() -> None:
    named = {
        yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())["composed"]["method"]["name"] for name in EXPERIMENTS
    }
    assert named == set(METHODS)
    for method in ("simclr", "moco_v1", "moco_v2", "moco_v3", "mae"):
        assert {f"{method}_imagenet", f"{method}_cifar10"} <= set(EXPERIMENTS)


def test_no_golden_text_is_of_a_recipe_that_is_gone() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.yaml")) == EXPERIMENTS


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        for name in EXPERIMENTS:
            (GOLDEN / f"{name}.yaml").write_text(text_of(planned(name, patch)), encoding="utf-8")
