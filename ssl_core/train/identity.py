"""Whether two runs are the same run: what the weights depend on, compared key by key."""

from collections.abc import Mapping
from typing import Any, cast


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A line for each value that differs, named by its dotted path; lists and tuples count as the same."""
    found: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, after = _plain(old.get(name)), _plain(new.get(name))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            inner = cast(Mapping[str, Any], before), cast(Mapping[str, Any], after)
            found += differences(*inner, prefix=f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name} was {before}, now {after}")
    return found


def _plain(value: Any) -> Any:
    """As JSON keeps it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in cast(list[Any], value)]
    return value
