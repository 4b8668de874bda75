"""Training from a bucket through a cache smaller than the data set sees what training from the folder sees."""

from pathlib import Path
from typing import Any

import boto3
import pytest

from cluster.object_store import ObjectStore
from pipelines import pack
from pipelines.config import compose
from pipelines.plan import check_inputs, make_plan, with_absolute_paths
from pipelines.worker import run_worker
from pipelines.worker_process import Job
from ssl_core.data.manifest import load_manifest
from ssl_core.errors import UserError
from ssl_core.train.context import InProcessContext
from ssl_core.train.records import join_parts

pytestmark = pytest.mark.s3
BUCKET = "runs-data"
MODEL = ["method=simclr", "model=resnet_micro", "model.arguments.channels=[8,8,16,16]", "method.projector=[16,8]"]
SETTING = [
    *MODEL,
    *("model.image_size=16", "model.in_chans=1", "train.global_batch=64", "data.lanes=2", "data.block=60"),
    *("train.steps=30", "train.workers=1", "train.threads=1", "train.audit=true", "probe.every=null"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,438 digits in 240 shards."""
    made = tmp_path_factory.mktemp("digits")
    pack.main(["source=digits", f"output={made}", "shard_samples=6"])
    return made / "train"


@pytest.fixture
def bucket(s3_store: ObjectStore, folder: Path) -> str:
    """The same shards in a bucket."""
    client: Any = boto3.client("s3", **s3_store.client_arguments)
    if BUCKET not in {one["Name"] for one in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=BUCKET)
        for path in sorted(folder.iterdir()):
            client.upload_file(str(path), BUCKET, path.name)
    return f"s3://{BUCKET}"


def audit(run: Path, *words: str) -> list[dict[str, Any]]:
    """What every step of a run in this process saw."""
    run.mkdir()
    values = with_absolute_paths(compose("pretrain", [*SETTING, *words]))
    check_inputs(make_plan(values))
    run_worker(Job(config=values, folder=str(run), attempt=1), InProcessContext(folder=run))
    return join_parts(run, "audit")


def test_a_small_cache_changes_nothing(bucket: str, folder: Path, tmp_path: Path) -> None:
    manifest = load_manifest(bucket)
    gigabytes = manifest.num_bytes / 4 / 1e9
    cache = tmp_path / "cache"
    there = audit(tmp_path / "there", f"data.train={bucket}", f"data.cache={cache}", f"data.cache_gb={gigabytes}")
    assert len(there) == 30  # more than an epoch of 22 steps
    here = audit(tmp_path / "here", f"data.train={folder}")
    for name in ("ids", "views", "loss"):
        assert [line[name] for line in there] == [line[name] for line in here], name
    kept = sum(path.stat().st_size for path in cache.iterdir() if len(path.name) == 64)
    assert manifest.num_bytes / 8 < kept <= manifest.num_bytes / 4


def test_a_cache_smaller_than_the_working_set_is_refused_with_the_number(bucket: str) -> None:
    values = compose("pretrain", [*SETTING, f"data.train={bucket}", "data.cache_gb=0.00001"])
    with pytest.raises(
        UserError, match=r"data.cache_gb=1e-05 is too small: 2 lanes .* from 40 shards .* 0\.000819 GB: raise it"
    ):
        check_inputs(make_plan(values))


def test_workers_elsewhere_use_the_same_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = with_absolute_paths(compose("pretrain", [*SETTING, "data.train=s3://some/where", "data.cache=here"]))
    assert values["data"]["train"] == "s3://some/where"
    assert values["data"]["cache"] == str(tmp_path / "here")
