"""JSON values back into frozen dataclasses, checking every type on the way."""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def decode(kind: type[T], value: Any, where: str = "") -> T:
    """`value` as a `kind`: a dataclass, tuple, dict, Literal, union, or a plain JSON type.

    Raises:
        ValueError: naming the place (`latency[0].kind`) and what was expected there.
    """
    return cast(T, _decode(kind, value, where))


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _decode_dataclass(cast(type, kind), value, where)
    if origin is Literal:
        if value in args:
            return value
        raise _wrong(where, f"one of {', '.join(map(str, args))}", value)
    if origin in (Union, types.UnionType):
        return _decode_union(args, value, where)
    if origin is tuple:
        return _decode_tuple(args, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        return {k: _decode(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python but not to JSON.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(where, kind.__name__, value)
    return value


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"{_join(where, unknown[0])}: unknown field")
    arguments = {}
    for name, field in known.items():
        if name in value:
            arguments[name] = _decode(hints[name], value[name], _join(where, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{_join(where, name)}: missing")
    return kind(**arguments)


def _decode_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    errors = []
    for choice in choices:
        if choice is not type(None):
            try:
                return _decode(choice, value, where)
            except ValueError as error:
                errors.append(error)
    raise errors[0]


def _decode_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list", value)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise _wrong(where, f"a list of {len(kinds)}", value)
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_decode(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(where: str, expected: str, value: Any) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) < 40 else f"{shown[:37]}..."
    return ValueError(f"{where or 'document'}: expected {expected}, found {shown}")
