"""JSON documents from and to data classes, by msgspec; errors name the place in the document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, inspect

T = TypeVar("T")
#: Numbers that documents hold; a schema shows their bounds.
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[float, Meta(ge=0)]
UnitInterval = Annotated[float, Meta(ge=0, le=1)]

#: What msgspec says: `Expected this, got that - at $.place`.
_ERROR = re.compile(
    r"(Object missing required field `(?P<missing>\w+)`|Invalid enum value (?P<value>.*?)"
    r"|(?P<fact>.*?)(, got (?P<got>.*?))?)( - at `\$(?P<place>.*)`)?",
    re.DOTALL,
)
#: A field, an item of a list, or a value of an object whose name msgspec does not tell.
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")


def encode(value: Any) -> Any:
    """Return a data class as JSON values: every field, in the order of the class."""
    return msgspec.to_builtins(value, enc_hook=_plain)


def _plain(value: Any) -> Any:
    """Return a value of a subclass, such as NumPy's float64, as one of its JSON type."""
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def decode(kind: type[T], value: Any) -> T:
    """Return `value`, made of JSON values, as a `kind`.

    Raises:
        ValueError: naming the place (`latency[0].kind`) and what was expected there.
    """
    try:
        made = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_sentence(kind, value, str(error))) from error
    # msgspec reads a document with more fields than the data class has.
    for place in _unknown(value, encode(made), ""):
        raise ValueError(f"{place}: unknown field")
    return made


def _sentence(kind: type, value: Any, message: str) -> str:
    """Return msgspec's message as `place: expected this, found that`."""
    error = _ERROR.fullmatch(message)
    assert error is not None, message  # The expression matches any text.
    steps = _STEP.findall(error["place"] or "")
    place = (error["place"] or "").lstrip(".")
    if error["missing"]:
        return f"{place}.{error['missing']}: missing".lstrip(".")
    expected, found = str(error["fact"]).replace("`", ""), error["value"]
    if found is not None:
        expected = f"expected one of {', '.join(map(str, _choices(kind, steps)))}"
    elif any(index == "..." for _, index in steps):
        found = str(error["got"]).replace("`", "")
    else:
        for name, index in steps:
            value = value[name or int(index)]
        found = repr(value)
    found = found if len(found) < 40 else f"{found[:37]}..."
    return f"{place or 'document'}: {expected[:1].lower()}{expected[1:]}, found {found}"


def _choices(kind: type, steps: list[tuple[str, str]]) -> tuple[Any, ...]:
    """Return the values that a place in a document may have."""
    found = [inspect.type_info(kind)]
    for name, _ in steps:
        found = [inside for each in found for inside in _inside(each, name)]
    return next((k.values for k in _members(found) if isinstance(k, inspect.LiteralType)), ())


def _inside(kind: inspect.Type, name: str) -> Iterator[inspect.Type]:
    for each in _members([kind]):
        if isinstance(each, inspect.DataclassType):
            yield from (field.type for field in each.fields if field.name == name)
        elif isinstance(each, inspect.VarTupleType):
            yield each.item_type
        elif isinstance(each, inspect.DictType):
            yield each.value_type


def _members(kinds: list[inspect.Type]) -> Iterator[inspect.Type]:
    """Yield the types, those of a union one by one, without their metadata."""
    for kind in kinds:
        if isinstance(kind, inspect.UnionType):
            yield from _members(list(kind.types))
        elif isinstance(kind, inspect.Metadata):
            yield from _members([kind.type])
        else:
            yield kind


def _unknown(given: Any, kept: Any, place: str) -> Iterator[str]:
    """Yield the places of `given` that are not in `kept`."""
    if isinstance(given, Mapping):
        for name in sorted(given):
            where = f"{place}.{name}".lstrip(".")
            if name in kept:
                yield from _unknown(given[name], kept[name], where)
            else:
                yield where
    elif isinstance(given, (list, tuple)):
        for i, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from _unknown(one, other, f"{place}[{i}]")
