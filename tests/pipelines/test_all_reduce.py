"""A sum that is wrong, hangs or cannot be made is said; the sum through Ray Train itself: tests/docs/test_guides.py."""

import threading
from typing import Any

import pytest
import torch

from pipelines import all_reduce
from pipelines.all_reduce import Summing, sum_on_workers, summing
from ssl_core.collectives import Collectives
from ssl_core.errors import UserError


class Errs(Collectives):
    """One bit of one number is wrong, as on a device that is broken."""

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        super().sum_(x)
        x[-1] += 1
        return x


def test_a_wrong_sum_is_seen() -> None:
    good = Summing(**summing(Collectives(), torch.device("cpu"), address="10.0.0.1"))
    assert (good.workers, good.wrong, good.devices) == (1, (), ("10.0.0.1 CPU",))
    assert good.seconds > 0
    assert Summing(**summing(Errs(), torch.device("cpu"), address="10.0.0.1")).wrong == (0,)


class Many(Collectives):
    """A thousand workers: what the others add comes from one after the other, as around a ring."""

    def __init__(self) -> None:
        super().__init__(rank=0, world=1000)

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        mine = x.clone()
        for rank in range(1, self.world):
            x += mine * (rank + 1)
        return x

    def gather_objects(self, value: Any) -> list[Any]:
        return [value]


def test_the_sum_of_a_thousand_workers_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_reduce, "SUM_BYTES", 4 * 2000)
    monkeypatch.setattr(all_reduce, "_REPEATS", 1)
    monkeypatch.setattr(all_reduce, "_SHORT_REPEATS", 1)
    assert summing(Many(), torch.device("cpu"), address="10.0.0.1")["wrong"] == ()


class Trainer:
    def __init__(self, fit: Any) -> None:
        self.fit = fit


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("gloo\ntimed out after 60 s"),
            r"could not sum \(timed out after 60 s\): may nodes open any port",
        ),
        (ModuleNotFoundError("No module named 'pipelines'"), "install this version of ssl-pipelines on all nodes"),
    ],
)
def test_what_the_workers_raise_is_said(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit() -> None:
        raise error

    def trainer(*arguments: Any, **options: Any) -> Trainer:
        return Trainer(fit)

    monkeypatch.setattr(all_reduce, "ray_trainer", trainer)
    with pytest.raises(UserError, match=words):
        sum_on_workers(workers=2, need="CPU", patience_seconds=10)


def test_a_sum_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()

    def trainer(*arguments: Any, **options: Any) -> Trainer:
        return Trainer(forever.wait)

    monkeypatch.setattr(all_reduce, "ray_trainer", trainer)
    with pytest.raises(UserError, match="2 worker\\(s\\) did not end a sum within 0 s: may nodes"):
        sum_on_workers(workers=2, need="CPU", patience_seconds=0.2)
    forever.set()
