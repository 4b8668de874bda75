"""What a sweep varies: any keys of `pretrain`, and the points that a search tries. Pure; no Ray, no files.

A *point* gives values to some keys (`{"method.temperature": 0.1}`); a *trial* is a run at a point with one seed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product
from typing import Any, Literal, cast

from pipelines.config import override_text
from ssl_core import rng
from ssl_core.errors import UserError

Point = Mapping[str, Any]
Kind = Literal["values", "uniform", "log_uniform"]
Search = Literal["grid", "one_by_one", "random", "optuna"]

_KINDS: Sequence[Kind] = ("values", "uniform", "log_uniform")
_LONGEST_NAME = 100


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A file of `configs/sweep/`."""

    search: Search
    parameters: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A key and what it is given: one of several values, or a number between two."""

    key: str
    kind: Kind
    values: tuple[Any, ...]

    def drawn(self, number: float) -> Any:
        """The value that a number from [0, 1) stands for."""
        if self.kind == "values":
            return self.values[int(number * len(self.values))]
        low, high = self.values
        if self.kind == "uniform":
            return low + number * (high - low)
        return math.exp(math.log(low) + number * (math.log(high) - math.log(low)))


def read_parameters(config: SweepConfig) -> tuple[Parameter, ...]:
    """The parameters of a sweep's file; raises UserError on what cannot be searched."""
    if not config.parameters:
        raise UserError("sweep.parameters is empty: name a key of pretrain and its values")
    return tuple(_parameter(key, value, config.search) for key, value in config.parameters.items())


def _parameter(key: str, value: Any, search: Search) -> Parameter:
    where = f"sweep.parameters.{key}"
    content = cast(dict[str, Any], value) if isinstance(value, dict) else {}
    kind: Kind | None = next((kind for kind in _KINDS if kind in content), None)
    if kind is None or len(content) != 1 or not isinstance(content[kind], list):
        raise UserError(f"{where}={value}: write values: […], uniform: [low, high] or log_uniform: [low, high]")
    values = tuple(cast(list[Any], content[kind]))
    if kind == "values":
        if not values or any(one in values[:place] for place, one in enumerate(values)):
            raise UserError(f"{where}.values={list(values)}: give at least one value, and each once")
        if any(isinstance(one, dict) for one in values):
            raise UserError(f"{where}.values={list(values)}: a value cannot have keys: name a key below {key}")
        return Parameter(key=key, kind=kind, values=values)
    if search in ("grid", "one_by_one"):
        raise UserError(f"{where}: sweep.search={search} needs values: […]; {kind} is for random and optuna")
    if len(values) != 2 or not all(type(one) in (int, float) for one in values) or not values[0] < values[1]:
        raise UserError(f"{where}.{kind}={list(values)}: write [low, high]")
    if kind == "log_uniform" and values[0] <= 0:
        raise UserError(f"{where}.log_uniform={list(values)}: the lower end has to be above 0")
    return Parameter(key=key, kind=kind, values=values)


def grid(parameters: Sequence[Parameter]) -> list[Point]:
    """Every combination of values, the last key varying fastest."""
    keys = [one.key for one in parameters]
    return [dict(zip(keys, values, strict=True)) for values in product(*(one.values for one in parameters))]


def one_by_one(parameters: Sequence[Parameter], base: Mapping[str, Any]) -> list[Point]:
    """The configured values themselves, then each other value of each key alone.

    Args:
        parameters: what is varied.
        base: the configured value of each key.
    """
    alone = [{one.key: value} for one in parameters for value in one.values if value != base[one.key]]
    return [{}, *alone]


def size(parameters: Sequence[Parameter]) -> float:
    """How many different points there are: infinite with a number between two."""
    return math.prod(len(one.values) if one.kind == "values" else math.inf for one in parameters)


def random_points(parameters: Sequence[Parameter], most: int, *, seed: int) -> list[Point]:
    """So many different points, or all there are, each value drawn by itself; the first are the same for any `most`."""
    points: list[Point] = []
    draws = count()
    while len(points) < min(most, size(parameters)):
        numbers = rng.uniform(rng.key(seed, "sweep", next(draws)), len(parameters))
        point = {one.key: one.drawn(float(number)) for one, number in zip(parameters, numbers, strict=True)}
        if point not in points:
            points.append(point)
    return points


def thinned(points: Sequence[Point], count: int | None) -> list[Point]:
    """At most so many of the points, evenly spaced, the first and the last among them."""
    if count is None or count >= len(points):
        return list(points)
    if count == 1:
        return [points[0]]
    return [points[round(place * (len(points) - 1) / (count - 1))] for place in range(count)]


def trial_name(point: Point, seed: int) -> str:
    """A folder's name that says what the trial is: `method.temperature-0.1-seed-0`."""
    return f"{point_name(point)}-seed-{seed}"


def point_name(point: Point) -> str:
    """The point as a part of a file's name: `method.temperature-0.1`; other points have other names."""
    parts = [f"{key}-{value}" for key, value in point.items()] or ["base"]
    whole = "-".join(parts)
    name = re.sub(r"[^\w.+-]+", "_", whole).lstrip(".")
    if name == whole and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{int(rng.key(0, whole)) & 0xFFFFFFFF:08x}"


def words_of(point: Point) -> list[str]:
    """The point as overrides of a command."""
    return [f"{key}={override_text(value)}" for key, value in point.items()]
