"""Recipes of files, and what is changed on the command line; every mistake is told with its line.

A recipe is TOML, or YAML where pyyaml is installed. Those that ship with the library, `shipped`, go by their
bare names. An override is `key=value`, such as `optimizer.lr=1e-4` or `data.sources.0.path=mine.jsonl`; the
value is TOML, and what is not TOML is a text, so that paths need no quotes.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path as File
from typing import Any

from janus.checks import one_line
from janus.training.recipe.fields import NONE, Path, RecipeError, UnknownKey, build, homes, show, spell
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.toml import key_lines, write_toml

FOLDER = File(__file__).parents[1] / "recipes"
SUFFIXES = (".toml", ".yaml", ".yml")


def shipped() -> tuple[str, ...]:
    """The names of the recipes that come with the library."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.toml")))


def read_recipe(recipe: str | File, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a file, or a shipped one by its name, with overrides.

    Raises FileNotFoundError, or ValueError in one line: `file:line: key: what is wrong, and the remedy`.
    """
    file, where = _find(recipe)
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{where}:{line}: not a text in UTF-8: save it as one") from error
    return parse_recipe(text, where, overrides, yaml=file.suffix != ".toml")


def parse_recipe(text: str, where: str, overrides: Iterable[str] = (), *, yaml: bool = False) -> Recipe:
    """As `read_recipe`, of a text that came from `where`."""
    values, lines = (_read_yaml if yaml else _read_toml)(text, where)
    places = {path: f"{where}:{line}" for path, line in lines.items()}
    for override in overrides:
        path = apply_override(values, override)
        for inside in [key for key in places if key[: len(path)] == path]:
            del places[inside]
        for length in range(1, len(path) + 1):
            places.setdefault(path[:length], f"override {_shown(override)}")
    try:
        return build(Recipe, values)
    except RecipeError as error:
        # A key that is missing is told where its table begins.
        known = (error.path[:length] for length in range(len(error.path), 0, -1))
        place = next((places[path] for path in known if path in places), f"{where}:1")
        raise ValueError(f"{place}: {_placed(error)}") from None


def _placed(error: RecipeError) -> str:
    """The error's text; of a key in the wrong section, with the right one."""
    elsewhere = homes(Recipe, error.path[-1]) if isinstance(error, UnknownKey) else []
    return f"{spell(error.path)}: is unknown here: did you mean {elsewhere[0]}?" if elsewhere else str(error)


def dump(recipe: Recipe) -> str:
    """The recipe as TOML that reads back equal."""
    return write_toml(recipe.to_dict())


def _find(recipe: str | File) -> tuple[File, str]:
    """The file, and how messages call it."""
    if str(recipe) in shipped():
        return FOLDER / f"{recipe}.toml", f"{recipe}.toml"
    file = File(recipe)
    if file.suffix not in SUFFIXES and not file.exists():
        near = difflib.get_close_matches(str(recipe), shipped(), 1)
        hint = (
            f"did you mean {near[0]}?" if near else f"there are {', '.join(shipped())}, or give a .toml file"
        )
        raise FileNotFoundError(f"no recipe is called {recipe}: {hint}")
    if not file.is_file():
        raise FileNotFoundError(
            f"{recipe} is not a file: give a recipe's file, or one of {', '.join(shipped())}"
        )
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{recipe} is neither TOML nor YAML by its name: call it .toml or .yaml")
    return file, str(recipe)


def _read_toml(text: str, where: str) -> tuple[dict[str, Any], Mapping[Path, int]]:
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and Python's own of a number of thousands of digits
        said, _, place = one_line(error).partition(": ")[2].partition(" (at ")
        line = re.search(r"line (\d+)", place)
        number = int(line[1]) if line else len(text.splitlines()) or 1
        raise ValueError(f"{where}:{number}: not TOML: {said}") from None
    except RecursionError:
        raise ValueError(f"{where}:1: nested too deeply for a recipe: write it flatter") from None
    return values, key_lines(text.replace("\r\n", "\n"))


def _read_yaml(text: str, where: str) -> tuple[dict[str, Any], Mapping[Path, int]]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError(f"{where}: YAML needs pyyaml: pip install pyyaml, or write it as TOML") from None
    from janus.training.recipe.yaml import read_yaml

    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        mark, place = getattr(error, "problem_mark", None), getattr(error, "position", 0)
        line = (text.count("\n", 0, place) if mark is None else mark.line) + 1
        said = getattr(error, "problem", None) or one_line(error)
        raise ValueError(f"{where}:{line}: not YAML: {said}") from None
    except RecursionError:
        raise ValueError(f"{where}:1: nested too deeply for a recipe: write it flatter") from None


def apply_override(values: dict[str, Any], override: str) -> Path:
    """Change the tables as `key.sub=value` says, in place; -> the path of the key. Raises ValueError."""
    key, equals, text = override.partition("=")
    names, shown = key.strip().split("."), _shown(override)
    if not equals or not all(names):
        raise ValueError(f"override {shown}: not of the form key=value, such as optimizer.lr=1e-4")
    path: Path = ()
    inner: Any = values
    for name in names:
        if path:
            inner = _step_into(inner, path[-1])
        if isinstance(inner, list):
            if not name.isdecimal() or int(name) >= len(inner):
                raise ValueError(
                    f"override {shown}: {spell(path)} has {len(inner)} items, from 0, and no {spell((name,))}"
                )
            path = (*path, int(name))
        elif isinstance(inner, dict):
            path = (*path, name)
        else:
            raise ValueError(
                f"override {shown}: {spell(path)} is {show(inner)}, with no {spell((name,))} inside"
            )
    inner[path[-1]] = _override_value(text)
    return path


def _shown(override: str) -> str:
    """In one line, whatever it holds."""
    return show(override)[1:-1]


def _step_into(inner: Any, step: str | int) -> Any:
    """What is found at `step`; a table that was not there is made."""
    if isinstance(inner, dict) and inner.get(step) in (None, NONE):
        inner[step] = {}
    return inner[step]


def _override_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return table["value"] if set(table) == {"value"} else text.strip()
