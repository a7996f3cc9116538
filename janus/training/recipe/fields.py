"""What the fields of a recipe may hold: types, which annotations say, and ranges, which `number` says.

One function, `fit`, serves whoever writes Python and whoever writes a file: each section of a recipe fits its
fields when it is made, and a table of a file is fitted to the section that it fills.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from janus.checks import is_number

Path = tuple[str | int, ...]  # of a key: names of tables, and places in lists
NONE = "none"  # how a file says None, for which TOML has no word


def spell(path: Path) -> str:
    """The key as an override names it, data.sources.0.task, in one line."""
    return ".".join(repr(str(step))[1:-1] for step in path)


def show(value: object, limit: int = 60) -> str:
    """A value in one line, as a recipe would have it."""
    if isinstance(value, str):
        text = f'"{repr(value)[1:-1]}"'
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(show, value))}]"
    else:
        text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class RecipeError(ValueError):
    """What is wrong with one key: `path` leads to it, `text` says what, and the remedy."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(f"{spell(path)}: {text}" if path else text)
        self.path, self.text = path, text

    def inside(self, *outer: str | int) -> RecipeError:
        """The same, of a section that is itself found at `outer`."""
        return type(self)((*outer, *self.path), self.text)


class UnknownKey(RecipeError):
    """A key that its section does not have."""


def number(
    default: Any = MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of a number, or of several, with bounds: `least` and `most` are allowed, the others are not."""
    bounds = {"least": least, "above": above, "most": most, "below": below}
    return field(default=default, metadata={name: at for name, at in bounds.items() if at is not None})


_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "least": ("of at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "most": ("of at most", lambda value, bound: value <= bound),
    "below": ("below", lambda value, bound: value < bound),
}


def describe(hint: Any, bounds: Mapping[str, Any]) -> str:
    """What is wanted, in words: "a whole number of at least 1"."""
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        count = "a list" if inner[1:] == (Ellipsis,) else f"a list of {len(inner)}"
        return f"{count}, each {describe(inner[0], bounds)}"
    if get_origin(hint) is Literal:
        *others, last = map(show, get_args(hint))
        return f"{', '.join(others)} or {last}" if others else last
    if is_dataclass(hint):
        return "a table"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text that is not empty"}
    limits = [f"{_BOUNDS[name][0]} {bound}" for name, bound in bounds.items() if name in _BOUNDS]
    if set(bounds) == {"least", "most"}:
        limits = [f"from {bounds['least']} to {bounds['most']}"]
    return " ".join([words[hint], " and ".join(limits)]).strip()


def fit(hint: Any, value: Any, path: Path, bounds: Mapping[str, Any], remedy: str = "") -> Any:
    """`value` as the annotation `hint` has it; RecipeError with the value, what is wanted and the remedy."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None or value == NONE:
            return None
        (hint,) = (each for each in get_args(hint) if each is not types.NoneType)
    if is_dataclass(hint):
        if type(value) is hint:
            return value
        if isinstance(value, Mapping):
            return build(hint, value, path)
    elif get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            return _fit_list(hint, value, path, bounds, remedy)
    elif get_origin(hint) is Literal:
        if isinstance(value, str) and value in get_args(hint):
            return value
        near = isinstance(value, str) and difflib.get_close_matches(value, get_args(hint), 1)
        remedy = f": did you mean {show(near[0])}?" if near else remedy
    elif hint in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        right = whole if hint is int else is_number(value)
        if right and all(_BOUNDS[name][1](value, at) for name, at in bounds.items() if name in _BOUNDS):
            return hint(value)
    elif isinstance(value, hint) and value != "":
        return value
    raise RecipeError(path, f"{show(value)} is not {describe(hint, bounds)}{remedy}")


def _fit_list(hint: Any, value: Iterable[Any], path: Path, bounds: Mapping[str, Any], remedy: str) -> Any:
    inner, values = get_args(hint), list(value)
    if inner[1:] != (Ellipsis,) and len(values) != len(inner):
        raise RecipeError(path, f"{show(values)} is not {describe(hint, bounds)}{remedy}")
    return tuple(fit(inner[0], each, (*path, place), bounds) for place, each in enumerate(values))


class Section:
    """What the sections of a recipe have in common: made of what fits, and each says what does not."""

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for each, hint in annotated(cls):
            value = getattr(self, each.name)
            # (Frozen from here on; a list becomes a tuple, and a whole number a float, before that.)
            object.__setattr__(self, each.name, _fit_field(each, hint, value))
        self.check()

    def check(self) -> None:
        """RecipeError for keys that fit by themselves and contradict each other."""


def _fit_field(each: Field[Any], hint: Any, value: Any) -> Any:
    parse = each.metadata.get("parse")
    if parse is not None:
        return _parse(parse, value, each.name)
    plain = isinstance(each.default, str | int | float | tuple) and each.default != ()
    remedy = f": give one, or leave it out for {show(each.default)}" if plain else ": give one"
    return fit(hint, value, (each.name,), each.metadata, remedy)


def _parse(parse: Callable[[Any], Any], value: Any, name: str) -> Any:
    if value is None or value == NONE:
        return None
    try:
        return parse(value)
    except RecipeError as error:
        raise error.inside(name) from None
    except ValueError as error:
        raise RecipeError((name,), str(error)) from None


@cache
def annotated(cls: Any) -> tuple[tuple[Field[Any], Any], ...]:
    """The fields of a dataclass, each with its annotation resolved."""
    hints = get_type_hints(cls)
    return tuple((each, hints[each.name]) for each in fields(cls))


def build(cls: Any, values: Mapping[str, Any], path: Path = ()) -> Any:
    """The section `cls` of a table; RecipeError, led to from `path`, for keys unknown, missing or unfit."""
    known = tuple(each.name for each in fields(cls))
    for key in values:
        if key not in known:
            raise UnknownKey((*path, key), unknown(key, known))
    for each, hint in annotated(cls):
        required = each.default is MISSING and each.default_factory is MISSING
        if required and each.name not in values:
            raise RecipeError((*path, each.name), f"is missing: give {describe(hint, each.metadata)}")
    try:
        return cls(**values)
    except RecipeError as error:
        raise error.inside(*path) from None


def unknown(key: object, known: tuple[str, ...]) -> str:
    """What to say of a key, or a name, that is none of those there are."""
    near = difflib.get_close_matches(str(key), known, 1)
    return f"is unknown: did you mean {near[0]}?" if near else f"is unknown: there are {', '.join(known)}"


def check_names(key: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    """RecipeError, with its place in the list `key`, for the first name that is none of those known."""
    for place, name in enumerate(names):
        check_name(name, known, key, place)


def check_name(name: str, known: tuple[str, ...], *path: str | int) -> None:
    """RecipeError, with the path of its key, for a name that is none of those known."""
    if name not in known:
        raise RecipeError(path, f"{show(name)} {unknown(name, known)}")


def homes(cls: Any, key: object, path: tuple[str, ...] = ()) -> list[str]:
    """Where in a section and those inside it there is a field called `key`, as an override names it."""
    found = []
    for each, hint in annotated(cls):
        if each.name == key:
            found.append(spell((*path, each.name)))
        for inner in (hint, *get_args(hint)):
            if isinstance(inner, type) and issubclass(inner, Section):
                found += homes(inner, key, (*path, each.name))
    return found
