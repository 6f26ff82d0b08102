"""Turn one TOML table into one frozen dataclass: the only place where a recipe's keys, types and ranges are checked.

A dataclass says what is allowed: its fields are the keys, a default makes a key optional, the type is checked (bool,
int, float, str, Path, Literal, Enum, `X | None`, `tuple[X, ...]`, `Mapping[str, X]`, another dataclass), and
`field(metadata={"minimum": 1, "maximum": 8})` gives a range, which holds for the items of a tuple too. A dataclass
whose fields depend on one another raises ValueError in `__post_init__`; the text becomes the end of the error line.
A key that is a word of Python has an underscore after it: the field `pass_` is the key `pass`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar

from compressor.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a recipe: the file and the path of keys that leads there, as `evaluate.latency` or `pass[2]`."""

    file: Path
    path: str = ""
    about: str = ""
    """What kind of table it is, where the path does not tell: the name of the pass."""

    def at(self, key: str | int) -> Where:
        if isinstance(key, int):
            return Where(self.file, f"{self.path}[{key}]")
        return Where(self.file, f"{self.path}.{key}" if self.path else key)

    def fail(self, value: Any, allowed: str) -> RecipeError:
        """The error for a value that is not allowed here."""
        return RecipeError(f"{self.file}: {self.path} = {show(value)}: must be {allowed}")

    def fault(self, text: str) -> RecipeError:
        """The error for anything else that is wrong here."""
        place = f"{self.path}: " if self.path else ""
        return RecipeError(f"{self.file}: {place}{text}")


def build(cls: type[T], table: Any, where: Where) -> T:
    """An instance of the dataclass `cls` from a table. Raises RecipeError at the first thing that is not allowed."""
    if not isinstance(table, Mapping):
        raise where.fail(table, "a table")
    fields = {field.name.removesuffix("_"): field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            about = f" of {where.about}" if where.about else ""
            raise where.at(key).fault(f"unknown key{about}{suggest(key, fields)}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in table:
            values[field.name] = convert(table[name], hints[field.name], where.at(name), field.metadata)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise where.at(name).fault(f"missing; must be {describe(hints[field.name], field.metadata)}")
    try:
        return cls(**values)
    except ValueError as error:
        raise where.fault(str(error)) from error


def convert(value: Any, hint: Any, where: Where, limits: Mapping[str, Any]) -> Any:
    """`value` as the type `hint`, or RecipeError."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, hint, where, limits)
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in arguments):
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(convert(item, arguments[0], where.at(i), limits) for i, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: convert(item, arguments[1], where.at(key), limits) for key, item in value.items()}
    if isinstance(hint, type):
        return _convert_plain(value, hint, where, limits)
    raise where.fail(value, describe(hint, limits))


def _convert_plain(value: Any, hint: type[Any], where: Where, limits: Mapping[str, Any]) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if issubclass(hint, Enum) and value in [member.value for member in hint]:
        return hint(value)
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    if hint is str and isinstance(value, str) and value:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (int, float) and isinstance(value, (int, hint)) and not isinstance(value, bool):
        number = hint(value)
        low, high = limits.get("minimum", -math.inf), limits.get("maximum", math.inf)
        if math.isfinite(number) and low <= number <= high:
            return number
    raise where.fail(value, describe(hint, limits))


def _convert_union(value: Any, hint: Any, where: Where, limits: Mapping[str, Any]) -> Any:
    """The first member that accepts the value; the error of the only candidate where there is just one."""
    members = [member for member in typing.get_args(hint) if member is not types.NoneType]
    for member in members:
        try:
            return convert(value, member, where, limits)
        except RecipeError:
            if len(members) == 1:
                raise
    raise where.fail(value, describe(hint, limits))


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text that is not empty",
    bool: "true or false",
    Path: "a path",
}


def describe(hint: Any, limits: Mapping[str, Any]) -> str:
    """What a type allows, in words: "a whole number from 1 to 8"."""
    origin = typing.get_origin(hint)
    arguments = [argument for argument in typing.get_args(hint) if argument is not types.NoneType]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(argument, limits) for argument in arguments)
    if origin is Literal:
        return one_of(arguments)
    if origin is tuple:
        return f"a list, each {describe(arguments[0], limits)}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a table" if arguments[1] is Any else f"a table, each value {describe(arguments[1], limits)}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return one_of(member.value for member in hint)
    words = _WORDS.get(hint, "a table")
    low, high = limits.get("minimum"), limits.get("maximum")
    if hint not in (int, float) or (low is None and high is None):
        return words
    if low is None:
        return f"{words}, at most {high}"
    return f"{words}, at least {low}" if high is None else f"{words} from {low} to {high}"


def one_of(choices: Iterable[Any]) -> str:
    return "one of " + ", ".join(show(choice) for choice in choices)


def suggest(key: str, allowed: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest allowed one, and all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(key, names, n=1)
    guess = f'; did you mean "{near[0]}"?' if near else ";"
    return f"{guess} allowed: {', '.join(names) or 'none'}"


def show(value: Any) -> str:
    """A value as TOML would have it, shortened so that the error stays one line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
