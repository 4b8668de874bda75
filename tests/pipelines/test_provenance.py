"""What a run was made with: the commit of the checkout, if it is one, and whether that is the whole truth."""

import json
import subprocess
from pathlib import Path

import pytest

from pipelines.provenance import Code, code_at, environment, source_tags


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit."""
    for name in ("pipelines", "ssl_core", "configs", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=first")
    return tmp_path


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def test_the_commit_of_a_checkout_and_whether_it_was_changed_since(checkout: Path) -> None:
    code = code_at(checkout)
    assert code is not None
    assert (len(code.commit), code.branch, code.dirty) == (40, "trunk", False)
    assert str(code) == code.commit[:12]
    (checkout / "notes" / "new.txt").write_text("what no run depends on")
    assert code_at(checkout) == code
    (checkout / "ssl_core" / "new.py").write_text("")
    changed = code_at(checkout)
    assert changed is not None
    assert changed.dirty
    assert str(changed).endswith("with uncommitted changes")


def test_no_repository_no_commit(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert code_at(tmp_path_factory.mktemp("plain")) is None
    installed = checkout / ".venv"  # in somebody's project: the commit there is not that of this code
    (installed / "pipelines").mkdir(parents=True)
    (installed / "pipelines" / "__init__.py").write_text("")
    assert code_at(installed) is None


def test_no_git_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert code_at(checkout) is None


def test_the_environment_is_json_with_versions_and_the_machine() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["packages"].keys() >= {"torch", "ray", "mlflow"}
    assert found["machine"]["cores"] > 0
    tags = source_tags({"code": vars(Code(commit="c", branch="b", dirty=True))}, "pretrain")
    assert tags["mlflow.source.git.commit"] == "c"
    assert tags["mlflow.source.git.dirty"] == "true"
    assert not any("git" in name for name in source_tags({"code": None}, "pretrain"))
