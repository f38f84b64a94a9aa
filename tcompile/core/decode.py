"""JSON and YAML documents, and data classes from and to them, by msgspec.

Every document is read here, whoever wrote it: what is nested too deeply, numbers that no field
holds, and what is not of JSON's types is refused in one line. Errors name the place in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
from msgspec import Meta, inspect

from tcompile.core.errors import MissingExtraError, UsageError
from tcompile.core.files import in_words, read_text

T = TypeVar("T")
#: Levels of a document, and values in it.
_DEPTH, _VALUES = 64, 2_000_000
#: Whole numbers lie below this magnitude, as in what reads JSON elsewhere.
_WHOLE = 1 << 63
#: Characters of YAML, which is read slowly, and which people write by hand.
_MOST_YAML = 1 << 20
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


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: in one line: not JSON, nested too deeply, or a number beyond all use.
    """
    try:
        found = json.loads(text, parse_int=_whole, parse_float=_real, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return checked(found)


def read_json(path: str | Path, kind: str) -> Any:
    """Return the value of a JSON file.

    Args:
        kind: what it should be, for the message: "a profile".

    Raises:
        UsageError: it cannot be read, or is not JSON.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise UsageError(f"is not {kind}: {error}", where=str(path)) from error


def read_yaml(path: str | Path, kind: str) -> Any:
    """Return the value of a YAML file, without merges (a few of which
    can stand for any number of values). Arguments and errors as
    `read_json`; also MissingExtraError: pyyaml is not installed."""
    text = read_text(path)
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("pyyaml", "yaml", f"reading {kind} in YAML") from error
    try:
        if len(text) > _MOST_YAML:
            raise ValueError(f"larger than {in_words(_MOST_YAML)}")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            opens = isinstance(event, yaml.events.CollectionStartEvent)
            depth += opens - isinstance(event, yaml.events.CollectionEndEvent)
            if depth > _DEPTH:
                raise ValueError(_TOO_DEEP)
            if isinstance(event, yaml.events.ScalarEvent) and event.value == "<<":
                raise ValueError("merges (<<) are not read: write the values out")
        return checked(yaml.safe_load(text))
    except Exception as error:  # of what values look like PyYAML raises anything
        said = " ".join(str(error).split())
        raise UsageError(f"is not {kind} in YAML: {said}", where=str(path)) from error


_TOO_DEEP = f"nested deeper than {_DEPTH} levels"


def checked(value: Any) -> Any:
    """Return a value if it is made of JSON's types, and of sizes that all that read it can bear.

    Raises:
        ValueError: it is not.
    """
    rest: list[tuple[Any, int]] = [(value, 0)]
    count = 0
    while rest:
        one, depth = rest.pop()
        count += 1
        if depth > _DEPTH:
            raise ValueError(_TOO_DEEP)
        if count > _VALUES:
            raise ValueError(f"holds more than {_VALUES} values")
        if isinstance(one, Mapping):
            for name in one:
                _text(name)
            rest += [(each, depth + 1) for each in one.values()]
        elif isinstance(one, (list, tuple)):
            rest += [(each, depth + 1) for each in one]
        elif isinstance(one, float):
            if not math.isfinite(one):
                _no_number(str(one))
        elif isinstance(one, int):
            if not -_WHOLE <= one < _WHOLE:
                raise ValueError("a whole number in it is beyond 64 bits")
        elif one is not None:
            _text(one)
    return value


def _text(value: Any) -> None:
    """Refuse what is not text, and text that no file can hold (half of a pair of UTF-16)."""
    if not isinstance(value, str):
        raise ValueError(f"has a value or name of type {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"has text that is not Unicode: {_short(ascii(value))}") from None


def _whole(digits: str) -> int:
    if len(digits) > 20:  # Python refuses to read much longer ones
        raise ValueError(f"{_short(digits)} is beyond 64 bits")
    return int(digits)


def _real(text: str) -> float:
    found = float(text)
    return found if math.isfinite(found) else _no_number(_short(text))


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _short(text: str) -> str:
    return text if len(text) < 40 else f"{text[:37]}..."


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
        made = msgspec.convert(checked(value), kind)
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
    return f"{place or 'document'}: {expected[:1].lower()}{expected[1:]}, found {_short(found)}"


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
