"""A run whose checkpoints are in a bucket: each that is kept can be exported, probed and listed."""

from pathlib import Path
from typing import Any

import boto3
import pytest

from cluster.object_store import ObjectStore
from pipelines import pack, probe, runs
from pipelines.config import compose
from pipelines.kept_steps import export_step
from pipelines.plan import make_plan
from pipelines.run_folder import RunFolder, checkpoint_folder
from pipelines.worker import run_worker
from pipelines.worker_process import Job
from ssl_core.errors import UserError
from ssl_core.export import load_encoder
from ssl_core.storage.s3 import S3Location
from ssl_core.train.context import InProcessContext
from ssl_core.train.saved_steps import saved_steps

pytestmark = [pytest.mark.slow, pytest.mark.s3]


@pytest.fixture
def run(tmp_path: Path, s3_store: ObjectStore) -> Path:
    """Eight steps of a small run, with a checkpoint every two, of which three are kept."""
    pack.main(["source=digits", f"output={tmp_path / 'digits'}"])
    client: Any = boto3.client("s3", **s3_store.client_arguments)
    client.create_bucket(Bucket="kept-steps")
    words = [
        *("method=simclr", "model=resnet_micro", "model.arguments.channels=[8,8,16,16]", "method.projector=[16,8]"),
        *("model.image_size=16", "model.in_chans=1", "train.global_batch=64", "data.lanes=2", "train.steps=8"),
        *("train.workers=1", "train.checkpoint_every=2", "train.keep_checkpoints=3", "probe.every=null"),
        *(f"data.train={tmp_path}/digits/train", f"data.val={tmp_path}/digits/val", "checkpoints=s3://kept-steps/all"),
    ]
    values = compose("pretrain", words)
    plan = make_plan(values)
    folder = RunFolder.open(str(tmp_path / "runs"), "first", identity=plan.identity, config=values)
    folder.update(state="running", attempts=1)
    place = checkpoint_folder(plan.config.checkpoints, folder.path)
    assert str(place) == "s3://kept-steps/all/first"
    context = InProcessContext(folder=folder.path, bucket=place)
    run_worker(Job(config=values, folder=str(folder.path), attempt=1), context)
    assert [one.step for one in saved_steps(place)] == [8, 6, 4]
    return folder.path


def test_kept_steps_are_exported_probed_and_listed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = load_encoder(export_step(run, 8, tmp_path / "8")).encoder.state_dict()
    final = load_encoder(run / "export").encoder.state_dict()
    before = load_encoder(export_step(run, 4, tmp_path / "4")).encoder.state_dict()
    assert all(last[name].equal(one) for name, one in final.items())
    assert not all(before[name].equal(one) for name, one in final.items())
    with pytest.raises(UserError, match="run first keeps no checkpoint of step 5: there are 4, 6, 8"):
        export_step(run, 5, tmp_path / "5")

    probe.main([f"run={run}@6", "max_train=200", "max_val=100"])
    assert "pretrained" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"write run=<run>@<step>, such as first@5000"):
        probe.main(["run=first@last", f"storage={run.parent}"])
    runs.main([f"storage={run.parent}"])
    assert "8/8" in capsys.readouterr().out
    runs.main([f"storage={run.parent}", "delete=first"])
    assert not run.exists()
    assert saved_steps(S3Location("kept-steps", "all/first")) == []
