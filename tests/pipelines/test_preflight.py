"""The command as a whole: every check is made where others fail, nothing is left, the exit status says it."""

import json
import re
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pipelines import pack, preflight, preflight_checks
from pipelines.console import run_command
from pipelines.mlflow_connection import check_reachable
from pipelines.preflight import Checks
from pipelines.scouts import Node
from ssl_core.errors import Resumable, UserError

SETTING = ["experiment=simclr_digits", "train.workers=2"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    pack.main(["source=digits", f"output={folder}"])
    return folder


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cluster(*arguments: Any, **options: Any) -> NoReturn:
        raise UserError("nothing answers at the Ray address 10.0.0.1:6379")

    monkeypatch.setattr(preflight_checks, "_ray", no_cluster)
    monkeypatch.setattr(preflight_checks, "_leave_ray", lambda: None)


def run(*words: str) -> int:
    """The command's exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["preflight", *words])
        try:
            run_command("preflight", preflight.__doc__, preflight.main, keys_of="pretrain")
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def marks(said: str) -> dict[str, str]:
    """Check → ok or FAILED."""
    lines = [re.match(r"(ok|FAILED)\s+(\S+(?: \S+)*?)  +\S|(ok|FAILED)\s+(.{21}) ", line) for line in said.splitlines()]
    return {str(line[2] or line[4]).strip(): str(line[1] or line[3]) for line in lines if line}


def test_a_check_that_hangs_or_raises_is_a_line_and_the_next_one_is_made() -> None:
    said: list[str] = []
    checks = Checks(said.append)
    forever = threading.Event()
    assert checks.make("hangs", forever.wait, patience_seconds=0.2) is None
    forever.set()
    assert checks.make("breaks", partial(int, "three")) is None
    assert checks.make("secret", lambda: "http://me:hunter2@host:5000 answers") is not None
    assert checks.make("several", lambda: (1, "two")) == (1, "two")
    assert [line.split()[0] for line in said] == ["FAILED", "FAILED", "ok", "ok"]
    assert "hunter2" not in "".join(said)
    assert said[3].split() == ["ok", "several", "two"]
    assert checks.failed == ["hangs", "breaks"]
    assert "2 of 4 checks FAILED: hangs, breaks" in checks.summary()


@pytest.mark.usefixtures("no_ray")
def test_all_that_needs_no_ray_is_checked_and_nothing_is_left(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run(*SETTING, f"data.train={digits}/train", f"storage={tmp_path}/runs") == 1
    said = capsys.readouterr().out
    assert marks(said) == {"inputs": "ok", "storage": "ok", "checkpoints": "ok", "tracking": "ok", "Ray": "FAILED"}
    assert "1 of 5 checks FAILED: Ray" in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_ray")
def test_every_fault_has_its_line(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_checks, "check_reachable", partial(check_reachable, patience_seconds=0.0))
    (tmp_path / "file").touch()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    manifest = json.loads((digits / "train/manifest.json").read_text())
    for shard in manifest["shards"]:
        (damaged / shard["name"]).write_bytes(bytes(shard["bytes"]))  # right size, other bytes
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    words = [f"data.train={damaged}", f"storage={tmp_path}/file/runs", f"checkpoints={tmp_path}/file/checkpoints"]
    assert run(*SETTING, *words, "tracking.uri=http://me:hunter2@127.0.0.1:9") == 1
    said = capsys.readouterr().out
    assert set(marks(said).values()) == {"FAILED"}
    assert "differs from its checksum" in said
    assert said.count("Not a directory") == 2
    assert "the tracking server at 127.0.0.1:9 does not answer" in said
    assert "nothing answers at the Ray address" in said
    assert "hunter2" not in said


@pytest.mark.usefixtures("no_ray")
def test_a_mistake_in_the_command_is_one_line_and_nothing_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SETTING, "train.worker=3") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "unknown key train.worker: did you mean train.workers?" in said.err


@pytest.fixture
def sleeping_cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cluster whose node with eight GPUs comes only for those who wait; what was asked of it."""
    head = Node(node_id="a" * 40, address="10.0.0.1", resources={})
    nodes, seen = [head], dict[str, Any]()

    def wait(need: str, *, least: int, most: int, patience_seconds: float, **options: Any) -> int:
        seen["waited"] = (need, least, most, patience_seconds)
        if most > 8:
            raise Resumable("the cluster has room for 0 worker(s)")
        nodes.append(Node(node_id="b" * 40, address="10.0.0.2", resources={"CPU": 88, "GPU": 8}))
        return most

    def check_nodes(found: list[Node], *arguments: Any) -> str:
        seen["nodes"] = [node.address for node in found]
        return "the table"

    def free(need: str) -> int:
        return 8 * (len(nodes) - 1)

    def passes(*arguments: Any) -> str:
        return "well"

    monkeypatch.setattr(preflight_checks, "_ray", passes)
    monkeypatch.setattr(preflight_checks, "_leave_ray", lambda: None)
    monkeypatch.setattr(preflight_checks, "wait_for_room", wait)
    monkeypatch.setattr(preflight_checks, "room", free)
    monkeypatch.setattr(preflight_checks, "nodes_for_workers", lambda: list(nodes))
    monkeypatch.setattr(preflight_checks, "_check_nodes", check_nodes)
    monkeypatch.setattr(preflight_checks, "_all_reduce", passes)
    return seen


def test_nodes_that_come_when_they_are_asked_for_are_waited_for_and_checked(
    digits: Path, tmp_path: Path, sleeping_cluster: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SETTING, f"data.train={digits}/train", f"storage={tmp_path}/runs", "train.device=gpu", "ray.patience=30m"]
    assert run(*words, "train.workers=[4,8]") == 0
    assert sleeping_cluster == {"waited": ("GPU", 4, 8, 1800.0), "nodes": ["10.0.0.1", "10.0.0.2"]}
    assert "8 of 4 to 8 worker(s), each with a GPU of 8 (8 free)" in capsys.readouterr().out


def test_nodes_that_do_not_come_are_said(
    digits: Path, tmp_path: Path, sleeping_cluster: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SETTING, f"data.train={digits}/train", f"storage={tmp_path}/runs", "train.device=gpu"]
    assert run(*words, "train.workers=16") == 1
    assert "the cluster has 0 GPU(s) for at least 16 worker(s): add nodes" in capsys.readouterr().out


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"nothing answers at the Ray address 127\.0\.0\.1:9"):
        preflight_checks.knock("127.0.0.1:9")
    preflight_checks.knock("auto")
    preflight_checks.knock(None)
