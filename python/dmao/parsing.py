"""Frozen dataclasses from plain mappings (YAML) and back.

Errors are one line that names the key, what it takes and what it got.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar, Union

from dmao.errors import UserError

T = TypeVar("T")
_WHOLE = 2**63  # what C and tensors count with
_REPR = reprlib.Repr()  # an alias in YAML may stand for more than memory holds
_REPR.maxlevel, _REPR.maxstring = 2, 200


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message is one line."""


def from_mapping(cls: type[T], values: Any, path: str = "") -> T:
    """An instance of the dataclass `cls`; keys that are left out keep their default.

    Raises ConfigError for an unknown key, a value of the wrong type, or one that the class itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"config: {path or 'the file'} must be a mapping of keys to values, got {_describe(values)}")
    hints = _hints(cls)  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        name = f"{path}.{key}" if path else str(key)
        if key not in hints:
            raise ConfigError(f"config: unknown key '{name}'{_suggest(str(key), hints)}")
        arguments[key] = _convert(hints[key], value, name)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if _is_required(field) and field.name not in arguments:
            raise ConfigError(f"config: {path or 'the file'} needs the key '{field.name}'")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config: {path}: {error}" if path else f"config: {error}") from error


def to_mapping(config: Any) -> Any:
    """Plain dicts, lists and scalars, fit for YAML and JSON; the inverse of from_mapping."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_mapping(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (list, tuple)):
        return [to_mapping(item) for item in config]
    return config


def set_path(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets the dotted `key` in nested mappings, making those that are missing or null."""
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ConfigError(f"config: '{key}': '{parent}' holds no keys")
    values[last] = value


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(kind: Any, value: Any, name: str) -> Any:
    _refuse_unusable(value, name)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, name)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"config: {name} must be one of {', '.join(map(str, arguments))}, got {_describe(value)}")
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _convert_sequence(kind, value, name)
    if dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, name)  # type: ignore[arg-type]
    if kind is float and isinstance(value, str):  # YAML reads 3e-4 (without a dot) as text
        try:
            return _convert(kind, float(value), name)
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    raise ConfigError(f"config: {name} must be {_kind_name(kind)}, got {_describe(value)}")


def _refuse_unusable(value: Any, name: str) -> None:
    """What YAML has and no key takes, whatever its kind."""
    if isinstance(value, int) and abs(value) >= _WHOLE:
        raise ConfigError(f"config: {name} must lie between -2^63 and 2^63, got a number of {value.bit_length()} bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"config: {name} must be finite, got {value}")
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"config: {name} must not hold the character NUL, got {_describe(value)}")


def _convert_union(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    exact = [kind for kind in kinds if isinstance(kind, type) and type(value) is kind]
    if isinstance(value, Mapping) and all(dataclasses.is_dataclass(kind) for kind in kinds):
        exact = [max(kinds, key=lambda kind: len(value.keys() & _hints(kind).keys()))]  # its errors are about the keys
    if exact or len(kinds) == 1:
        return _convert((exact or list(kinds))[0], value, name)
    for kind in kinds:
        try:
            return _convert(kind, value, name)
        except ConfigError:
            continue
    raise ConfigError(f"config: {name} must be {' or '.join(map(_kind_name, kinds))}, got {_describe(value)}")


def _convert_sequence(kind: Any, value: Any, name: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"config: {name} must be a list, got {_describe(value)}")
    items = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and Ellipsis not in items:
        if len(value) != len(items):
            raise ConfigError(f"config: {name} must have {len(items)} entries, got {len(value)}")
        return tuple(
            _convert(item, entry, f"{name}[{i}]") for i, (item, entry) in enumerate(zip(items, value, strict=True))
        )
    return tuple(_convert(items[0], entry, f"{name}[{i}]") for i, entry in enumerate(value))


def _kind_name(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _suggest(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known here: {', '.join(known)}"


def _describe(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {_REPR.repr(value)}"
