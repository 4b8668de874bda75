"""From the command line to typed values: Hydra composes, then the result becomes frozen dataclasses.

Every mistake is one line that names the key and, where there is one, the nearest right one.
"""

import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from importlib.resources import files
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ssl_core.errors import UserError

T = TypeVar("T")


def compose(command: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose `configs/<command>.yaml` with `key=value` overrides into plain, resolved values.

    Raises:
        UserError: an override that cannot be read, an unknown group option or an unknown key.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    pairs = [_split(override) for override in overrides]
    known = groups_of(command)
    groups = [f"{key}={_checked_option(key, value)}" for key, value in pairs if key in known]
    values = [(key, value) for key, value in pairs if key not in known]
    with initialize_config_module("configs", version_base="1.3"):
        composed = hydra_compose(command, groups)
    base = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=False))
    try:
        # values are set here, not by Hydra: it takes `model=` for a choice of the group of that name in every command
        for key, value in values:
            check_key(key, base)
            OmegaConf.update(composed, key, _parsed(key, value), merge=True, force_add=True)
        return cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"cannot read the configuration: {str(error).splitlines()[0]}") from error


def _split(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not equals or not key or key.startswith("-"):
        raise UserError(f"cannot read {override!r}: write key=value (--help lists the keys)")
    return key, value


def groups_of(command: str) -> list[str]:
    """The groups that a command's YAML chooses from: those of its defaults list, and of the YAML that it builds on."""
    import yaml

    content = yaml.safe_load(files("configs").joinpath(f"{command}.yaml").read_text(encoding="utf-8"))
    groups: list[str] = []
    for entry in content.get("defaults", []) if isinstance(content, dict) else []:
        if isinstance(entry, dict):
            groups += entry
        elif entry != "_self_":
            groups += groups_of(entry)
    return groups


def _checked_option(group: str, option: str) -> str:
    names = sorted(
        entry.name[:-5] for entry in files("configs").joinpath(group).iterdir() if entry.name.endswith(".yaml")
    )
    if option not in names:
        raise UserError(f"unknown {group}={option}: {_nearest(option, names)}")
    return option


def _nearest(word: str, known: Sequence[str]) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def check_key(key: str, base: Mapping[str, Any]) -> None:
    """Raises UserError where the key does not exist; what lies below `arguments` is another library's."""
    node: Any = base
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            known = _flatten(base)
            near = get_close_matches(key, known, n=1, cutoff=0.5) or [
                name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]
            ]
            hint = f"did you mean {near[0]}?" if near else "--help lists the keys"
            raise UserError(f"unknown key {key}: {hint}")
        node = cast(dict[str, Any], node)[part]
        if part == "arguments":
            return


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, value in mapping.items():
        names += (
            _flatten(cast(dict[str, Any], value), f"{prefix}{name}.")
            if isinstance(value, dict)
            else [f"{prefix}{name}"]
        )
    return names


def _parsed(key: str, value: str) -> Any:
    """The value in Hydra's grammar; one that this grammar cannot read is taken as the text it is."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}")
        return value if parsed.is_sweep_override() else parsed.value()
    except HydraException:
        return value


def override_text(value: Any) -> str:
    """A plain value as `compose` reads it back after `key=`."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(override_text(one) for one in cast(list[Any], value))}]"
    text = str(value)
    if isinstance(value, str) and _parsed("a", f"[{text}]") != [text]:
        # in quotes, Hydra reads backslashes before a quote as escapes, and only those
        return "'" + re.sub(r"(\\*)($|')", lambda found: 2 * found[1] + (found[2] and "\\'"), text) + "'"
    return text


def typed(cls: type[T], mapping: Mapping[str, Any], path: str = "") -> T:
    """Build the dataclass `cls` from plain values.

    Args:
        cls: a dataclass, nested ones included.
        mapping: plain values, as `compose` returns them.
        path: dotted prefix for messages.

    Raises:
        UserError: an unknown key, a missing one or a value of the wrong type, named by its dotted path.
    """
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cast(Any, cls))}
    for name in mapping:
        if name not in known:
            raise UserError(f"unknown key {path}{name}: {_nearest(name, list(known))}")
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name in mapping:
            values[name] = _convert(mapping[name], hints[name], f"{path}{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{path}{name} is missing: set {path}{name}=…")
    return cls(**values)


def _convert(value: Any, hint: Any, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint) and isinstance(value, dict):
        return typed(cast(type[Any], hint), cast(dict[str, Any], value), f"{path}.")
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, path)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{path}={value}: {_nearest(str(value), [str(one) for one in arguments])}")
        return value
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return _convert_sequence(cast(Sequence[Any], value), origin, arguments, path)
    if origin is dict and isinstance(value, dict):
        return {
            name: _convert(one, arguments[1], f"{path}.{name}") for name, one in cast(dict[str, Any], value).items()
        }
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UserError(f"{path}={value}: expected a finite number")
        return float(value)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{path}={value} has the wrong type: expected {_named(hint)}")


def _convert_union(value: Any, arguments: tuple[Any, ...], path: str) -> Any:
    if value is None and types.NoneType in arguments:
        return None
    choices = [one for one in arguments if one is not types.NoneType]
    exact = [one for one in choices if isinstance(one, type) and type(value) is one]
    for one in exact + choices:
        try:
            return _convert(value, one, path)
        except UserError:
            if len(choices) == 1:
                raise
    raise UserError(f"{path}={value} has the wrong type: expected {' or '.join(_named(one) for one in choices)}")


def _convert_sequence(value: Sequence[Any], origin: Any, arguments: tuple[Any, ...], path: str) -> Any:
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        if len(value) != len(arguments):
            raise UserError(f"{path}={list(value)} has the wrong length: expected {len(arguments)} values")
        return tuple(
            _convert(one, hint, f"{path}[{i}]") for i, (one, hint) in enumerate(zip(value, arguments, strict=True))
        )
    return origin(_convert(one, arguments[0], f"{path}[{i}]") for i, one in enumerate(value))


def _named(hint: Any) -> str:
    if is_dataclass(hint):
        return "keys below it"
    if get_origin(hint) in (tuple, list):
        return "a list"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))
