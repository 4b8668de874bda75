"""The champion moves for a gain above one standard error on the same data, and for nothing else."""

import itertools
import math

import pytest

from pipelines.gate import Entry, Promotion, champion, verdict


def entry(version: int, value: float | None, *, error: float = 0.01, data: str = "A") -> Entry:
    return Entry(version=version, data=data, value=value, error=error)


def number(*entries: Entry, promotion: Promotion | None = None) -> int | None:
    best = champion(entries, promotion)
    return best and best.version


def test_the_first_probed_version_is_the_champion() -> None:
    assert number() is None
    assert number(entry(1, None)) is None
    assert number(entry(1, None), entry(2, math.nan), entry(3, 0.5)) == 3


@pytest.mark.parametrize(("value", "winner"), [(0.505, 1), (0.5078125, 1), (0.508, 2), (0.4, 1)])
def test_a_gain_must_be_above_one_standard_error(value: float, winner: int) -> None:
    assert number(entry(1, 0.5, error=2**-7), entry(2, value, error=2**-7)) == winner


def test_the_larger_error_counts() -> None:
    assert number(entry(1, 0.5, error=0.03), entry(2, 0.52, error=0.01)) == 1
    assert number(entry(1, 0.5, error=0.01), entry(2, 0.52, error=0.03)) == 1
    assert number(entry(1, 0.5, error=0.0), entry(2, 0.5001, error=0.0)) == 2
    assert number(entry(1, 0.5, error=0.0), entry(2, 0.5, error=0.0)) == 1


def test_small_gains_add_up_against_the_champion() -> None:
    assert number(entry(1, 0.5), entry(2, 0.508), entry(3, 0.512)) == 3


def test_other_data_is_not_compared() -> None:
    assert number(entry(1, 0.5), entry(2, 0.9, data="B")) == 1
    assert "other data" in verdict(entry(2, 0.9, data="B"), [entry(1, 0.5)], "linear")


def test_the_answer_does_not_depend_on_who_asks_when() -> None:
    entries = [entry(1, 0.5), entry(2, 0.52), entry(3, 0.525), entry(4, 0.9, data="B"), entry(5, 0.54)]
    assert {number(*order) for order in itertools.permutations(entries)} == {5}


def test_a_promotion_by_hand_holds_until_a_later_version_beats_it() -> None:
    entries = [entry(1, 0.5), entry(2, 0.7), entry(3, None)]
    assert number(*entries, promotion=Promotion(version=1, highest=3)) == 1
    assert number(*entries, promotion=Promotion(version=3, highest=3)) == 3
    assert number(*entries, entry(4, 0.6), promotion=Promotion(version=1, highest=3)) == 4
    assert number(*entries, entry(4, 0.6), promotion=Promotion(version=3, highest=3)) == 3
    assert number(*entries, promotion=Promotion(version=9, highest=9)) == 2  # the promoted one was deleted


@pytest.mark.parametrize(
    ("value", "words"), [(0.55, "more than one"), (0.505, "not one"), (0.4, "is below"), (None, "no probe numbers")]
)
def test_the_verdict_says_why(value: float | None, words: str) -> None:
    assert words in verdict(entry(2, value), [entry(1, 0.5)], "linear")
    if value is not None:
        assert "version 1 with 50.00 ± 1.00 %" in verdict(entry(2, value), [entry(1, 0.5)], "linear")
        assert "first version with a probe" in verdict(entry(2, value), [entry(1, None)], "linear")


def test_the_verdict_is_about_the_champion_at_that_time() -> None:
    first, second, third = entry(1, 0.505), entry(2, 0.5), entry(3, 0.6)
    assert "first version with a probe" in verdict(first, [second], "linear")  # registered again
    assert verdict(first, [second, third], "linear").endswith("; version 3 took its place since")
    assert verdict(second, [first, third], "linear") == "linear 50.00 ± 1.00 % is below version 1 with 50.50 ± 1.00 %"


def test_the_verdict_knows_what_was_promoted_by_hand() -> None:
    entries = [entry(1, 0.5), entry(2, 0.7), entry(3, 0.6)]
    by_hand = Promotion(version=1, highest=2)
    said = [verdict(one, [other for other in entries if other is not one], "linear", by_hand) for one in entries]
    assert said == [
        "it was promoted by hand; version 3 took its place since",
        "version 1 was promoted by hand after it was registered",
        "linear 60.00 ± 1.00 % is more than one standard error above version 1 with 50.00 ± 1.00 %",
    ]
    deleted = Promotion(version=9, highest=9)
    assert "more than one standard error above" in verdict(entries[1], entries[:1], "linear", deleted)
