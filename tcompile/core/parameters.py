"""Parameters of scores, reducers and presets: declared once, checked everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tcompile.core.errors import UsageError

#: Of single precision, in which scores and reducers compute.
LARGEST = 3.4e38

#: What a type is called in messages; the others by their own names.
_CALLED = {
    "int": "whole number",
    "float": "number",
    "Fraction": "number",
    "str": "text",
    "bool": "truth value (true, false)",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        type: int, float, Fraction, bool, str, list or dict.
        default: None means not set.
        meaning: one line.
        choices: the values it may have; empty: any.
        least, most: bounds of a number, both allowed.
    """

    type: type
    default: Any
    meaning: str
    choices: tuple[Any, ...] = ()
    least: float | None = None
    most: float | None = None

    def problem(self, value: Any) -> str:
        """Return why it cannot have this value; empty if it can."""
        if value is None:
            return "" if self.default is None else "is not set"
        number = isinstance(value, (int, float, Fraction)) and not isinstance(value, bool)
        fits = isinstance(value, self.type) and (self.type is bool or not isinstance(value, bool))
        if not (fits or (self.type in (float, Fraction) and number)):
            return f"is not a {called(self.type)}"
        if self.type is float and not abs(value) <= LARGEST:
            return "is not a finite number of single precision"
        if self.choices and value not in self.choices:
            return f"is not {', '.join(map(str, self.choices[:-1]))} or {self.choices[-1]}"
        exact = isinstance(value, Fraction)  # 0.001 is less than the nearest float to it
        if self.least is not None and not value >= (
            Fraction(str(self.least)) if exact else self.least
        ):
            return f"is less than {self.least:g}"
        if self.most is not None and not value <= (
            Fraction(str(self.most)) if exact else self.most
        ):
            return f"is more than {self.most:g}"
        return ""

    def to_json(self) -> dict[str, Any]:
        found = {"type": self.type.__name__, "default": self.default, "meaning": self.meaning}
        if isinstance(self.default, Fraction):
            found["default"] = float(self.default)
        return {**found, "choices": list(self.choices)} if self.choices else found


def called(kind: type) -> str:
    """A type as people say it."""
    return _CALLED.get(kind.__name__, kind.__name__.lower())


Parameters = Mapping[str, Parameter]


def filled(parameters: Parameters, given: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """The values given in a schedule, and the defaults of the others.

    Raises:
        UsageError: an unknown parameter, or a value that it cannot have.
    """
    for key, value in given.items():
        if key not in parameters:
            hint = f"it has: {', '.join(parameters)}" if parameters else "it has none"
            raise UsageError(f"'{key}' is not a parameter of {owner}", where="schedule", hint=hint)
        problem = parameters[key].problem(value)
        if problem:
            raise UsageError(f"{key}={value!r} of {owner} {problem}", where="schedule")
    return {**{k: p.default for k, p in parameters.items()}, **given}


def parse(parameter: Parameter, key: str, raw: str) -> Any:
    """A value as typed on the command line.

    Raises:
        UsageError: it is not such a value.
    """
    kind = parameter.type
    value: Any
    try:
        if kind is bool:
            value = {"true": True, "1": True, "false": False, "0": False}[raw.lower()]
        elif kind is Fraction:
            value = fraction(raw)
        elif kind is list:
            # A comma separates parameters, so the items of a list are joined by plus signs.
            value = [_number(part) for part in raw.split("+")]
        else:
            value = kind(raw)
    except (ValueError, KeyError, ZeroDivisionError, OverflowError) as error:
        raise UsageError(f"{key}={raw} is not a {called(kind)}", where="--method") from error
    problem = parameter.problem(value)
    if problem:
        raise UsageError(f"{key}={raw} {problem}", where="--method")
    return value


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def fraction(text: str) -> Fraction:
    """The exact number; ValueError also for exponents that would take minutes to write out."""
    _, _, exponent = text.lower().partition("e")
    if len(exponent.lstrip("+-0")) > 3:
        raise ValueError(f"'{text}' is too large to be used")
    return Fraction(text)
