"""Reads frozen dataclasses from what a JSON or TOML file holds, and says what does not match.

A field stands under its own name, or under the `key` of its metadata, in which `{}` is the metric
of the task; `least` and `most` bound a number. Keys that no field has are left alone: a later
version, or a task, may have added them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class MismatchError(ValueError):
    """A value in a file that does not match the types."""


def encode(value: Any, metric: str = "") -> Any:
    """The JSON form of a value of dataclasses, dictionaries, tuples and plain values.

    Fields whose metadata say `only_if_any` are left out where they are empty.
    """
    if is_dataclass(value):
        return {
            _key(f, metric): encode(own, metric)
            for f in fields(value)
            if (own := getattr(value, f.name)) or not f.metadata.get("only_if_any")
        }
    if isinstance(value, dict):
        return {key: encode(own, metric) for key, own in value.items()}
    return [encode(own, metric) for own in value] if isinstance(value, tuple) else value


def decode(kind: type[T], data: Any, where: str = "", metric: str = "") -> T:
    """The dataclass `kind` from its JSON form; `where` it stands is for the `MismatchError`.

    What `__post_init__` refuses with a `ValueError` does not match either.
    """
    found: T = _decode(kind, data, where, metric)
    return found


def mapping(data: Any, where: str) -> Mapping[str, Any]:
    """The data, if it is an object; else `MismatchError`."""
    _require(isinstance(data, dict), where, "an object", data)
    return data  # type: ignore[no-any-return]


def _decode(kind: Any, data: Any, where: str, metric: str) -> Any:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        if data is None and NoneType in arguments:
            return None
        own = [a for a in arguments if a is not NoneType]
        if len(own) > 1:  # a number, or else a record that is a list, such as `nas.size.Size`
            own = [k for k in own if issubclass(k, tuple) == isinstance(data, list)]
        return _decode(own[0], data, where, metric)
    if is_dataclass(kind):
        return _dataclass(kind, mapping(data, where), where, metric)
    if isinstance(kind, type) and hasattr(kind, "_fields"):
        return kind(*_decode(tuple[tuple(_types(kind).values())], data, where, metric))  # type: ignore[misc]
    if origin is tuple:
        _require(isinstance(data, list), where, "a list", data)
        kinds = arguments[:1] * len(data) if arguments[1:] == (...,) else arguments
        _require(len(data) == len(kinds), where, f"a list of {len(kinds)}", data)
        return tuple(
            _decode(k, x, f"{where}[{i}]", metric) for i, (k, x) in enumerate(zip(kinds, data))
        )
    if origin in (dict, Mapping):
        items = mapping(data, where).items()
        return {key: _decode(arguments[1], x, f"{where}.{key}", metric) for key, x in items}
    if kind is float:
        real = isinstance(data, int | float) and not isinstance(data, bool)
        _require(real and math.isfinite(_float(data)), where, "a number", data)
    elif kind is not Any:
        _require(type(data) is kind, where, f"of the type {kind.__name__}", data)
    return data


def _dataclass(kind: Any, data: Mapping[str, Any], where: str, metric: str) -> Any:
    types, found = _types(kind), {}
    for f in fields(kind):
        key = _key(f, metric)
        place = f"{where}.{key}" if where else key
        if key in data:
            found[f.name] = _decode(types[f.name], data[key], place, metric)
            _bound(f, found[f.name], place)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise MismatchError(f"the key {place} is missing")
    try:
        return kind(**found)
    except ValueError as error:
        raise MismatchError(f"{where}: {error}" if where else str(error)) from None


def _bound(f: Field[Any], value: Any, where: str) -> None:
    """Refuse a number outside of the bounds of its field."""
    least, most = f.metadata.get("least", -math.inf), f.metadata.get("most", math.inf)
    if value is not None and (least > -math.inf or most < math.inf):
        _require(least <= value <= most, where, f"from {least:g} to {most:g}", value)


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _key(f: Field[Any], metric: str) -> str:
    return str(f.metadata.get("key", f.name)).format(metric)


def _require(holds: bool, where: str, what: str, data: Any) -> None:
    if not holds:
        raise MismatchError(f"{where or 'it'} must be {what}, got {data!r:.60}")
