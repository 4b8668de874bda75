"""Scouts: questions that hang or raise do not keep the others from being answered; clocks from round trips."""

import threading
from collections.abc import Iterator

import pytest

from pipelines.scouts import answers, clock_offset
from ssl_core.errors import UserError


def test_what_hangs_or_raises_leaves_the_other_answers_alone() -> None:
    forever = threading.Event()

    def refuses() -> None:
        raise UserError("no such bucket")

    def breaks() -> None:
        raise ZeroDivisionError("1/0")

    found = answers({"hangs": forever.wait, "refuses": refuses, "breaks": breaks, "good": lambda: 42}, 0.3)
    forever.set()
    assert found["hangs"].error == "no answer within 0 s"
    assert found["refuses"].error == "no such bucket"
    assert found["breaks"].error == "ZeroDivisionError: 1/0"
    assert (found["good"].value, found["good"].error) == (42, None)


@pytest.mark.parametrize("ahead", [0.0, 5.0, -3.0])
def test_an_offset_is_right_within_its_bound(ahead: float) -> None:
    clock = Clock(steps=iter([0.4, 0.01, 0.2] * 10))
    offset = clock_offset(lambda: clock.read() + ahead, clock.read)
    assert abs(offset.seconds - ahead) <= offset.bound < 0.25


class Clock:
    """Goes on by itself, a step at each look."""

    def __init__(self, steps: Iterator[float]) -> None:
        self._steps, self._now = steps, 1000.0

    def read(self) -> float:
        self._now += next(self._steps)
        return self._now
