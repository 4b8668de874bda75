"""Points and their names: which a search tries, in which order, and what is refused."""

import math
from typing import Any

import pytest

from pipelines.config import compose
from pipelines.sweeps.space import (
    SweepConfig,
    grid,
    one_by_one,
    random_points,
    read_parameters,
    size,
    thinned,
    trial_name,
    words_of,
)
from ssl_core.errors import UserError


def parameters(search: str = "random", **keys: dict[str, Any]) -> Any:
    return read_parameters(SweepConfig(search=search, parameters=keys))  # pyright: ignore[reportArgumentType] (any text)


def test_a_grid_has_every_combination_and_the_last_key_varies_fastest() -> None:
    both = parameters("grid", a={"values": [1, 2]}, b={"values": ["x", "y"]})
    assert [tuple(point.values()) for point in grid(both)] == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_one_by_one_has_the_configured_values_once_and_every_other_value_alone() -> None:
    both = parameters("one_by_one", a={"values": [1, 2, 3]}, b={"values": [True, False]})
    assert one_by_one(both, {"a": 2, "b": False}) == [{}, {"a": 1}, {"a": 3}, {"b": True}]


def test_random_points_follow_their_distributions_and_do_not_depend_on_how_many_there_are() -> None:
    keys = parameters(a={"uniform": [2, 4]}, b={"log_uniform": [0.01, 1.0]}, c={"values": ["x", "y"]})
    points = random_points(keys, 2000, seed=3)
    assert points[:5] == random_points(keys, 5, seed=3)
    assert points[:5] != random_points(keys, 5, seed=4)
    assert all(2 <= point["a"] < 4 and 0.01 <= point["b"] < 1 for point in points)
    assert sum(point["a"] for point in points) / 2000 == pytest.approx(3, abs=0.05)
    assert sum(point["b"] < 0.1 for point in points) / 2000 == pytest.approx(0.5, abs=0.05)
    assert sum(point["c"] == "x" for point in points) / 2000 == pytest.approx(0.5, abs=0.05)
    assert random_points(parameters(a={"uniform": [0, 1]}, b={"uniform": [0, 1]}), 1, seed=0)[0]["a"] != points[0]["b"]


def test_random_points_differ_and_there_are_no_more_than_that() -> None:
    few = parameters(a={"values": [1, 2, 3]}, b={"values": ["x", "y"]})
    points = random_points(few, 20, seed=0)
    assert sorted(tuple(point.values()) for point in points) == [(a, b) for a in (1, 2, 3) for b in ("x", "y")]
    assert random_points(few, 4, seed=0) == points[:4]
    assert (size(few), size(parameters(a={"uniform": [0, 1]}, b={"values": [1]}))) == (6, math.inf)


def test_fewer_points_of_a_grid_are_evenly_spaced() -> None:
    points = [{"a": value} for value in range(9)]
    assert [point["a"] for point in thinned(points, 3)] == [0, 4, 8]
    assert [point["a"] for point in thinned(points, 1)] == [0]
    assert thinned(points, 20) == thinned(points, None) == points


def test_a_trials_name_is_a_folder_name_of_its_own() -> None:
    assert trial_name({"method.temperature": 0.1}, 2) == "method.temperature-0.1-seed-2"
    assert trial_name({}, 0) == "base-seed-0"
    assert trial_name({"a": "../x y"}, 0).startswith("a-.._x_y-")
    assert trial_name({"a": "../x y"}, 0) != trial_name({"a": "../x_y"}, 0) != trial_name({"a": "x_y"}, 0)
    assert trial_name({"views.image_size": 160}, 0) != trial_name({"model.image_size": 160}, 0)
    long = [trial_name({f"key{place}": 0.123456789 for place in range(12)} | {"last": last}, 0) for last in (1, 2)]
    assert long[0] != long[1]
    assert all(len(name) < 130 and "/" not in name for name in long)


def test_a_points_words_read_back_as_its_values() -> None:
    point = {"views.scale": [0.2, 1.0], "method.temperature": 0.3, "probe.at_end": False, "init": None}
    read = compose("pretrain", words_of(point))
    odd = ["null", "0.5", "true", "a,b", "it's", "a b", "s3://a/b", "C:\\x\\", "", "[x]", ["1", "b,c"]]
    for value in odd:
        assert compose("pretrain", words_of({"name": value}))["name"] == value
    assert (read["views"]["scale"], read["method"]["temperature"]) == ([0.2, 1.0], 0.3)
    assert (read["probe"]["at_end"], read["init"]) == (False, None)


@pytest.mark.parametrize(
    ("search", "content", "said"),
    [
        ("grid", {"uniform": [0, 1]}, r"sweep.search=grid needs values"),
        ("random", {"uniform": [1, 0]}, r"a.uniform=\[1, 0\]: write \[low, high\]"),
        ("random", {"log_uniform": [0, 1]}, r"above 0"),
        ("random", {"values": []}, r"at least one value"),
        ("random", {"values": [1, 1]}, r"each once"),
        ("grid", {"values": [{"b": 1}]}, r"name a key below a"),
        ("random", {"between": [0, 1]}, r"write values"),
        ("random", [0, 1], r"write values"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_words(search: str, content: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        parameters(search, a=content)
    assert "sweep.parameters.a" in str(caught.value)
